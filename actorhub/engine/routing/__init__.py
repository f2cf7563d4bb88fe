"""How a message finds the owner of its shard, and how its reply comes back."""
