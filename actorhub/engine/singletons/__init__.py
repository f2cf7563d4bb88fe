"""Singletons: their leaders and their schedules."""
