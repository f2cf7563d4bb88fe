"""Singletons: their leaders, their main loop and their state."""
