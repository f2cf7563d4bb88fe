"""The demos, their drivers and their books."""
