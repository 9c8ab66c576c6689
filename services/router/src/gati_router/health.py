"""`python -m gati_router.health`: exit code 0 while the router's health file is fresh."""

from gati_core.observe import exit_by_health_file

if __name__ == "__main__":
    exit_by_health_file("GATI_ROUTER_")
