"""Programs that show actorhub at work."""
