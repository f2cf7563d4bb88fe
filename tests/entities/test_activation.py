"""Activations: made on the first message, passivated when idle, never two of one entity."""

import asyncio
from collections import Counter
from datetime import timedelta

import msgspec
import pytest

from actorhub import Cluster, Entity, HandlerFailed, Hub, MailboxFull, RunnerUnavailable, current
from actorhub.cluster import part_of
from actorhub.core.backoff import Backoff
from actorhub.core.config import Settings
from actorhub.engine.runner import Runner
from actorhub.engine.runs import activation
from actorhub.testing import MemoryCluster, until
from tests.support.gates import failure, gates, outcomes, soon

alive: Counter[str] = Counter()
most_alive: Counter[str] = Counter()
attempts: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def nobody_alive() -> None:
    """Count from zero in each test."""
    for counter in (alive, most_alive, attempts):
        counter.clear()


class Short(Entity[int], max_idle=timedelta(milliseconds=60)):
    """Counts how many instances of one id are between the two hooks."""

    def __init__(self) -> None:
        self._calls = 0
        self._name = ""

    async def on_activate(self) -> None:
        attempts["short"] += 1

    async def on_deactivate(self) -> None:
        if self._name:
            alive[self._name] -= 1
            if self._name.startswith("slow"):
                await gates[f"{self._name} closing"].pass_through()
            if self._name.startswith("bad"):
                raise ValueError("the hook fails")
            if self._name.startswith("cancelled"):
                raise asyncio.CancelledError

    async def call(self) -> int:
        self._name = current().entity_id
        if self._calls == 0:
            alive[self._name] += 1
            most_alive[self._name] = max(most_alive[self._name], alive[self._name])
        self._calls += 1
        return self._calls

    async def keep(self, enabled: bool) -> int:
        current().keep_alive(enabled)
        return await self.call()

    async def hold(self) -> int:
        calls = await self.call()
        await gates[current().entity_id].pass_through()
        return calls


class Simple(Entity, max_idle=timedelta(seconds=60)):
    """Neither state nor hooks."""

    def __init__(self) -> None:
        attempts["simple"] += 1
        if attempts["simple fails"] > 0:
            attempts["simple fails"] -= 1
            raise ConnectionError("not yet")
        self._calls = 0

    async def call(self) -> int:
        self._calls += 1
        return self._calls

    async def hold(self) -> None:
        await gates[current().entity_id].pass_through()


class Failing(Entity[int]):
    """Its hook fails as often as the test says."""

    async def on_activate(self) -> None:
        attempts["failing"] += 1
        self.state += 10
        if attempts["cancelled"] > 0:
            attempts["cancelled"] -= 1
            raise asyncio.CancelledError
        if attempts["fails"] > 0:
            attempts["fails"] -= 1
            raise ConnectionError("the neighbour is away")

    async def value(self) -> int:
        return self.state


class Preparing(Entity[dict[str, int]]):
    """Prepares its state when it is made."""

    async def on_activate(self) -> None:
        self.state.setdefault("opened", 0)
        self.state["opened"] += 1

    async def read(self) -> dict[str, int]:
        return self.state


hub = Hub()
for entity in (Short, Simple, Failing, Preparing):
    hub.register(entity)


def host(cluster: Cluster):  # type: ignore[no-untyped-def]  # noqa: ANN201
    part = part_of(cluster)
    assert isinstance(part, Runner)
    return part.host


async def test_an_idle_entity_is_passivated_and_comes_back(runner: Cluster, cluster: Cluster) -> None:
    """It leaves memory after its idle time, its hook runs, and the next message gets a fresh instance."""
    short = cluster.client(Short)("a")
    assert [await short.call(), await short.call()] == [1, 2]
    await until(lambda: host(runner).residents.count == 0)
    assert alive["a"] == 0
    assert await short.call() == 1
    assert attempts["short"] == 2


async def test_a_busy_entity_is_not_passivated(runner: Cluster, cluster: Cluster) -> None:
    """A handler that runs longer than the idle time keeps its entity."""
    held = soon(cluster.client(Short)("a").hold())
    await gates["a"].came()
    await asyncio.sleep(0.25)
    assert host(runner).residents.count == 1
    gates["a"].open()
    assert await held == 1
    assert await cluster.client(Short)("a").call() == 2


async def test_keep_alive_keeps_an_idle_entity_until_it_is_released(runner: Cluster, cluster: Cluster) -> None:
    """Its instance stays through several idle times, and goes after the release."""
    short = cluster.client(Short)("a")
    await short.keep(True)
    await asyncio.sleep(0.3)
    assert await short.keep(False) == 2
    await until(lambda: host(runner).residents.count == 0)


async def test_a_message_during_deactivation_gets_a_fresh_activation(runner: Cluster, cluster: Cluster) -> None:
    """It waits for the old instance to end; two are never alive."""
    short = cluster.client(Short)("slow")
    await short.call()
    await gates["slow closing"].came()
    waiting = soon(outcomes(short.call(), short.call()))
    await asyncio.sleep(0.03)
    assert not waiting.done()
    gates["slow closing"].open()
    assert await waiting == [1, 2]
    assert most_alive["slow"] == 1


async def test_two_instances_of_one_id_are_never_alive(runner: Cluster, client: Cluster) -> None:
    """Under a storm of calls and passivations each id has one instance at a time."""
    short = client.client(Short)
    for _ in range(20):
        found = await outcomes(*(short(f"e{n}").call() for n in range(20)))
        assert all(isinstance(one, int) for one in found)
        await asyncio.sleep(0.02)
    assert set(most_alive.values()) == {1}


