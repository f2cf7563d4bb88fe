"""Parts of the engine that every folder of it stands on: supervision, and watching for handlers that block."""
