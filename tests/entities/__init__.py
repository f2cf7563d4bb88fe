"""The life of an entity: declared, activated, given its state, kept in memory, and moved between runners."""
