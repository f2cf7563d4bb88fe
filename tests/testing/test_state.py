"""`state_of` shows what is committed, `give_state` replaces it, and neither does anything behind a running entity."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import msgspec
import pytest

from actorhub import (
    ConfigurationError,
    Entity,
    Hub,
    MalformedMessage,
    MessageTooLarge,
    RunnerUnavailable,
    Singleton,
    handler,
)
from actorhub.core.config import Settings
from actorhub.storage.ports import StoredState
from actorhub.testing import MemoryCluster, SteppedClock, give_state, state, state_of, until


class Gate:
    """Where a handler waits until the test opens it."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()


gates: dict[str, Gate] = {}
"""By name; handlers pass where a test made none."""


class Ledger(msgspec.Struct):
    placed: int = 0
    notes: list[str] = []


async def passed(name: str) -> None:
    if name in gates:
        gates[name].reached.set()
        await gates[name].open.wait()


class Orders(Entity[Ledger]):
    async def on_activate(self) -> None:
        await passed("activate")

    async def on_deactivate(self) -> None:
        self.state.notes.append("left")

    async def place(self, count: int = 1) -> int:
        self.state.placed += count
        await passed("place")
        return self.state.placed

    @handler(readonly=True)
    async def placed(self) -> int:
        return self.state.placed

    async def watch(self) -> AsyncIterator[int]:
        while True:
            yield self.state.placed
            await passed("watch")


class Plain(Entity[Ledger]):
    async def place(self) -> int:
        self.state.placed += 1
        return self.state.placed


class Audit(Entity):
    async def note(self, text: str) -> None: ...


class Nightly(Singleton[Ledger], name="nightly", state_ttl=timedelta(days=1)):
    async def place(self) -> int:
        self.state.placed += 1
        return self.state.placed


class Elsewhere(Entity[Ledger]):
    async def place(self) -> int:
        self.state.placed += 1
        return self.state.placed


hub = Hub()
for declared in (Orders, Plain, Audit, Nightly):
    hub.register(declared)


@pytest.fixture(autouse=True)
def fresh_gates() -> None:
    """Forget the gates of the test before."""
    gates.clear()


@pytest.fixture
async def memory() -> AsyncIterator[MemoryCluster]:
    """An empty cluster, whose handlers all get through their gates when the test is over."""
    async with MemoryCluster(hub) as made:
        yield made
        for gate in gates.values():
            gate.open.set()


def is_resident(memory: MemoryCluster, entity: type[Entity[Ledger]], entity_id: str) -> bool:
    """Whether some runner has the entity in memory."""
    return state._resident(memory, entity.__declaration__.spec, entity_id) is not None


async def test_what_nobody_stored_is_the_initial_state(memory: MemoryCluster) -> None:
    """It is the state that the entity would start with; `stored` tells that there is none."""
    assert await state_of(memory, Orders, "ada") == Ledger()
    assert memory.stored("orders", "ada") is None


async def test_the_state_is_what_was_committed_last(memory: MemoryCluster) -> None:
    """What a handler that runs changed is not in it before its commit."""
    runner = await memory.start_runner()
    await runner.client(Orders)("ada").place(3)
    assert await state_of(memory, Orders, "ada") == Ledger(placed=3)
    gate = gates["place"] = Gate()
    async with asyncio.TaskGroup() as tasks:
        placed = tasks.create_task(runner.client(Orders)("ada").place(4))
        await gate.reached.wait()
        assert await state_of(memory, Orders, "ada") == Ledger(placed=3)
        gate.open.set()
    assert placed.result() == 7
    assert await state_of(memory, Orders, "ada") == Ledger(placed=7)


async def test_changing_a_state_that_was_read_changes_nothing(memory: MemoryCluster) -> None:
    """Each call decodes a state of its own, and what is given is copied."""
    given = Ledger(placed=1)
    await give_state(memory, Orders, "ada", given)
    given.placed = 7
    (await state_of(memory, Orders, "ada")).placed = 8
    assert await state_of(memory, Orders, "ada") == Ledger(placed=1)


