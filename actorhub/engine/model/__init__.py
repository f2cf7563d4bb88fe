"""Records and values: what the engine's parts share. Imports nothing else of the engine."""
