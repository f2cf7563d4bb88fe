"""What type checkers make of the API."""
