"""Durable messages: stored before they are acknowledged, run until they are settled."""
