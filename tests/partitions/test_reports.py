"""A cut between two healthy processes is said: in the log, in health, in metrics, and in the errors of calls."""

import logging
from datetime import timedelta

import pytest

from actorhub import Cluster, EntityNotAssigned
from actorhub.cluster import part_of
from actorhub.core.config import Settings
from actorhub.engine.routing import unreached
from actorhub.ops.metrics import FAMILIES
from actorhub.ops.page import page
from actorhub.ops.reading import read
from actorhub.testing import MemoryCluster, until
from tests.partitions.entities import Desk, Ledger, hub
from tests.support.gates import failure, outcomes
from tests.support.parts import runner_of

__all__ = ["hub"]


@pytest.fixture
def soon_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody dies here, so there is no need to wait until the dead have left the table."""
    monkeypatch.setattr(unreached, "REPORT_AFTER", 0.3)


def _address(cluster: Cluster) -> str:
    return runner_of(cluster).address.address


def _ids(owner: Cluster) -> list[str]:
    return [name for name in (f"e{n}" for n in range(400)) if owner.is_local(Desk, name)]


async def _reported(cluster: Cluster) -> None:
    await until(lambda: runner_of(cluster).health().unreached != ())


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "reached" in record.getMessage()]


def _metric(runner: Cluster, name: str) -> dict[tuple[str, ...], float]:
    family = next(family for family in FAMILIES if family.name == name)
    return {sample.labels: sample.value for sample in family.samples(read(runner_of(runner)))}


@pytest.mark.usefixtures("soon_reported")
async def test_a_runner_says_which_peer_it_does_not_reach(
    memory: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Both sides name the other one, once, with the way that calls take instead; and say when it is over."""
    one, two, three = [await memory.start_runner() for _ in range(3)]
    await memory.settled()
    memory.cut(one, two)
    for here, there in ((one, two), (two, one)):
        await _reported(here)
        [found] = (await here.health())[0].unreached
        assert (found.address, found.via) == (_address(there), _address(three))
        assert found.incarnation == runner_of(there).address.incarnation
        assert found.reason == f"the runner at {_address(there)} cannot be reached"
        assert 0 <= memory.clock.time() - found.since < 10
        assert (await here.health())[0].serving
        assert _metric(here, "actorhub_unreached_runners") == {("through others",): 1, ("not at all",): 0}
        assert _metric(here, "actorhub_unreached_seconds")[()] > 0
        assert _metric(here, "actorhub_relayed_links") == {(): 1}
        assert f"go through {_address(three)}" in page(runner_of(here).health(), read(runner_of(here)))
    assert _metric(three, "actorhub_carried_links") == {(): 1}
    assert runner_of(three).health().unreached == ()
    said = sorted(_said(caplog))
    assert len(said) == 2
    for line, address in zip(said, sorted([_address(one), _address(two)]), strict=True):
        assert line.startswith(f"the runner at {address} has not been reached for ")
        assert line.endswith(f"cannot be reached): calls go to it through the runner at {_address(three)}")
    memory.heal(one, two)
    await until(lambda: not any(runner_of(each).health().unreached for each in (one, two)))
    over = [line for line in _said(caplog) if "is reached again, after" in line]
    assert len(over) == 2
    assert len(_said(caplog)) == 4


