"""What several test modules share; nothing here knows a single one of them."""
