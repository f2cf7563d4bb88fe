"""What must survive: the cluster's membership, shard ownership with its fence, and entity state."""
