"""Stories of durable messages that need real processes and a real Postgres."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TypeAlias

from actorhub.cluster import Cluster
from tests.faults.cluster.processes import OTHER, WORK, ClusterProcesses, RunnerProcess, until
from tests.faults.durable.clients import DurableClients
from tests.faults.durable.history import Book, read_runs
from tests.faults.durable.hub import Book as Books
from tests.faults.durable.hub import Order, hub
from tests.faults.durable.records import read_book, settled

ProcessScenario: TypeAlias = Callable[[ClusterProcesses], Awaitable[Book]]


async def a_commit_that_arrives_after_the_takeover(processes: ClusterProcesses) -> Book:
    """A runner stops with a commit under way, which reaches Postgres while the next owner runs the message again."""
    async with _pair(processes) as (cluster, clients):
        victim = await _owner(processes, cluster)
        order = clients.order("ann", "e0", holds_ms=(600, 800))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(clients.ask("e0", order, timeout=10.0))
            await _commit_is_held(processes, victim, order)
            victim.freeze()
            await processes.end_sessions(f"actorhub lock {victim.incarnation}")
            await _ran(processes, order, 2)
            victim.store.heal(WORK)
            victim.store.heal(OTHER)
        return await _ended(processes, clients)


async def a_commit_that_never_arrives(processes: ClusterProcesses) -> Book:
    """A runner dies with a commit under way, and the next owner runs the message again."""
    async with _pair(processes) as (cluster, clients):
        victim = await _owner(processes, cluster)
        order = clients.order("ann", "e0", holds_ms=(600,))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(clients.ask("e0", order, timeout=10.0))
            await _commit_is_held(processes, victim, order)
            victim.kill()
            await _ran(processes, order, 2)
        return await _ended(processes, clients)


async def a_teller_that_dies(processes: ClusterProcesses) -> Book:
    """A runner dies with what it has told committed and not sent; the teller goes on elsewhere."""
    return await _stopped_teller(processes, "die", lambda victim: not victim.lives)


async def a_teller_that_freezes(processes: ClusterProcesses) -> Book:
    """A runner freezes at the same point, and sends what it has told when the next owner has told more."""
    return await _stopped_teller(processes, "freeze", lambda victim: victim.is_stopped)


async def _stopped_teller(processes: ClusterProcesses, how: str, is_stopped: Callable[[RunnerProcess], bool]) -> Book:
    await processes.start()
    await processes.balanced()
    async with hub.connect(gateway=processes.gateways) as cluster:
        clients = DurableClients(cluster, 20, random.Random(1))
        victim = await _owner(processes, cluster)
        places = {each: await processes.owner(str(cluster.shard_of(Books, each))) for each in clients.entities}
        target = next(each for each, place in places.items() if place is not victim)

        async def ask(handler: str = "apply") -> None:
            sent = await clients.ask("e0", clients.order("ann", "e0", target=target), handler, timeout=20.0)
            assert sent.outcome == "ok", sent

        await ask()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask(how))
            await until(lambda: is_stopped(victim), "the teller's runner has stopped", 10)
        for _ in range(3):
            await ask()
        victim.thaw()
        await ask()
        await cluster.poll_storage()
        return await _ended(processes, clients)


@asynccontextmanager
async def _pair(processes: ClusterProcesses) -> AsyncGenerator[tuple[Cluster, DurableClients], None]:
    """Run two runners and a client that got an answer."""
    await processes.start(*processes.runners[:2])
    await processes.balanced()
    async with hub.connect(gateway=processes.gateways[:2]) as cluster:
        clients = DurableClients(cluster, 1, random.Random(1))
        await clients.ask("e0", clients.order("ann", "e0"), timeout=10.0)
        yield cluster, clients


async def _owner(processes: ClusterProcesses, cluster: Cluster) -> RunnerProcess:
    owner = await processes.owner(str(cluster.shard_of(Books, "e0")))
    assert owner is not None
    return owner


async def _ran(processes: ClusterProcesses, order: Order, times: int) -> None:
    def count() -> int:
        return sum(run.content == order.content for run in read_runs(processes.events()))

    await until(lambda: count() >= times, f"message {order.content} ran {times} times", 10)


async def _commit_is_held(processes: ClusterProcesses, victim: RunnerProcess, order: Order) -> None:
    """Wait until the message's handler is done and its commit is on a way that is blocked."""
    await _ran(processes, order, 1)
    before = victim.store.held_bytes
    victim.store.black_hole(WORK)
    victim.store.black_hole(OTHER)
    await until(lambda: victim.store.held_bytes > before, "its commit is on the way", 10)


async def _ended(processes: ClusterProcesses, clients: DurableClients) -> Book:
    await settled(processes, 3)
    await clients.all_replies(timedelta(seconds=1))
    return await read_book(processes, clients.sent)
