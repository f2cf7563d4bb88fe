"""Code that the demos share: runner processes, a real Postgres, a sender that repeats calls, and a screen."""
