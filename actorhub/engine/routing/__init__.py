"""The way of a message to its shard's owner, and of replies back."""
