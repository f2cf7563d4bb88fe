"""Durable messages on the runner that owns their shards: from the store to their reply."""
