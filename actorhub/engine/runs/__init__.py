"""Handler runs: whose turn it is, what a run commits, and how it ends."""
