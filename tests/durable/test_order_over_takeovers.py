"""What one entity tells another runs in the order of its commits, whatever becomes of the runners in between.

`FAULT_SEED` repeats what a generated test draws.
"""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import pytest

from actorhub import Cluster, Entity, Hub, current, handler
from actorhub.cluster import part_of
from actorhub.core.clock import SystemClock
from actorhub.engine.model.run import Run
from actorhub.testing import MemoryCluster, until
from tests.durable.entities import Log, owner, read
from tests.support.gates import closed_gates, gates, soon
from tests.support.parts import host_of

__all__ = ["closed_gates"]

SEED: Final = int(os.environ.get("FAULT_SEED", "0")) or random.randrange(1, 1_000_000)
SKEW: Final = 0.5
"""Seconds by which the clocks of two machines differ at most."""

Fault: TypeAlias = Callable[[MemoryCluster, random.Random], Awaitable[None]]


class Crier(Entity[int]):
    """Tells many logs the same."""

    @handler(durable=True)
    async def cry(self, to: list[str], text: str) -> int:
        self.state += 1
        for log in to:
            await current().tell(current().client(Log)(log).add(text))
        return self.state


hub = Hub()
hub.register(Crier)
hub.register(Log)


class SkewedClock(SystemClock):
    """The clock of a machine that is ahead of the database's."""

    def __init__(self, ahead: float) -> None:
        super().__init__()
        self.time = lambda: time.time() + ahead


async def started(memory: MemoryCluster, ahead: float) -> Cluster:
    """Start a runner whose machine's clock is ahead."""
    memory.clock = SkewedClock(ahead)
    return await memory.start_runner()


async def cries(client: Cluster, crier: str, logs: Sequence[str], text: str) -> None:
    """Have a crier tell the logs; its runner may be lost meanwhile."""
    async with asyncio.timeout(20):
        await client.client(Crier)(crier).cry(list(logs), text)


