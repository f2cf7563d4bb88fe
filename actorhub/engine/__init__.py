"""The engine: shard ownership, routing, mailboxes, durable messages, activations and singletons."""
