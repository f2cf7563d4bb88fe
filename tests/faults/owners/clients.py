"""Clients that add to numbers, and keep what was acknowledged."""

import asyncio
import random
import time
from typing import Final

from actorhub.cluster import Cluster
from actorhub.core.errors import ActorhubError
from tests.faults.owners.hub import KEYS, Till

_PACE: Final = 1.0
"""Seconds between two additions to a number, on average. A former owner that gets one has its commit refused, and
knows: most numbers must get none in the moment in which clients do not know the new owner."""


class Writers:
    """Add to every number again and again, and keep what was acknowledged."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.acknowledged: dict[str, list[tuple[float, int]]] = {key: [] for key in KEYS}

    async def add(self, key: str) -> None:
        """Add to a number until cancelled."""
        while True:
            await self.answer(key)
            await asyncio.sleep(_PACE * random.uniform(0.5, 1.5))

    async def answer(self, key: str) -> None:
        """Add to a number as often as it takes until an answer comes."""
        pause = 0.002
        while True:
            try:
                number = await self._cluster.client(Till)(key).add()
            except ActorhubError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, 0.1)
                continue
            # Additions whose answers were lost are acknowledged by the next answer, which counts them.
            now = time.monotonic()
            self.acknowledged[key] += [(now, each) for each in range(self.last(key) + 1, number + 1)]
            return

    def last(self, key: str) -> int:
        """Return the last number that was acknowledged."""
        return self.acknowledged[key][-1][1] if self.acknowledged[key] else 0

    async def all_again(self, since: float) -> float:
        """Wait until each number has grown; return the seconds since then."""
        before = {key: self.last(key) for key in KEYS}
        async with asyncio.timeout(20):
            while any(self.last(key) <= number for key, number in before.items()):
                await asyncio.sleep(0.005)
        return time.monotonic() - since
