"""Calls: asks, tells and streams, their turns, deadlines and context."""