async def test_an_entity_starts_from_the_state_that_it_was_given(memory: MemoryCluster) -> None:
    """Before the first message the state is simply there, and its commits go on from it."""
    await give_state(memory, Plain, "ada", Ledger(placed=40))
    runner = await memory.start_runner()
    assert await runner.client(Plain)("ada").place() == 41
    assert memory.stored("plain", "ada") == StoredState(2, msgspec.msgpack.encode(Ledger(placed=41)))


@pytest.mark.parametrize("entity", [Orders, Plain])
async def test_an_entity_in_memory_goes_on_from_the_state_that_it_was_given(
    memory: MemoryCluster, entity: type[Orders] | type[Plain]
) -> None:
    """It is passivated first, wherever it is, so that it does not keep what it had; its hook's changes are gone."""
    runners = [await memory.start_runner(), await memory.start_runner()]
    await memory.settled()
    ids = {runner: next(f"{n}" for n in range(99) if runner.is_local(entity, f"{n}")) for runner in runners}
    for entity_id in ids.values():
        assert await runners[0].client(entity)(entity_id).place() == 1
        await give_state(memory, entity, entity_id, Ledger(placed=40))
        assert not is_resident(memory, entity, entity_id)
        assert await state_of(memory, entity, entity_id) == Ledger(placed=40)
        assert await runners[0].client(entity)(entity_id).place() == 41


async def test_a_handler_that_runs_is_waited_for_and_overwritten(memory: MemoryCluster) -> None:
    """Its caller gets its reply, and the state is the given one nevertheless."""
    runner = await memory.start_runner()
    gate = gates["place"] = Gate()
    async with asyncio.TaskGroup() as tasks:
        placed = tasks.create_task(runner.client(Orders)("ada").place(3))
        await gate.reached.wait()
        given = tasks.create_task(give_state(memory, Orders, "ada", Ledger(placed=40)))
        await asyncio.sleep(0)
        assert not given.done()
        assert memory.stored("orders", "ada") is None
        gate.open.set()
    assert placed.result() == 3
    assert await runner.client(Orders)("ada").placed() == 40


async def test_an_entity_that_is_just_being_made_does_not_keep_what_it_loaded(memory: MemoryCluster) -> None:
    """An activation that has loaded the old state is over before the new one is written."""
    runner = await memory.start_runner()
    gate = gates["activate"] = Gate()
    async with asyncio.TaskGroup() as tasks:
        placed = tasks.create_task(runner.client(Orders)("ada").place())
        await gate.reached.wait()
        given = tasks.create_task(give_state(memory, Orders, "ada", Ledger(placed=40)))
        await asyncio.sleep(0)
        assert not given.done()
        gate.open.set()
    assert placed.result() == 1
    assert await runner.client(Orders)("ada").placed() == 40


async def test_a_stream_ends_when_its_entity_is_given_a_state(memory: MemoryCluster) -> None:
    """It cannot go on from a state that was taken away."""
    runner = await memory.start_runner()
    gates["watch"] = Gate()
    stream = runner.client(Orders)("ada").watch()
    assert await anext(stream) == 0
    await give_state(memory, Orders, "ada", Ledger(placed=40))
    with pytest.raises(RunnerUnavailable, match="the stream ended because its entity moved"):
        await anext(stream)
    assert await runner.client(Orders)("ada").placed() == 40


