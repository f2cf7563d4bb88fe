"""Entities that wait for each other: seen at once along a chain of calls, and named when a deadline ends the wait."""

import asyncio
from datetime import timedelta

import pytest

from actorhub import CallCycle, CallTimeout, Cluster, Entity, HandlerFailed, Hub, Retry, current, handler
from actorhub.testing import until
from tests.support.gates import failure, gates, outcomes, soon
from tests.support.parts import host_of

PATIENCE = timedelta(seconds=20)


class Left(Entity):
    """Needs the right one to come into being."""

    async def on_activate(self) -> None:
        gates["left"].log.append("made")
        await current().client(Right)(current().entity_id).ping()

    async def ping(self) -> str:
        return "left"

    @handler(reentrant=True)
    async def ping_within(self) -> str:
        return "left"


class Right(Entity):
    """Needs the left one to come into being."""

    async def on_activate(self) -> None:
        gates["right"].log.append("made")
        left = current().client(Left)(current().entity_id)
        await (left.ping_within() if current().entity_id == "within" else left.ping())

    async def ping(self) -> str:
        return "right"


class Parent(Entity):
    """Asks its child."""

    async def ask(self) -> str:
        return await current().client(Child)(current().entity_id).ping()

    async def ask_durably(self) -> str:
        return await current().client(Child)(current().entity_id).work()

    async def ping(self) -> str:
        return "parent"


class Child(Entity[int]):
    """Asks its parent when it is made."""

    async def on_activate(self) -> None:
        gates["child"].log.append(" ".join(current().chain))
        if current().entity_id == "held":
            await gates["held child"].pass_through()
        else:
            await current().client(Parent)(current().entity_id).ping()

    async def ping(self) -> str:
        return "child"

    @handler(durable=True, retry=Retry(attempts=1))
    async def work(self) -> str:
        return "child"


class Friend(Entity):
    """Asks other friends."""

    async def ask(self, others: list[str], patience: float = 20.0) -> str:
        await gates[current().entity_id].pass_through()
        friends = current().client(Friend).options(timeout=timedelta(seconds=patience))
        return await friends(others[0]).pass_on(others[1:])

    async def ask_itself(self) -> None:
        itself = current().client(Friend).options(timeout=timedelta(seconds=0.2))
        await itself(current().entity_id).hang_within()

    @handler(reentrant=True)
    async def hang_within(self) -> None:
        await gates["never"].pass_through()

    async def pass_on(self, others: list[str]) -> str:
        if others:
            return await current().client(Friend)(others[0]).pass_on(others[1:])
        return current().entity_id


hub = Hub()
for entity in (Left, Right, Parent, Child, Friend):
    hub.register(entity)


async def test_activations_that_need_each_other_are_a_cycle(anywhere: Cluster) -> None:
    """Their hooks continue the chain of the call that causes them, and are not tried again."""
    async with asyncio.timeout(5):
        error = await failure(anywhere.client(Left).options(timeout=PATIENCE)("a").ping())
    assert isinstance(error, CallCycle)
    assert error.path == ("left/a", "right/a", "left/a")
    assert not error.possibly_executed
    assert gates["left"].log == gates["right"].log == ["made"]


async def test_a_reentrant_handler_does_not_run_in_an_entity_that_is_being_made(cluster: Cluster) -> None:
    """There is no instance yet that could answer, so the call back is a cycle, too."""
    async with asyncio.timeout(5):
        error = await failure(cluster.client(Left).options(timeout=PATIENCE)("within").ping())
    assert isinstance(error, CallCycle)
    assert error.path == ("left/within", "right/within", "left/within")
    assert "left/within is being activated" in str(error)


async def test_an_activation_that_asks_who_waits_for_it_is_a_cycle(anywhere: Cluster) -> None:
    """The caller's handler gets the error, and its entity goes on."""
    parent = anywhere.client(Parent).options(timeout=PATIENCE)("p")
    async with asyncio.timeout(5):
        error = await failure(parent.ask())
        assert isinstance(error, CallCycle)
        assert error.path == ("parent/p", "child/p", "parent/p")
        assert await parent.ping() == "parent"
        assert await anywhere.client(Child)("p").ping() == "child"


async def test_a_durable_call_carries_its_chain_into_the_activation(cluster: Cluster) -> None:
    """Its message ends as a dead letter that names the cycle."""
    async with asyncio.timeout(5):
        error = await failure(cluster.client(Parent).options(timeout=PATIENCE)("p").ask_durably())
    assert isinstance(error, HandlerFailed)
    assert error.type == "CallCycle"
    assert "parent/p -> child/p -> parent/p" in error.message


async def test_an_activation_has_the_chain_of_the_call_that_caused_it(cluster: Cluster) -> None:
    """Not that of those that wait for it as well."""
    first = soon(cluster.client(Parent)("held").ask())
    await gates["held child"].came()
    second = soon(cluster.client(Child)("held").ping())
    gates["held child"].open()
    assert [await first, await second] == ["child", "child"]
    assert gates["child"].log == ["parent/held"]


@pytest.mark.parametrize(
    ("calls", "cycle"), [(["a b", "b a"], "ab"), (["a b", "b c", "c a"], "abc"), (["a x b", "b a"], "axb")]
)
async def test_a_deadlock_is_named_when_a_deadline_inside_ends_it(
    runner: Cluster, cluster: Cluster, calls: list[str], cycle: str
) -> None:
    """No chain shows it, because each call began on its own, but the mailboxes do; the other calls go on."""
    friends = cluster.client(Friend)
    first, *others = (friends(names[0]).ask(names[1:].split(), 1.5 if names is calls[0] else 20.0) for names in calls)
    failing, waiting = soon(failure(first)), soon(outcomes(*others))
    for names in calls:
        await gates[names[0]].came()
    for names in calls:
        gates[names[0]].open()
    await until(lambda: host_of(runner).statistics().queued == len(calls), "a deadlock before the deadline")
    async with asyncio.timeout(10):
        error = await failing
        assert await waiting == [names[-1] for names in calls[1:]]
    assert isinstance(error, CallTimeout)
    rings = [cycle[start:] + cycle[: start + 1] for start in range(len(cycle))]
    texts = ["deadlock: " + " -> ".join(f"friend/{name}" for name in ring) for ring in rings]
    assert any(text in str(error) for text in texts), error


async def test_a_slow_entity_is_no_deadlock(cluster: Cluster) -> None:
    """A call that waits behind another one is told so, and nothing of a cycle."""
    friends = cluster.client(Friend)
    held = soon(outcomes(friends("b").ask(["c"])))
    await gates["b"].came()
    asked = soon(failure(friends.options(timeout=timedelta(seconds=0.3))("a").ask(["b"])))
    gates["a"].open()
    error = await asked
    assert isinstance(error, CallTimeout)
    assert "deadlock" not in str(error)
    gates["b"].open()
    assert await held == ["c"]


async def test_a_slow_reentrant_call_is_no_deadlock(cluster: Cluster) -> None:
    """It runs in the entity that waits for it, so nothing keeps it from going on."""
    error = await failure(cluster.client(Friend)("a").ask_itself())
    assert isinstance(error, CallTimeout)
    assert "deadlock" not in str(error)
