"""Records and values that the parts of the engine share. Imports nothing else of the engine."""