@pytest.mark.parametrize("name", ["bad", "cancelled"])
async def test_a_hook_that_fails_at_the_end_does_not_keep_the_entity(runner: Cluster, name: str) -> None:
    """Whatever on_deactivate raises, the entity leaves and comes back."""
    short = runner.client(Short)(name)
    await short.call()
    await until(lambda: host(runner).residents.count == 0)
    assert await short.call() == 1


async def test_a_hook_that_fails_at_the_start_is_tried_again(cluster: Cluster) -> None:
    """Two failures of on_activate are hidden from the caller, and their changes of state do not count."""
    attempts["fails"] = 2
    assert await cluster.client(Failing)("a").value() == 10
    assert attempts["failing"] == 3


async def test_a_hook_that_raises_cancelled_error_by_itself_is_tried_again(cluster: Cluster) -> None:
    """CancelledError of user code is a failure like any other, and hangs nobody."""
    attempts["cancelled"] = 1
    async with asyncio.timeout(5):
        assert await cluster.client(Failing)("a").value() == 10


async def test_an_activation_that_keeps_failing_fails_what_waits(memory: MemoryCluster, cluster: Cluster) -> None:
    """After four attempts the waiting messages fail typed, and the next message starts over."""
    attempts["fails"] = 4
    failing = cluster.client(Failing)("a")
    for error in await outcomes(failing.value(), failing.value()):
        assert isinstance(error, HandlerFailed)
        assert error.type == "ConnectionError"
        assert not error.possibly_executed
    assert attempts["failing"] == 4
    assert memory.stored("failing", "a") is None
    assert await failing.value() == 10


async def test_a_constructor_that_fails_is_tried_again(cluster: Cluster) -> None:
    """The same holds for entities without state and hooks, which are made at once."""
    attempts["simple fails"] = 2
    assert await cluster.client(Simple)("a").call() == 1
    attempts["simple fails"] = 100
    error = await failure(cluster.client(Simple)("b").call())
    assert isinstance(error, HandlerFailed)
    assert "not yet" in str(error)
    assert not error.possibly_executed
    attempts["simple fails"] = 0
    assert await cluster.client(Simple)("b").call() == 1


async def test_one_entity_that_cannot_be_made_does_not_hold_the_others(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backoff belongs to one entity."""
    monkeypatch.setattr(activation, "_BACKOFF", Backoff(initial=1.0))
    attempts["fails"] = 1
    slow = soon(cluster.client(Failing)("a").value())
    await until(lambda: attempts["fails"] == 0)
    assert await cluster.client(Preparing)("b").read() == {"opened": 1}
    assert not slow.done()
    assert await slow == 10


async def test_what_on_activate_changes_is_committed(memory: MemoryCluster, cluster: Cluster) -> None:
    """The first handler starts from committed state."""
    assert await cluster.client(Preparing)("a").read() == {"opened": 1}
    stored = memory.stored("preparing", "a")
    assert stored is not None
    assert msgspec.msgpack.decode(stored.data) == {"opened": 1}


async def test_the_state_is_loaded_while_the_store_comes_back(memory: MemoryCluster, cluster: Cluster) -> None:
    """A short outage of the store at activation is waited out."""
    memory.store.available = False
    waiting = soon(cluster.client(Failing)("a").value())
    await asyncio.sleep(0.08)
    memory.store.available = True
    assert await waiting == 10


async def test_the_least_recently_used_make_room(memory: MemoryCluster) -> None:
    """At the cap an idle entity leaves for a new one, the one that was unused longest first."""
    memory.settings = Settings(shards_per_group=16, max_resident=3, grace=timedelta(seconds=1))
    runner = await memory.start_runner()
    simple = runner.client(Simple)
    for name in ("a", "b", "c"):
        assert await simple(name).call() == 1
    assert await simple("a").call() == 2
    assert await simple("d").call() == 1
    assert host(runner).residents.count == 3
    assert await simple("a").call() == 3
    assert await simple("c").call() == 2
    assert await simple("b").call() == 1


async def test_a_cap_full_of_busy_entities_is_a_typed_error(memory: MemoryCluster) -> None:
    """When nobody can leave the new one is refused; when one becomes idle it comes in."""
    memory.settings = Settings(shards_per_group=16, max_resident=2, grace=timedelta(seconds=1))
    runner = await memory.start_runner()
    simple = runner.client(Simple)
    held = soon(outcomes(simple("a").hold(), simple("b").hold()))
    await gates["b"].came()
    error = await failure(simple("c").call())
    assert isinstance(error, MailboxFull)
    assert not error.possibly_executed
    gates["a"].open()
    gates["b"].open()
    await held
    assert await simple("c").call() == 1


async def test_more_entities_than_the_cap_are_all_served(memory: MemoryCluster) -> None:
    """A thousand ids go through room for fifty, and memory stays bounded."""
    memory.settings = Settings(shards_per_group=16, max_resident=50, grace=timedelta(seconds=1))
    runner = await memory.start_runner()
    for start in range(0, 1000, 40):
        assert (
            await outcomes(*(runner.client(Preparing)(str(n)).read() for n in range(start, start + 40)))
            == [{"opened": 1}] * 40
        )
        assert host(runner).residents.count <= 50


async def test_a_runner_that_is_forced_out_cancels_what_runs(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """When the store ends the lock session, handlers are cancelled and their callers do not know the outcome."""
    held = soon(failure(client.client(Simple)("a").hold()))
    await gates["a"].came()
    memory.store.restart()
    async with asyncio.timeout(5):
        error = await held
    assert isinstance(error, RunnerUnavailable)
    assert error.possibly_executed
    assert gates["a"].left == ["cancelled"]
    async with asyncio.timeout(10):
        assert await client.client(Simple)("a").call() == 1