async def test_an_entity_that_does_not_come_to_rest_is_left_alone(
    memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After ten seconds the error says why, and nothing was written."""
    monkeypatch.setattr(state, "_PASSIVATION_SECONDS", 0.1)
    runner = await memory.start_runner()
    gate = gates["place"] = Gate()
    async with asyncio.TaskGroup() as tasks:
        placed = tasks.create_task(runner.client(Orders)("ada").place())
        await gate.reached.wait()
        with pytest.raises(TimeoutError, match=r"orders/ada did not passivate within 0\.1 s: one of its handlers runs"):
            await give_state(memory, Orders, "ada", Ledger(placed=40))
        gate.open.set()
    assert placed.result() == 1
    await until(lambda: not is_resident(memory, Orders, "ada"))
    assert (await state_of(memory, Orders, "ada")).placed == 1


async def test_a_singleton_is_given_a_state_while_nobody_leads_it(memory: MemoryCluster) -> None:
    """Before the first runner starts, and after the last one stopped; in between an error says so."""
    await give_state(memory, Nightly, "nightly", Ledger(placed=40))
    runner = await memory.start_runner()
    assert await runner.singleton(Nightly).place() == 41
    with pytest.raises(RuntimeError, match=r"singleton nightly is led by runner 127\.0\.0\.1:1"):
        await give_state(memory, Nightly, "nightly", Ledger(placed=50))
    assert await state_of(memory, Nightly, "nightly") == Ledger(placed=41)
    await memory.stop(runner)
    await give_state(memory, Nightly, "nightly", Ledger(placed=50))
    assert await (await memory.start_runner()).singleton(Nightly).place() == 51


async def test_a_singleton_s_state_that_is_too_old_is_not_one() -> None:
    """What its `state_ttl` makes the singleton forget is not shown either."""
    clock = SteppedClock()
    async with MemoryCluster(hub, clock=clock) as memory:
        await give_state(memory, Nightly, "nightly", Ledger(placed=40))
        clock.step(timedelta(hours=23))
        assert await state_of(memory, Nightly, "nightly") == Ledger(placed=40)
        clock.step(timedelta(hours=2))
        assert await state_of(memory, Nightly, "nightly") == Ledger()
        assert await (await memory.start_runner()).singleton(Nightly).place() == 1


async def test_a_state_that_does_not_fit_its_type_is_refused(memory: MemoryCluster) -> None:
    """What is given must be what the entity could have committed; what was stored stays."""
    await give_state(memory, Orders, "ada", Ledger(placed=1))
    with pytest.raises(MalformedMessage, match=r"orders: state: Expected `int`, got `str` - at `\$.placed`"):
        await give_state(memory, Orders, "ada", Ledger(placed="many"))  # type: ignore[arg-type]
    with pytest.raises(MalformedMessage, match="orders: state: "):
        await give_state(memory, Orders, "ada", Ledger(notes=[object()]))  # type: ignore[list-item]
    assert await state_of(memory, Orders, "ada") == Ledger(placed=1)


async def test_a_state_larger_than_a_message_is_refused() -> None:
    """It has the limit of those that handlers commit."""
    async with MemoryCluster(hub, settings=Settings(shards_per_group=4, max_message_bytes=1 << 16)) as memory:
        with pytest.raises(MessageTooLarge, match="orders: state"):
            await give_state(memory, Orders, "ada", Ledger(notes=["x" * (1 << 16)]))


async def test_a_stored_state_that_does_not_fit_is_an_error(memory: MemoryCluster) -> None:
    """It names the field, as the entity's activation would."""
    memory.overwrite("orders", "ada", StoredState(1, msgspec.msgpack.encode({"placed": "many"})))
    with pytest.raises(MalformedMessage, match=r"orders: state: Expected `int`, got `str` - at `\$.placed`"):
        await state_of(memory, Orders, "ada")


async def test_mistakes_are_named(memory: MemoryCluster) -> None:
    """A class without state, one that no hub has, and ids that cannot be are told apart."""
    with pytest.raises(TypeError, match=r"Audit keeps no state: declare it as Entity\[State\]"):
        await state_of(memory, Audit, "ada")
    with pytest.raises(ConfigurationError, match="Elsewhere is not registered"):
        await give_state(memory, Elsewhere, "ada", Ledger())
    with pytest.raises(MalformedMessage, match="must not be empty"):
        await state_of(memory, Orders, "")
    with pytest.raises(MalformedMessage, match="Nightly is a singleton: its id is 'nightly', not 'ada'"):
        await state_of(memory, Nightly, "ada")


async def test_classes_of_every_hub_of_the_cluster_are_known(memory: MemoryCluster) -> None:
    """A runner that was started with a hub of its own counts."""
    other = Hub()
    other.register(Elsewhere)
    runner = await memory.start_runner(hub=other)
    assert await runner.client(Elsewhere)("ada").place() == 1
    assert await state_of(memory, Elsewhere, "ada") == Ledger(placed=1)
