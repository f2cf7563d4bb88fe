"""Owners that do not know that they are: who acts for a shard, as its entities and their readers saw it."""
