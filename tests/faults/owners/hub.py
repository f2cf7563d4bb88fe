"""The hub of the tests about former owners: numbers that are read in every process all the time, and a singleton.

The environment variable `OWNERS_MUTANT` names a defect of the product to run with; nothing but this module reads it.
"""

import asyncio
import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Final

import msgspec

from actorhub import Entity, Hub, Singleton, current, handler
from actorhub.cluster import Cluster
from actorhub.core.errors import ActorhubError
from tests.faults import mutants

KEYS: Final = [f"k{number}" for number in range(24)]
_PACE: Final = 0.01
"""Seconds between two reads of one number in one process."""


class Events:
    """Where a process writes down what happens in it."""

    def __init__(self) -> None:
        self._file = -1

    def into(self, path: Path) -> None:
        """Write to a file from now on."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def add(self, what: str, key: str, number: int, since: float | None = None) -> None:
        """Write a line, whole, before anything else happens."""
        line = json.dumps([time.monotonic() if since is None else since, what, key, number])
        os.write(self._file, f"{line}\n".encode())


events = Events()


class Count(msgspec.Struct):
    """A number that only grows."""

    number: int = 0


class Till(Entity[Count], name="till"):
    """Counts; and says when it acts, and at which epoch."""

    async def add(self) -> int:
        events.add("act", current().entity_id, current().epoch)
        self.state.number += 1
        return self.state.number

    @handler(readonly=True)
    async def read(self) -> int:
        events.add("act", current().entity_id, current().epoch)
        return self.state.number


class Leader(Singleton, name="leader"):
    """Says when it begins and ceases to lead, and at which epoch."""

    async def on_become_leader(self) -> None:
        events.add("become", "leader", current().epoch)

    async def on_lose_leadership(self) -> None:
        events.add("lose", "leader", current().epoch)


async def read_everything(cluster: Cluster) -> None:
    """Read each number again and again, wherever this process believes it to be."""
    async with asyncio.TaskGroup() as tasks:
        for key in KEYS:
            tasks.create_task(_read(cluster, key))


async def _read(cluster: Cluster, key: str) -> None:
    till = cluster.client(Till).options(timeout=timedelta(seconds=1))
    while True:
        began = time.monotonic()
        try:
            events.add("read", key, await till(key).read(), since=began)
        except ActorhubError as error:
            events.add(f"failed: {error}", key, 0, since=began)
        await asyncio.sleep(_PACE)


hub = Hub()
hub.register(Till)
hub.register(Leader)

mutants.apply(os.environ.get("OWNERS_MUTANT", ""))