@pytest.mark.usefixtures("soon_reported")
async def test_where_nobody_reaches_both_calls_wait_and_their_errors_say_why(
    memory: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """No text says that a shard has no owner while it has one."""
    one, two = await memory.start_runner(), await memory.start_runner()
    await memory.settled()
    far = _ids(two)[0]
    memory.cut(one, two)
    await until(lambda: runner_of(one).health().unreached != ())
    [found] = runner_of(one).health().unreached
    assert (found.address, found.via) == (_address(two), "")
    assert _metric(one, "actorhub_unreached_runners") == {("through others",): 0, ("not at all",): 1}
    error = await failure(one.client(Desk).options(timeout=timedelta(milliseconds=100))(far).note(1))
    assert isinstance(error, EntityNotAssigned)
    assert not error.possibly_executed
    assert "no runner owned" not in str(error)
    assert f"the owner of its shard {one.shard_of(Desk, far)} was not reached before the deadline" in str(error)
    assert f"{_address(two)} for " in str(error)
    assert any("no other runner passes calls on to it either" in line for line in _said(caplog))
    # Durable tells are accepted nevertheless, and found by the owner.
    message_id = await one.tell(one.client(Ledger)(far).enter(1))
    await two.poll_storage()
    assert await two.reply(message_id) == 1
    memory.heal(one, two)
    assert await one.client(Desk)(far).note(1) == 1


@pytest.mark.usefixtures("soon_reported")
async def test_a_client_says_which_runners_it_does_not_reach(
    memory: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Its health report has a line for each runner: those around which it goes, and those that it misses."""
    runners = [await memory.start_runner() for _ in range(3)]
    one, two, three = runners
    client = await memory.client()
    await memory.settled()
    memory.cut(client, two)
    await until(lambda: len(part_of(client).node.connector.unreached.reported()) == 1)
    health = {found.runner: found for found in await client.health()}
    assert health.keys() == {_address(runner) for runner in runners}
    assert health[_address(two)].serving
    assert health[_address(two)].via in (_address(one), _address(three))
    assert health[_address(one)].via == ""
    # Now nobody reaches it.
    memory.cut(one, two)
    memory.cut(three, two)
    await until(lambda: part_of(client).node.connector.unreached.reported()[0].via == "")
    found = {found.runner: found for found in await client.health()}[_address(two)]
    assert not found.serving
    assert found.reason.startswith("this client has not reached it since 2")
    error = await failure(client.client(Desk).options(timeout=timedelta(milliseconds=100))(_ids(two)[0]).note(1))
    assert isinstance(error, EntityNotAssigned)
    assert "as far as runners were reached, but for" in str(error)
    assert _address(two) in str(error)
    assert any(_address(two) in line for line in _said(caplog))


async def test_a_runner_that_dies_is_not_reported_as_cut_off(
    memory: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Links to it cannot be opened either, but it has left the cluster by the time that would be said."""
    caplog.set_level(logging.INFO)
    one, two = await memory.start_runner(), await memory.start_runner()
    client = await memory.client()
    await memory.settled()
    address = _address(two)
    await memory.kill(two)
    await until(lambda: all(address not in part_of(each).node.connector._wanted for each in (one, client)), deadline=20)
    assert _said(caplog) == []


async def test_two_runners_that_are_cut_off_do_not_keep_trying_each_others_locks(
    memory: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """A suspicion ends with the heartbeats of the suspect, and later attempts to connect begin no other one."""
    caplog.set_level(logging.DEBUG)
    one, two = await memory.start_runner(), await memory.start_runner()
    await memory.settled()
    memory.cut(one, two)
    await until(lambda: all(runner_of(each).ownership.statistics().suspects == 1 for each in (one, two)))
    await until(lambda: all(runner_of(each).ownership.statistics().suspects == 0 for each in (one, two)))
    caplog.clear()
    await until(lambda: len([record for record in caplog.records if record.getMessage().startswith("no link")]) > 4)
    assert runner_of(one).ownership.statistics().suspects == runner_of(two).ownership.statistics().suspects == 0


async def test_health_names_nobody_while_all_reach_all(memory: MemoryCluster) -> None:
    """A first refusal while a peer starts, or a link that is opened twice, is not worth a word."""
    memory.settings = Settings(shards_per_group=16, grace=timedelta(seconds=2))
    runners = [await memory.start_runner() for _ in range(4)]
    client = await memory.client()
    await memory.settled()
    assert [runner_of(runner).health().unreached for runner in runners] == [()] * 4
    assert [found.via for found in await client.health()] == [""] * 4
    assert all(
        isinstance(one, int) for one in await outcomes(*(client.client(Desk)(f"e{n}").note(1) for n in range(9)))
    )
