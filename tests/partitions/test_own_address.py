"""A runner that others cannot connect to at the address that it advertises says so."""

import asyncio
import logging

import pytest

from actorhub import Cluster
from actorhub.engine.anycast import own_address
from actorhub.testing import MemoryCluster, until
from tests.faults.cluster.processes import ClusterProcesses
from tests.faults.cluster.processes import until as until_processes
from tests.partitions.entities import Desk, hub
from tests.support.parts import runner_of

__all__ = ["hub"]


@pytest.fixture(autouse=True)
def soon_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers are linked at once here, and nobody waits for a mended network."""
    monkeypatch.setattr(own_address, "_SECOND_CHECK", 0.3)
    monkeypatch.setattr(own_address, "_WHILE_WRONG", 0.2)


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "that it advertises" in record.getMessage()]


def _address(cluster: Cluster) -> str:
    return runner_of(cluster).address.address


async def test_a_runner_that_is_reached_says_nothing(memory: MemoryCluster, caplog: pytest.LogCaptureFixture) -> None:
    """Alone and with others, it finds that it can be connected to, and no call notices the attempts."""
    caplog.set_level(logging.INFO)
    runners = [await memory.start_runner() for _ in range(3)]
    client = await memory.client()
    await memory.settled()
    async with asyncio.timeout(10):
        while any("own address" in task.get_name() for task in asyncio.all_tasks()):
            await client.client(Desk)("ada").note(1)
    assert [runner_of(runner).health().address_problem for runner in runners] == [""] * 3
    assert _said(caplog) == []


async def test_a_runner_that_no_peer_reaches_says_so_until_one_does(
    memory: MemoryCluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has opened links to the others itself, and asks them."""
    monkeypatch.setattr(own_address, "_SECOND_CHECK", 2.0)
    one, two = await memory.start_runner(), await memory.start_runner()
    await memory.settled()
    hidden = "127.0.0.1:3"
    three = await memory.start_runner()
    await memory.settled()
    listening = memory.network.listeners.pop(hidden)
    await until(lambda: runner_of(three).health().address_problem != "")
    problem = runner_of(three).health().address_problem
    assert problem.startswith(f"no other runner reaches this one at {hidden}, the address that it advertises: ")
    assert any(f"{_address(each)} says: nobody listens at {hidden}" in problem for each in (one, two))
    assert (await three.health())[0].serving
    [line] = _said(caplog)
    assert line.startswith(problem)
    assert "set --advertise to an address of this runner that other machines can connect to" in line
    memory.network.listeners[hidden] = listening
    await until(lambda: runner_of(three).health().address_problem == "")
    assert "this runner is reached now at the address that it advertises" in _said(caplog)


async def test_real_runners_say_that_their_address_is_wrong(processes: ClusterProcesses) -> None:
    """An address at which a proxy resets every connection is found out at start, by those that the runner asks."""
    one, two, _ = processes.runners
    await processes.start(one)
    await until_processes(lambda: one.lives, "the first one serves")
    two.front.cut()
    await processes.start(two)
    await until_processes(lambda: "that it advertises" in two.log, "the second one says it", 20)
    [line] = [line for line in two.log.splitlines() if "that it advertises" in line]
    assert f"no other runner reaches this one at {two.front.address}" in line or "cannot be reached at" in line
    assert "set --advertise" in line
    assert "that it advertises" not in one.log
