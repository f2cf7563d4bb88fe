"""Releases of one program that give an entity type another shard group or shard key, and who calls its entities."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from actorhub import Cluster, Entity, Hub, Retry, Singleton, current, handler
from actorhub.storage.message_ports import MessageFilter, MessageState
from actorhub.testing import MemoryCluster, until
from tests.support.gates import gates

IDS = [f"{name}/{number}" for name in ("ada", "bob", "eve") for number in range(4)]


class Ops(msgspec.Struct):
    done: list[str] = []


def release(**placement: Any) -> tuple[type[Entity[Ops]], Hub]:
    """Return a release of one program: the entity with that placement, and a hub that has it."""

    class Account(Entity[Ops], name="account", **placement):
        def _note(self, op: str) -> int:
            self.state.done.append(op)
            return len(self.state.done)

        @handler(durable=True, retry=Retry(attempts=2, initial=timedelta(milliseconds=10)))
        async def add(self, op: str) -> int:
            return self._note(op)

        @handler(durable=True, retry=Retry(attempts=1))
        async def hold(self, op: str) -> int:
            await gates[op].pass_through()
            return self._note(op)

        async def put(self, op: str) -> int:
            return self._note(op)

        async def wait(self, op: str) -> str:
            await gates[op].pass_through()
            return op

        @handler(readonly=True)
        async def done(self) -> list[str]:
            return list(self.state.done)

        @handler(readonly=True)
        async def shard(self) -> str:
            return str(current().shard_id)

    hub = Hub()
    hub.register(Account)
    return Account, hub


BEFORE = release()
GROUP = release(shard_group="moved")
KEY = release(shard_key=lambda entity_id: entity_id.partition("/")[0])
BOTH = release(shard_group="moved", shard_key=lambda entity_id: entity_id.partition("/")[0])
Release = tuple[type[Entity[Ops]], Hub]


@pytest.fixture
async def memory() -> AsyncIterator[MemoryCluster]:
    """An empty cluster."""
    async with MemoryCluster(BEFORE[1]) as made:
        yield made


class Caller:
    """One sender, which has one release: calls each entity in turn, and remembers what was acknowledged."""

    def __init__(self, cluster: Cluster, release: Release, name: str) -> None:
        self._cluster = cluster
        self._accounts: Any = cluster.client(release[0]).options(timeout=timedelta(seconds=10))
        self._name = name
        self._round = 0
        self.acknowledged: dict[str, list[str]] = {entity_id: [] for entity_id in IDS}

    async def round(self) -> None:
        """Call each entity once with each kind of call."""
        self._round += 1
        for entity_id in IDS:
            account = self._accounts(entity_id)
            for kind in ("asked", "told", "put"):
                op = f"{self._name}-{self._round}-{kind}"
                if kind == "told":
                    await self._cluster.tell(account.add(op))
                else:
                    await (account.add(op) if kind == "asked" else account.put(op))
                self.acknowledged[entity_id].append(op)

    async def run(self, until_set: asyncio.Event) -> None:
        """Go on until the event."""
        while not until_set.is_set():
            await self.round()


async def settled(memory: MemoryCluster, any_runner: Cluster) -> None:
    """Wait until no message is pending; none may be a dead letter."""
    wanted = MessageFilter(states=frozenset({MessageState.PENDING, MessageState.SCHEDULED, MessageState.DEAD}))
    rows = memory.store.messages.messages
    await until(lambda: not rows(wanted), "every message is settled", deadline=20)


async def judged(cluster: Cluster, release: Release, callers: Sequence[Caller], *, in_order: bool = True) -> None:
    """Check that each entity has each acknowledged op once, and durable and other ones of a sender in its order."""
    accounts: Any = cluster.client(release[0])
    for entity_id in IDS:
        done = await accounts(entity_id).done()
        assert [op for op, count in Counter(done).items() if count > 1] == []
        for caller in callers:
            for is_volatile in (False, True):
                wanted = [op for op in caller.acknowledged[entity_id] if op.endswith("put") is is_volatile]
                found = [op for op in done if op in set(wanted)]
                assert (found if in_order else sorted(found)) == (wanted if in_order else sorted(wanted))


class Lease(msgspec.Struct):
    terms: list[str] = []


leading: list[str] = []


def led(**placement: Any) -> tuple[type[Singleton[Lease]], Hub]:
    """Return a release of a program with a singleton of that placement."""

    class Clerk(Singleton[Lease], name="clerk", **placement):
        async def on_become_leader(self) -> None:
            assert leading == []
            leading.append(str(current().shard_id))

        async def on_lose_leadership(self) -> None:
            leading.pop()

        @handler(durable=True)
        async def note(self, op: str) -> str:
            self.state.terms.append(op)
            return str(current().shard_id)

        async def noted(self) -> list[str]:
            return list(self.state.terms)

    hub = Hub()
    hub.register(Clerk)
    return Clerk, hub