@pytest.mark.parametrize("ahead", [0.0, SKEW, -SKEW])
@pytest.mark.parametrize("sent", [0, 1, 5])
@pytest.mark.parametrize("is_answered", [True, False])
async def test_what_a_killed_runner_did_not_send_is_not_overtaken(
    memory: MemoryCluster, is_answered: bool, sent: int, ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each point between a commit and its last tell, its clock ahead or behind, half of the logs busy."""
    victim = await started(memory, ahead)
    for _ in range(2):
        await started(memory, 0.0)
    await memory.settled()
    client = await memory.client()
    crier = next(name for name in map(str, range(99)) if owner(memory, client, Crier, name) is victim)
    logs = [f"log {number}" for number in range(10)]
    await cries(client, crier, logs, "first")
    for log in logs[::2]:
        await client.tell(client.client(Log)(log).hold())
        await gates[log].came()
    killing: list[asyncio.Task[None]] = []
    scheduler = host_of(victim).scheduler
    send_told = scheduler.send_told

    def send_some_and_die(run: Run) -> None:
        run.outbox = (run.outbox or [])[:sent]
        killing.append(soon(memory.kill(victim)))
        if not is_answered:
            memory.network.drop(memory.name_of(victim))
        send_told(run)

    monkeypatch.setattr(scheduler, "send_told", send_some_and_die)
    for text in ("second", "third", "fourth"):
        await cries(client, crier, logs, text)
    assert len(killing) == 1
    await killing[0]
    for log in logs[::2]:
        gates[log].open()
    for log in logs:
        told = await read(client, log, 5 if log in logs[::2] else 4, deadline=20)
        assert [text for text in told if text != "held"] == ["first", "second", "third", "fourth"]


async def a_runner_comes_or_goes(memory: MemoryCluster, chance: random.Random) -> None:
    """Shards are handed over."""
    if len(memory.runners) < 3 or chance.random() < 0.5:
        await started(memory, chance.uniform(-SKEW, SKEW))
    else:
        await memory.stop(chance.choice(memory.runners))


async def a_runner_is_killed(memory: MemoryCluster, chance: random.Random) -> None:
    """And another one comes."""
    await memory.kill(chance.choice(memory.runners))
    await started(memory, chance.uniform(-SKEW, SKEW))


async def a_session_ends(memory: MemoryCluster, chance: random.Random) -> None:
    """A runner loses all its shards and lives."""
    memory.store.terminate_sessions(part_of(chance.choice(memory.runners)).node.incarnation)


async def a_frame_is_lost(memory: MemoryCluster, chance: random.Random) -> None:
    """And the link between two runners with it."""
    one, other = map(memory.name_of, chance.sample(memory.runners, 2))
    memory.network.lose_next(one, other)


async def a_runner_is_parted_from_another(memory: MemoryCluster, chance: random.Random) -> None:
    """Nothing passes between them for a while, without a sign; then one of them loses its shards."""
    one, other = chance.sample(memory.runners, 2)
    names = memory.name_of(one), memory.name_of(other)
    memory.network.hold(*names)
    memory.network.hold(*reversed(names))
    await asyncio.sleep(chance.uniform(0, 0.05))
    memory.store.terminate_sessions(part_of(one).node.incarnation)
    await asyncio.sleep(chance.uniform(0, 0.2))
    memory.network.release(*names)
    memory.network.release(*reversed(names))


async def shards_are_taken_by_force(memory: MemoryCluster, chance: random.Random) -> None:
    """Without their owner's knowledge."""
    one, other = chance.sample(memory.runners, 2)
    owned = [shard for shard, owners in memory.owners().items() if one in owners]
    assert other.runner is not None
    memory.store.take(owned[:3], other.runner)


FAULTS: Final[Sequence[Fault]] = (
    a_runner_comes_or_goes,
    a_runner_is_killed,
    a_session_ends,
    a_frame_is_lost,
    a_runner_is_parted_from_another,
    shards_are_taken_by_force,
)


def slow_links(memory: MemoryCluster, chance: random.Random) -> None:
    """Let frames take longer on some links than on others, so that what goes another way comes sooner."""
    names = [memory.name_of(runner) for runner in memory.runners]
    for source in names:
        for target in names:
            if source != target:
                memory.network.delay(source, target, seconds=chance.choice((0, 0.001, 0.01, 0.05)))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_what_entities_tell_each_other_stays_in_order(memory: MemoryCluster, fault: Fault) -> None:
    """Through many faults of one kind, with links of different speed, on machines whose clocks differ."""
    chance = random.Random(SEED)
    for _ in range(3):
        await started(memory, chance.uniform(-SKEW, SKEW))
    await memory.settled()
    client = await memory.client()
    criers, logs = [f"crier {number}" for number in range(4)], [f"log {number}" for number in range(8)]
    counts = dict.fromkeys(criers, 0)
    is_over = asyncio.Event()

    async def cry_on(crier: str) -> None:
        while not is_over.is_set():
            await cries(client, crier, logs, f"{crier}: {counts[crier]}")
            counts[crier] += 1

    async with asyncio.TaskGroup() as tasks:
        for crier in criers:
            tasks.create_task(cry_on(crier))
        for _ in range(4):
            slow_links(memory, chance)
            await asyncio.sleep(chance.uniform(0.05, 0.2))
            await fault(memory, chance)
        is_over.set()
    await client.poll_storage()
    for log in logs:
        told = await read(client, log, sum(counts.values()), deadline=30)
        for crier in criers:
            mine = [text for text in told if text.startswith(crier)]
            assert mine == [f"{crier}: {number}" for number in range(counts[crier])], f"FAULT_SEED={SEED}"


async def test_the_ids_of_a_runner_follow_the_store_s_clock(memory: MemoryCluster) -> None:
    """However wrong its own clock is: stored messages run in the order of their ids."""
    runners = [await started(memory, ahead) for ahead in (3600.0, 0.0, -3600.0)]
    await until(lambda: all(abs(one.snowflake().parts().timestamp.timestamp() - time.time()) < 2 for one in runners))
