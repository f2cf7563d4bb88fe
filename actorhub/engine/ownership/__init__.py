"""Which shards this runner owns: lock, lease and epoch."""
