"""What concerns all runners at once: restarts of everything, and values on which all must agree."""

import asyncio
import random
import time

from tests.faults.cluster.processes import ClusterProcesses, until
from tests.faults.registers.clients import explained, recorded_clients
from tests.faults.registers.history import violations
from tests.faults.registers.hub import hub


async def test_clients_survive_a_restart_of_the_whole_cluster(processes: ClusterProcesses) -> None:
    """Calls during an outage of all runners fail honestly or succeed after it, and clients find the new runners."""
    await processes.start()
    async with (
        hub.connect(gateway=processes.gateways) as cluster,
        recorded_clients(cluster, 12, random.Random(1)) as clients,
    ):
        await clients.all_served(0.0, 10)
        for one in processes.runners:
            one.kill()
        down = time.monotonic()
        await until(lambda: time.monotonic() - down > 1.5, "calls meet the outage")
        await processes.start(processes.runners[1])
        took = await clients.all_served(time.monotonic(), 10)
        print(f"one runner serves everything {took:.2f} s after it was ready")
        await processes.start(processes.runners[0], processes.runners[2])
        await processes.balanced()
        await clients.all_served(time.monotonic(), 10)
    found = violations(clients.history, await processes.stored(), processes.starts())
    assert found == [], explained(found)
    outcomes = {one.outcome for one in clients.history.operations if one.invoked > down}
    assert "ok" in outcomes
    assert "pending" not in outcomes


async def test_clients_survive_a_restart_of_everything_with_postgres(processes: ClusterProcesses) -> None:
    """Nothing acknowledged is lost when all runners and Postgres crash together."""
    await processes.start()
    async with (
        hub.connect(gateway=processes.gateways) as cluster,
        recorded_clients(cluster, 12, random.Random(2)) as clients,
    ):
        await clients.all_served(0.0, 10)
        await processes.postgres.stop("immediate")
        for one in processes.runners:
            one.kill()
        await processes.postgres.start()
        await processes.start()
        await clients.all_served(time.monotonic(), 10)
    found = violations(clients.history, await processes.stored(), processes.starts())
    assert found == [], explained(found)


async def test_a_graceful_restart_of_one_runner_after_the_other_is_seen_by_nobody(processes: ClusterProcesses) -> None:
    """While every runner in turn leaves and comes back, no call fails."""
    await processes.start()
    await processes.balanced()
    async with (
        hub.connect(gateway=processes.gateways) as cluster,
        # On a busy machine the start of a process, which gets shards before it has answered a call, takes a second.
        recorded_clients(cluster, 12, random.Random(3), timeouts=[15.0]) as clients,
    ):
        began = time.monotonic()
        for one in processes.runners:
            one.terminate()
            assert await one.gone() == 0, one.log[-3000:]
            await processes.start(one)
            await processes.balanced()
        await clients.all_served(time.monotonic(), 10)
        print(f"longest stall {clients.history.stall(began):.3f} s, {dict(clients.history.counts())}")
    failed = [f"{one.key}/{one.number} {one.error}" for one in clients.history.operations if one.outcome != "ok"]
    assert failed == []
    found = violations(clients.history, await processes.stored(), processes.starts())
    assert found == [], explained(found)


async def test_a_runner_with_another_number_of_shards_refuses_to_start(processes: ClusterProcesses) -> None:
    """The second runner names the value that differs and ends, and the first one serves on."""
    first, second, _ = processes.runners
    await processes.start(first)
    processes.spawn(second, shards_per_group=200)
    assert await second.gone() not in {0, None}
    assert "ConfigurationError" in second.log
    assert "shards_per_group" in second.log
    assert "300" in second.log
    async with (
        hub.connect(gateway=[first.front.address]) as cluster,
        asyncio.timeout(10),
        recorded_clients(cluster, 2, random.Random(4)) as clients,
    ):
        await clients.all_served(time.monotonic(), 5)
