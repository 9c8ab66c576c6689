"""`python -m gati_worker.health`: exit code 0 while the worker's health file is fresh."""

from gati_core.observe import exit_by_health_file

if __name__ == "__main__":
    exit_by_health_file("GATI_WORKER_")
