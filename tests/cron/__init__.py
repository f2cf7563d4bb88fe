"""Schedules: expressions, plans, and singletons that run by them."""
