"""A leader whose lock session ends unheard lets go when the next owner asks it, before that one leads."""

import asyncio
from datetime import timedelta

import pytest

from actorhub import Cluster, Hub
from actorhub.core.address import ShardOwner
from actorhub.engine.anycast.letting_go import FormerOwnerRequests
from actorhub.engine.ownership import former_owners, loop, session
from actorhub.storage.memory import session as memory_session
from actorhub.testing import MemoryCluster, until
from tests.singletons.diary import Diary, at_gate, for_ever, is_leading, story
from tests.support.gates import gates
from tests.support.parts import runner_of

hub = Hub()
hub.register(Diary)

BEGINNING = ["on_activate", "on_become_leader", "run"]
END = ["run cancelled", "on_lose_leadership"]
LIGHT, HEAVY = 0.001, 1000.0
"""Weights of a runner that gives all its shards away, and of one that gets them."""


@pytest.fixture(autouse=True)
def new_story() -> None:
    story.clear()
    story.act["run"] = for_ever


async def a_leader_that_lost_its_session_unheard(memory: MemoryCluster) -> Cluster:
    leader = await memory.start_runner(weight=LIGHT)
    await until(lambda: story.log == BEGINNING, "run")
    end_unheard(memory, leader)
    return leader


def end_unheard(memory: MemoryCluster, runner: Cluster) -> None:
    incarnation = runner_of(runner).node.incarnation
    memory.store.freeze_sessions(incarnation)
    memory.store.terminate_sessions(incarnation)


@pytest.fixture
def unaware(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no lease end, and no wait for one, so that a runner lets go only if it is asked."""
    for module, name in ((loop, "_LEASE"), (session, "OPERATION_DEADLINE"), (former_owners, "LEASE_IS_OVER")):
        monkeypatch.setattr(module, name, 60.0)
    monkeypatch.setattr(memory_session, "OPERATION_LIMIT", timedelta(minutes=1))


async def test_the_next_leader_begins_after_the_one_that_was_asked_has_ended(
    memory: MemoryCluster, unaware: None
) -> None:
    """However long its hooks take, though by the store it owned the shard no longer."""
    leader = await a_leader_that_lost_its_session_unheard(memory)
    story.act["on_lose_leadership"] = at_gate("losing")
    async with asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(memory.start_runner(weight=HEAVY))
        await gates["losing"].came()
        await asyncio.sleep(0.1)
        assert story.ran["on_activate"] == 1
        gates["losing"].open()
    await until(lambda: story.ran["run"] == 2, "the next one leads")
    assert is_leading(starting.result())
    assert story.log == [*BEGINNING, *END, *BEGINNING]
    assert story.most_alive == 1
    memory.store.thaw_sessions(runner_of(leader).node.incarnation)  # A heartbeat may wait there.
    await until(lambda: runner_of(leader).ownership.statistics().sessions_opened == 2, "it has a new session")


async def test_the_next_leader_begins_after_the_one_that_let_go_by_itself_has_ended(
    memory: MemoryCluster, unaware: None
) -> None:
    """Whoever lost everything a moment ago answers that it acts for nothing once its hooks have run."""
    leader = await a_leader_that_lost_its_session_unheard(memory)
    story.act["on_lose_leadership"] = at_gate("losing")
    runner_of(leader).ownership.let_everything_go("it is tested")
    await gates["losing"].came()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(memory.start_runner(weight=HEAVY))
        await asyncio.sleep(0.2)
        assert story.ran["on_activate"] == 1
        gates["losing"].open()
    await until(lambda: story.ran["run"] == 2, "the next one leads")
    assert story.log == [*BEGINNING, *END, *BEGINNING]


async def test_the_next_leader_waits_for_a_lease_where_it_cannot_ask(memory: MemoryCluster) -> None:
    """The former one ends by itself, when its lease does."""
    leader = await a_leader_that_lost_its_session_unheard(memory)
    memory.network.cut(memory.name_of(leader), "127.0.0.1:2")
    next_one = await memory.start_runner(weight=HEAVY)
    assert memory.name_of(next_one) == "127.0.0.1:2"
    await until(lambda: story.ran["run"] == 2, "the next one leads")
    assert is_leading(next_one)
    assert story.log == [*BEGINNING, *END, *BEGINNING]
    assert story.most_alive == 1


async def test_an_address_that_never_led_to_a_runner_does_not_prove_it_dead(memory: MemoryCluster) -> None:
    """A runner that advertises what nobody listens at lives, and its links work where it opened them."""
    leader = await memory.start_runner()
    other = await memory.start_runner()
    await memory.settled()
    asking = FormerOwnerRequests(runner_of(other).node)
    owner = runner_of(leader).info.runner
    peer = runner_of(other).node.peers.by_runner(owner)
    assert peer is not None
    listener = memory.network.listeners.pop(owner.address)
    await asking.check_address(peer)
    memory.cut(leader, other)
    memory.heal(leader, other)
    tenures: list[ShardOwner] = []
    runner_of(other).node.peers.remove(peer)
    assert not await asking.has_let_go(owner, tenures, 0.2)
    assert await FormerOwnerRequests(runner_of(other).node).has_let_go(owner, tenures, 0.2)
    memory.network.listeners[owner.address] = listener
    assert not await FormerOwnerRequests(runner_of(other).node).has_let_go(owner, tenures, 0.2)
