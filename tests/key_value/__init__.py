"""The key-value store of the cluster, as programs and handlers see it."""
