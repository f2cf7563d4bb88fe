"""A runner that stops, blocks, or loses its store must not act as an owner."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

from actorhub.core.errors import ActorhubError
from tests.faults.cluster.processes import LOCK, WORK, ClusterProcesses, RunnerProcess, until
from tests.faults.registers.hub import Register, Relay, hub


async def owner_of(processes: ClusterProcesses, key: str, shard: str) -> RunnerProcess:
    owner = await processes.owner(shard)
    assert owner is not None, f"nobody owns {shard} of {key}"
    return owner


async def outcome_of(call: Awaitable[int]) -> ActorhubError | int:
    """Return what a call ended with."""
    try:
        return await call
    except ActorhubError as error:
        return error


async def insist(make: Callable[[], Awaitable[int]], deadline: float) -> int:
    """Repeat a call that fails without having been executed, or whose first handler never commits."""
    began = time.monotonic()
    while True:
        try:
            return await make()
        except ActorhubError:
            if time.monotonic() - began > deadline:
                raise
            await asyncio.sleep(0.02)


async def test_a_frozen_runner_loses_its_shards_and_cannot_commit(processes: ClusterProcesses) -> None:
    """A handler that was under way in a stopped runner is refused its commit, and its late reply is not taken."""
    await processes.start()
    await processes.balanced()
    async with hub.connect(gateway=processes.gateways) as cluster, asyncio.TaskGroup() as tasks:
        register = cluster.client(Register)
        assert await register("ada").apply(1, 0) == 1
        victim = await owner_of(processes, "ada", str(cluster.shard_of(Register, "ada")))

        underway = tasks.create_task(outcome_of(register("ada").apply(2, 800)))
        await until(lambda: any(start.number == 2 for start in processes.starts()), "the handler runs")
        victim.freeze()
        frozen = time.monotonic()
        assert await insist(lambda: register("ada").apply(3, 0), 10) == 2
        print(f"takeover after SIGSTOP: {time.monotonic() - frozen:.2f} s")
        assert time.monotonic() - frozen < 8
        victim.thaw()
        outcome = await underway
        assert isinstance(outcome, ActorhubError)
        assert outcome.possibly_executed
        await processes.balanced()
        assert [one.number for one in await register("ada").applied()] == [1, 3]
    assert (await processes.stored())["ada"].numbers == [1, 3]


async def test_a_commit_that_a_frozen_runner_sent_is_refused(processes: ClusterProcesses) -> None:
    """What was on its way to Postgres when a runner stopped arrives after the takeover and changes nothing."""
    await processes.start()
    await processes.balanced()
    async with hub.connect(gateway=processes.gateways) as cluster, asyncio.TaskGroup() as tasks:
        register = cluster.client(Register)
        await register("ada").apply(1, 0)
        victim = await owner_of(processes, "ada", str(cluster.shard_of(Register, "ada")))
        victim.store.black_hole(WORK)
        underway = tasks.create_task(outcome_of(register("ada").apply(2, 0)))
        await until(lambda: any(start.number == 2 for start in processes.starts()), "the handler runs")
        await until(lambda: victim.store.held_bytes > 0, "its commit is on the way")
        victim.freeze()
        assert await insist(lambda: register("ada").apply(3, 0), 10) == 2
        victim.store.heal(WORK)
        victim.thaw()
        error = await underway
        assert isinstance(error, ActorhubError)
        assert error.possibly_executed
        await processes.balanced()
        assert (await victim.statistics())["refused_commits"] >= 1
        assert "commit refused" in victim.log
        assert [one.number for one in await register("ada").applied()] == [1, 3]
    stored = (await processes.stored())["ada"]
    assert (stored.version, stored.numbers) == (2, [1, 3])


async def test_a_runner_that_cannot_reach_its_lock_session_fences_itself(processes: ClusterProcesses) -> None:
    """Once nothing passes to its lock session, a runner starts no handler after its lease, and others take over."""
    await processes.start()
    await processes.balanced()
    async with hub.connect(gateway=processes.gateways) as cluster:
        register = cluster.client(Register)
        keys = [f"k{number}" for number in range(60)]
        for key in keys:
            await register(key).apply(1, 0)
        victim = processes.runners[0]
        stem = f"{victim.name}.{victim.generation}"
        victim.store.black_hole(LOCK)
        cut = time.monotonic()
        number = 1
        while time.monotonic() - cut < 6:
            number += 1
            for key in keys[:20]:
                await outcome_of(register(key).apply(number, 0))
        mine = [start.time - cut for start in processes.starts() if start.process == stem and start.time > cut]
        print(f"last handler of the victim {max(mine, default=0.0):.2f} s after its lock session was cut")
        assert max(mine, default=0.0) < 2.5 + 0.3
        served = time.monotonic()
        for key in keys:
            await register(key).apply(1_000_000, 0)
        assert time.monotonic() - served < 2
        processes.heal()
        await processes.balanced()
        assert (await victim.statistics())["sessions_opened"] >= 2


async def test_a_handler_that_blocks_the_event_loop_loses_its_shard(processes: ClusterProcesses) -> None:
    """While a handler computes for six seconds its shard moves; what it then commits is refused."""
    await processes.start()
    await processes.balanced()
    async with hub.connect(gateway=processes.gateways) as cluster, asyncio.TaskGroup() as tasks:
        register = cluster.client(Register)
        await register("ada").apply(1, 0)
        victim = await owner_of(processes, "ada", str(cluster.shard_of(Register, "ada")))

        underway = tasks.create_task(outcome_of(register("ada").apply(2, 0, 6000)))
        await until(lambda: any(start.number == 2 for start in processes.starts()), "the handler runs")
        began = time.monotonic()
        assert await insist(lambda: register("ada").apply(3, 0), 10) == 2
        took = time.monotonic() - began
        print(f"takeover after a blocked event loop: {took:.2f} s")
        assert took < 5.9
        outcome = await underway
        assert isinstance(outcome, ActorhubError)
        assert outcome.possibly_executed
        assert (await victim.statistics())["refused_commits"] >= 1
        await processes.balanced()
        assert [one.number for one in await register("ada").applied()] == [1, 3]
    assert (await processes.stored())["ada"].numbers == [1, 3]


async def test_calls_between_entities_survive_a_stale_lease(processes: ClusterProcesses) -> None:
    """What waits in a runner whose lease ran out while its event loop was blocked is done once it owns again."""
    runner = processes.runners[0]
    await processes.start(runner)
    async with hub.connect(gateway=processes.gateways) as cluster:
        keys = [f"k{number}" for number in range(8)]
        for key in keys:
            await cluster.client(Register)(key).apply(1, 0)
        patient = cluster.client(Relay).options(timeout=timedelta(seconds=20))
        began = time.monotonic()
        error = await outcome_of(patient("all").forward_many(keys, 2, 3000))
        assert isinstance(error, ActorhubError)
        assert error.possibly_executed
        assert await insist(lambda: cluster.client(Register)("k0").apply(100, 0), 10) >= 2
        assert time.monotonic() - began < 10
        assert (await runner.statistics())["self_fenced"] == 1
