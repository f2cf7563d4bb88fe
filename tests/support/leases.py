"""Clusters whose runners hold their shards by leases."""

from actorhub.core.clock import SystemClock
from actorhub.storage.ports import ClusterValues
from actorhub.storage.postgres import PostgresStorage

VALUES = ClusterValues(shards_per_group=300, hash_version="h1")


async def agree_on_leases(url: str, namespace: str = "actorhub") -> None:
    """Have the cluster there agree on leases; none of its runners may be alive."""
    storage = PostgresStorage(url, namespace=namespace, clock=SystemClock(), locks="lease")
    await storage.open()
    await storage.agree(VALUES)
    await storage.aclose()
