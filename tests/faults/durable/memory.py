"""Durable messages on a cluster in memory: the same entities, senders and judge, in one process."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec

from actorhub.cluster import Cluster
from actorhub.storage.message_ports import MessageFilter, MessageState
from actorhub.testing import MemoryCluster, until
from tests.faults.durable import hub as durable_hub
from tests.faults.durable.clients import DurableClients
from tests.faults.durable.history import Book, Row, Run, runs_of
from tests.faults.durable.hub import Book as Books
from tests.faults.durable.hub import hub, notes
from tests.faults.durable.records import ledger_of

_PENDING = frozenset({MessageState.PENDING, MessageState.SCHEDULED})


class DurableMemory:
    """A cluster in memory, one client, and what was noted."""

    def __init__(self, memory: MemoryCluster, client: Cluster) -> None:
        self.memory = memory
        self.client = client
        self.clients = DurableClients(client, 4, random.Random(1))

    def runs(self) -> list[Run]:
        """Return every run so far, in order of time."""
        return runs_of([*msgspec.json.decode(line), "memory"] for line in notes.lines)

    async def ran(self, content: int, times: int = 1) -> None:
        """Wait until the handler of a message began so often."""
        await until(lambda: self._count(content) >= times, f"message {content} ran {times} times", deadline=3.0)

    async def ran_or_settled(self, content: int, times: int) -> bool:
        """Wait until the handler of a message began so often, or nothing is pending any longer; return which it was."""
        await until(lambda: self._count(content) >= times or not self._pending(), "the next run", deadline=3.0)
        return self._count(content) >= times

    def owner(self, entity: str) -> Cluster:
        """Return the runner that owns an entity."""
        found = self.memory.owner_of(self.client.shard_of(Books, entity))
        assert found is not None
        return found

    async def settled(self, seconds: float = 2.0) -> None:
        """Wait until no message is pending, or until it is the judge's to say so."""
        try:
            await until(lambda: not self._pending(), deadline=seconds)
        except TimeoutError:
            return

    def book(self, *, is_calm: bool = False) -> Book:
        """Return everything that was noted and stored."""
        rows = self.memory.store.messages.messages(MessageFilter(limit=100_000))
        states = self.memory.store._states._rows
        return Book(
            sent=self.clients.sent,
            runs=self.runs(),
            ledgers={key[1]: ledger_of(row.version, row.epoch, row.data) for key, row in states.items()},
            rows=[Row(row.message_id, row.entity_id, row.state.value) for row in rows],
            is_calm=is_calm,
        )

    def _count(self, content: int) -> int:
        return sum(run.content == content for run in self.runs())

    def _pending(self) -> bool:
        return bool(self.memory.store.messages.messages(MessageFilter(states=_PENDING)))


@asynccontextmanager
async def durable_memory(runners: int = 1) -> AsyncGenerator[DurableMemory, None]:
    """Run a cluster in memory with a client."""
    notes.lines.clear()
    async with MemoryCluster(hub) as memory:
        for _ in range(runners):
            await memory.start_runner()
        await memory.settled()
        yield DurableMemory(memory, await memory.client())


@asynccontextmanager
async def poison_that_waits() -> AsyncGenerator[None, None]:
    """Let the poisonous handler wait for the end of its runner, instead of ending the whole process."""
    deadly = durable_hub.die_here
    durable_hub.die_here = lambda: None
    try:
        yield
    finally:
        durable_hub.die_here = deadly


async def briefly(seconds: float = 0.05) -> None:
    """Let what is under way come to rest, where there is nothing to wait for: a defect that shows late is not found."""
    await asyncio.sleep(seconds)
