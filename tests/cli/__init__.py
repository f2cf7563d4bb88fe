"""The command `actorhub`, in real processes."""
