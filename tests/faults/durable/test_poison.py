"""Messages that kill the process of their runner."""

import asyncio
import random
from collections import Counter

from tests.faults.cluster.processes import ClusterProcesses, until
from tests.faults.durable.checks import durable_violations, explained_violations
from tests.faults.durable.clients import DurableClients
from tests.faults.durable.history import read_runs
from tests.faults.durable.hub import POISON_RUNS, hub
from tests.faults.durable.records import read_book, settled


async def respawn(processes: ClusterProcesses, deaths: int) -> None:
    """Wait until that many processes have died, starting each again."""
    for _ in range(deaths):
        await until(lambda: any(not one.lives for one in processes.runners), "a runner is killed by its message")
        dead = next(one for one in processes.runners if not one.lives)
        processes.spawn(dead)
        await dead.ready()


async def test_a_message_that_kills_its_runner_becomes_a_dead_letter(durable_processes: ClusterProcesses) -> None:
    """It runs exactly as often as it may, and the messages before, beside and behind it are done."""
    processes = durable_processes
    await processes.start()
    await processes.balanced()  # a run that is counted, and moves before it starts, is one less that kills
    async with hub.connect(gateway=processes.gateways) as cluster, asyncio.timeout(60):
        clients = DurableClients(cluster, 3, random.Random(1))
        await clients.tell("e0", clients.order("ann", "e0"))
        async with asyncio.TaskGroup() as tasks:
            # From the start: it may kill all three before the last tell has found one of them.
            tasks.create_task(respawn(processes, POISON_RUNS))
            poison = await clients.tell("e0", clients.order("ann", "e0"), "poison")
            poison.attempts = POISON_RUNS
            for entity in ("e0", "e0", "e1", "e2"):
                await clients.tell(entity, clients.order("ann", entity, is_witnessed=True))
        await settled(processes, 15)
        await clients.all_replies()
        book = await read_book(processes, clients.sent)
    found = durable_violations(book)
    assert found == [], explained_violations(found)
    assert Counter(row.state for row in book.rows) == {"done": 5, "dead": 1}
    attempts = [run.attempt for run in read_runs(processes.events()) if run.content == poison.content]
    assert attempts == list(range(1, POISON_RUNS + 1))
    letters = await processes.fetch("select message_id, attempts from actorhub.dead_letters")
    assert [tuple(row) for row in letters] == [(poison.message_id, POISON_RUNS)]
