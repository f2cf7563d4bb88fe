"""A nightly job in durable steps, whose leader is killed or moved at every boundary between steps."""
