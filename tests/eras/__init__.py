"""A database that comes back older, or as a copy."""
