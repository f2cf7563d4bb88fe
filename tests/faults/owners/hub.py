"""The hub of the tests about former owners: numbers that are read in every process all the time, and a singleton.

The environment variable `OWNERS_MUTANT` names a defect of the product to run with; nothing but this module reads it.
"""

import asyncio
import os
import time
from datetime import timedelta
from typing import Final

import msgspec

from actorhub import Entity, Hub, Singleton, current, handler
from actorhub.cluster import Cluster
from actorhub.core.errors import ActorhubError
from tests.faults import mutants
from tests.faults.cluster.notes import Notes

KEYS: Final = [f"k{number}" for number in range(24)]
_PACE: Final = 0.01
"""Seconds between two reads of one number in one process."""


notes = Notes()


def _note(what: str, key: str, number: int, since: float | None = None) -> None:
    notes.add(time.monotonic() if since is None else since, what, key, number)


class Count(msgspec.Struct):
    """A number that only grows."""

    number: int = 0


class Till(Entity[Count], name="till"):
    """Counts; and says when it acts, and at which epoch."""

    async def add(self) -> int:
        _note("act", current().entity_id, current().epoch)
        self.state.number += 1
        return self.state.number

    @handler(readonly=True)
    async def read(self) -> int:
        _note("act", current().entity_id, current().epoch)
        return self.state.number


class Leader(Singleton, name="leader"):
    """Says when it begins and ceases to lead, and at which epoch."""

    async def on_become_leader(self) -> None:
        _note("become", "leader", current().epoch)

    async def on_lose_leadership(self) -> None:
        _note("lose", "leader", current().epoch)


async def read_everything(cluster: Cluster, pace: float = _PACE) -> None:
    """Read each number again and again, wherever this process believes it to be."""
    async with asyncio.TaskGroup() as tasks:
        for key in KEYS:
            tasks.create_task(_read(cluster, key, pace))


async def _read(cluster: Cluster, key: str, pace: float) -> None:
    till = cluster.client(Till).options(timeout=timedelta(seconds=1))
    while True:
        began = time.monotonic()
        try:
            _note("read", key, await till(key).read(), since=began)
        except ActorhubError as error:
            _note(f"failed: {error}", key, 0, since=began)
        await asyncio.sleep(pace)


hub = Hub()
hub.register(Till)
hub.register(Leader)

mutants.apply(os.environ.get("OWNERS_MUTANT", ""))
