"""Registers under faults: clients, and the judge of what they saw."""
