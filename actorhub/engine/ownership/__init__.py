"""Shard ownership: the lock, the lease and the epoch that let this runner act for a shard."""
