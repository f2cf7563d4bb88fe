"""Real processes, gRPC and Postgres, with proxies on each way between them that are cut, or swallow everything."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Literal

import pytest

from actorhub import ActorhubError, Cluster
from tests.faults.cluster.processes import ClusterProcesses, RunnerProcess, until
from tests.faults.registers.hub import Register, Relay, hub

numbers = itertools.count(1)


async def _id_on(
    processes: ClusterProcesses, cluster: Cluster, entity: type[Register | Relay], where: RunnerProcess
) -> str:
    """Return an id of an entity that lives on that runner."""
    for name in (f"e{number}" for number in range(1000)):
        if await processes.owner(str(cluster.shard_of(entity, name))) is where:
            return name
    raise AssertionError(f"{where.name} owns nothing")


async def _until_served(call: Callable[[], Awaitable[object]]) -> float:
    """Repeat a call until it succeeds; return how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(30):
        while True:
            try:
                await call()
            except ActorhubError:
                await asyncio.sleep(0.02)
            else:
                return time.monotonic() - began


@pytest.mark.parametrize("how", ["cut", "black hole"])
async def test_runners_that_are_cut_off_from_each_other_call_through_the_third(
    processes: ClusterProcesses, how: Literal["cut", "black hole"]
) -> None:
    """Handlers of one go on calling entities of the other; both log it, once, and when it is over."""
    await processes.start()
    await processes.balanced()
    one, two, three = processes.runners
    async with hub.connect(gateway=[three.front.address]) as cluster:
        relay = cluster.client(Relay).options(timeout=timedelta(seconds=5))(
            await _id_on(processes, cluster, Relay, one)
        )
        key = await _id_on(processes, cluster, Register, two)
        await relay.forward(key, next(numbers), 0)
        if how == "cut":
            processes.cut(one, two)
        else:
            processes.black_hole(one, two)
        took = await _until_served(lambda: relay.forward(key, next(numbers), 0))
        print(f"after a {how}, the first answer took {took:.2f} s")
        served = time.monotonic()
        while time.monotonic() - served < 3:
            await relay.forward(key, next(numbers), 0)
        text = "has not been reached for"
        await until(lambda: all(text in runner.log for runner in (one, two)), "both say so", 15)
        for runner in (one, two):
            [line] = [line for line in runner.log.splitlines() if text in line]
            assert f"calls go to it through the runner at {three.front.address}" in line
        processes.heal()
        over = "is reached again, after"
        await until(lambda: all(over in runner.log for runner in (one, two)), "both say that it is over", 15)
        await relay.forward(key, next(numbers), 0)
    assert text not in three.log


@pytest.fixture
async def hidden(processes: ClusterProcesses) -> RunnerProcess:
    """A runner of three that advertises an address where nobody finds it."""
    one, two, three = processes.runners
    await processes.start(one, three)
    two.front.cut()
    await processes.start(two)
    await processes.balanced()
    return two


async def test_clients_call_a_runner_with_a_wrong_address_through_others(
    processes: ClusterProcesses, hidden: RunnerProcess
) -> None:
    """It has opened links to the other runners itself, so they pass calls on."""
    one, _, three = processes.runners
    async with hub.connect(gateway=[one.front.address, three.front.address]) as cluster:
        key = await _id_on(processes, cluster, Register, hidden)
        register = cluster.client(Register).options(timeout=timedelta(seconds=5))(key)
        assert await register.apply(next(numbers), 0) == 1
        health = {found.runner: found for found in await cluster.health()}
        assert health[hidden.front.address].serving
        assert health[hidden.front.address].via in (one.front.address, three.front.address)
        relay = await _id_on(processes, cluster, Relay, hidden)
        other = await _id_on(processes, cluster, Register, one)
        assert await cluster.client(Relay)(relay).forward(other, next(numbers), 0) == 1
