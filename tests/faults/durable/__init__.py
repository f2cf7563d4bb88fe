"""Durable messages under faults: senders, handlers, scenarios, and the judge of what they wrote down."""
