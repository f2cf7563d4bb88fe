"""Runners as real processes behind proxies, and the faults that are injected into them."""
