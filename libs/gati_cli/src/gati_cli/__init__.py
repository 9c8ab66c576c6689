"""The `gati` command. May import: gati_core. Starts services as processes, never imports them."""
