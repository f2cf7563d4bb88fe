"""Example programs that use actorhub."""
