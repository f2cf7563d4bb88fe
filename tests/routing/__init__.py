"""How a message finds the owner of its shard, and when it gives up."""
