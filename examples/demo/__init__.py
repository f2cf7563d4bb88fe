"""What the examples' demos have in common: real processes, a real Postgres, a patient sender, and a screen."""
