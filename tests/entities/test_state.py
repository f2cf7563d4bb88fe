"""State: loaded on activation, committed fenced after each handler that changed it, rolled back when one raises."""

import asyncio
from datetime import timedelta

import msgspec
import pytest

from actorhub import (
    ActorhubError,
    Cluster,
    Entity,
    HandlerFailed,
    Hub,
    MalformedMessage,
    PersistenceError,
    current,
    handler,
)
from actorhub.cluster import part_of
from actorhub.core.address import RunnerAddress
from actorhub.storage.ports import StoredState
from actorhub.testing import MemoryCluster, until
from tests.support.gates import failure, gates, outcomes, soon


class Item(msgspec.Struct):
    sku: str
    count: int = 0


class Cart(msgspec.Struct):
    items: dict[str, Item] = {}
    changes: int = 0
    tags: set[str] = set()


class Carts(Entity[Cart], max_idle=timedelta(seconds=60)):
    async def add(self, sku: str, count: int = 1) -> int:
        item = self.state.items.setdefault(sku, Item(sku))
        item.count += count
        self.state.changes += 1
        self.state.tags |= {sku, "any", str(count)}
        return self.state.changes

    async def add_and_fail(self, sku: str) -> None:
        await self.add(sku)
        raise ValueError("no")

    async def add_save_and_fail(self, first: str, second: str) -> None:
        await self.add(first)
        await self.save()
        await self.add(second)
        raise ValueError("no")

    async def replace(self, cart: Cart) -> None:
        await self.save(cart)

    async def save_twice(self) -> int:
        await self.save(Cart(changes=1))
        await self.save(Cart(changes=2))
        return self.state.changes

    @handler(readonly=True)
    async def read(self) -> Cart:
        return self.state

    @handler(readonly=True)
    async def mutate_readonly(self) -> None:
        self.state.changes = 99

    @handler(readonly=True)
    async def save_readonly(self) -> None:
        await self.save(Cart(changes=99))

    @handler(readonly=True)
    async def look_and_fail(self) -> None:
        raise ValueError("nothing to undo")

    async def spoil(self) -> None:
        self.state.changes = "many"  # type: ignore[assignment]

    async def spoil_unencodable(self) -> None:
        self.state.items = {"x": object()}  # type: ignore[dict-item]

    async def spoil_and_save(self) -> None:
        await self.save(Cart(changes="many"))  # type: ignore[arg-type]

    async def bloat(self, size: int) -> None:
        self.state.tags = {"x" * size}

    async def hold_after_change(self) -> None:
        self.state.changes += 1
        await gates[current().entity_id].pass_through()

    async def keep_after_refusal(self) -> str:
        self.state.changes += 1
        await gates[current().entity_id].pass_through()
        try:
            await self.save()
        except PersistenceError as error:
            return type(error).__name__
        return "saved"


class Bare(Entity):
    async def save_nothing(self) -> None:
        await self.save()


hub = Hub()
hub.register(Carts)
hub.register(Bare)


def version(memory: MemoryCluster, entity_id: str = "a") -> int:
    stored = memory.stored("carts", entity_id)
    return stored.version if stored is not None else 0


def behind_its_back(memory: MemoryCluster, runner: Cluster, entity_id: str = "a") -> None:
    """Give the entity's shard to somebody else in the store, as a takeover does."""
    memory.store.take([runner.shard_of(Carts, entity_id)], RunnerAddress("elsewhere:1", "0" * 16))


async def test_state_outlives_the_activation(anywhere: Cluster) -> None:
    """What a handler changed, nested values and sets included, is there after the state was loaded again."""
    carts = anywhere.client(Carts)
    assert await carts("a").add("tea", 2) == 1
    assert await carts("a").add("tea") == 2
    assert await carts("b").read() == Cart()
    cart = await carts("a").read()
    assert cart == Cart({"tea": Item("tea", 3)}, 2, {"tea", "any", "1", "2"})


async def test_each_change_is_one_version_and_reading_is_none(memory: MemoryCluster, cluster: Cluster) -> None:
    """Versions are contiguous from 1; handlers that change nothing commit nothing."""
    carts = cluster.client(Carts)("a")
    for expected in range(1, 6):
        assert await carts.add("tea") == expected
        assert version(memory) == expected
        await carts.read()
        await failure(carts.look_and_fail())
        assert version(memory) == expected


async def test_the_reply_comes_after_the_commit(memory: MemoryCluster, cluster: Cluster) -> None:
    """Whoever has the reply finds the change in the store."""
    carts = cluster.client(Carts)
    for number in range(20):
        await carts(str(number)).add("tea")
        assert version(memory, str(number)) == 1


async def test_a_handler_that_raises_leaves_state_as_it_was(memory: MemoryCluster, cluster: Cluster) -> None:
    """Changes inside nested values are undone, in memory and in the store."""
    carts = cluster.client(Carts)("a")
    await carts.add("tea")
    before = await carts.read()
    with pytest.raises(HandlerFailed):
        await carts.add_and_fail("tea")
    assert await carts.read() == before
    assert version(memory) == 1
    assert await carts.add("tea") == 2


async def test_a_saved_change_stays_when_the_handler_raises_later(memory: MemoryCluster, cluster: Cluster) -> None:
    """save() is the point that a later error rolls back to."""
    carts = cluster.client(Carts)("a")
    with pytest.raises(HandlerFailed):
        await carts.add_save_and_fail("tea", "coffee")
    assert list((await carts.read()).items) == ["tea"]
    assert version(memory) == 1


async def test_save_takes_a_new_state_and_commits_each_time(memory: MemoryCluster, cluster: Cluster) -> None:
    """save(state) replaces the state; two saves are two versions, and the end of the handler adds none."""
    carts = cluster.client(Carts)("a")
    assert await carts.save_twice() == 2
    assert version(memory) == 2
    await carts.replace(Cart(changes=7))
    assert (await carts.read()).changes == 7
    assert version(memory) == 3


async def test_a_readonly_handler_that_changes_state_fails(memory: MemoryCluster, cluster: Cluster) -> None:
    """The change is undone and the error says what to write."""
    carts = cluster.client(Carts)("a")
    await carts.add("tea")
    with pytest.raises(HandlerFailed, match=r"carts\.mutate_readonly is readonly and changed the state: remove"):
        await carts.mutate_readonly()
    with pytest.raises(HandlerFailed, match="cannot save"):
        await carts.save_readonly()
    assert (await carts.read()).changes == 1
    assert version(memory) == 1


async def test_save_without_state_says_where_it_works(cluster: Cluster) -> None:
    """An entity that keeps nothing has nothing to save."""
    with pytest.raises(HandlerFailed, match=r"save\(\) can be called in a handler of an Entity with state"):
        await cluster.client(Bare)("a").save_nothing()


async def test_a_state_that_could_not_be_loaded_again_is_not_committed(memory: MemoryCluster, cluster: Cluster) -> None:
    """A value of a wrong type, or one that cannot be encoded, fails the handler that set it, and is undone."""
    carts = cluster.client(Carts)("a")
    await carts.add("tea")
    for call in (carts.spoil(), carts.spoil_and_save(), carts.spoil_unencodable()):
        error = await failure(call)
        assert isinstance(error, MalformedMessage)
        assert "carts: state" in str(error)
        assert error.possibly_executed
    assert (await carts.read()).changes == 1
    assert version(memory) == 1
    assert await carts.add("tea") == 2


async def test_a_state_over_the_limit_is_not_committed(memory: MemoryCluster, cluster: Cluster) -> None:
    """The error names the limit, and the entity goes on with the state before."""
    carts = cluster.client(Carts)("a")
    error = await failure(carts.bloat(memory.settings.max_message_bytes))
    assert isinstance(error, ActorhubError)
    assert "carts/a: state" in str(error)
    assert await carts.read() == Cart()


async def test_a_commit_of_a_former_owner_is_refused(memory: MemoryCluster, runner: Cluster, client: Cluster) -> None:
    """When the epoch moved on behind its back nothing is written, the caller hears of it, and the entity is rebuilt."""
    carts = client.client(Carts)("a")
    await carts.add("tea")
    held = soon(failure(carts.hold_after_change()))
    await gates["a"].came()
    behind_its_back(memory, runner)
    gates["a"].open()
    error = await held
    assert isinstance(error, PersistenceError)
    assert error.possibly_executed
    assert version(memory) == 1
    async with asyncio.timeout(10):
        assert (await carts.read()).changes == 1
        assert await carts.add("tea") == 2
    assert version(memory) == 2


async def test_a_refused_save_raises_where_it_is_awaited(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """A handler sees the PersistenceError of its own save, and cannot reply as if nothing had happened."""
    carts = client.client(Carts)("a")
    await carts.add("tea")
    held = soon(failure(carts.keep_after_refusal()))
    await gates["a"].came()
    behind_its_back(memory, runner)
    gates["a"].open()
    error = await held
    assert isinstance(error, ActorhubError)
    assert error.possibly_executed
    assert version(memory) == 1


async def test_a_conflicting_version_is_refused_and_the_entity_rebuilt(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """A write that came from nowhere is not overwritten; the next call works on it."""
    carts = client.client(Carts)("a")
    await carts.add("tea")
    changed = msgspec.msgpack.encode(Cart(changes=40))
    memory.overwrite("carts", "a", StoredState(2, changed))
    error = await failure(carts.add("tea"))
    assert isinstance(error, PersistenceError)
    async with asyncio.timeout(10):
        assert await carts.add("tea") == 41
    assert version(memory) == 3


async def test_waiting_messages_survive_the_refusal_of_the_one_before(
    memory: MemoryCluster, runner: Cluster, client: Cluster
) -> None:
    """Messages behind a refused commit run on the rebuilt entity, each once."""
    carts = client.client(Carts)("a")
    await carts.add("tea")
    held = soon(failure(carts.hold_after_change()))
    await gates["a"].came()
    waiting = soon(outcomes(*(carts.add("tea") for _ in range(5))))
    await asyncio.sleep(0.02)
    behind_its_back(memory, runner)
    gates["a"].open()
    assert isinstance(await held, PersistenceError)
    async with asyncio.timeout(10):
        assert await waiting == [2, 3, 4, 5, 6]
    assert version(memory) == 6


async def test_a_store_that_fails_fails_the_commit_and_nothing_else(memory: MemoryCluster, cluster: Cluster) -> None:
    """While the store is away a change fails typed; afterwards the entity goes on from what is stored."""
    carts = cluster.client(Carts)("a")
    await carts.add("tea")
    memory.store.available = False
    error = await failure(carts.add("tea"))
    memory.store.available = True
    assert isinstance(error, PersistenceError)
    assert error.possibly_executed
    async with asyncio.timeout(10):
        assert await carts.add("tea") == 2
    assert version(memory) == 2


class Old(msgspec.Struct):
    changes: int = 0
    unseen: str = "x"


async def test_state_of_an_older_class_is_taken_as_far_as_it_fits(memory: MemoryCluster, cluster: Cluster) -> None:
    """Known fields are kept, new ones defaulted, unknown ones carried along; reading it commits nothing."""
    memory.overwrite("carts", "a", StoredState(1, msgspec.msgpack.encode(Old(changes=5))))
    carts = cluster.client(Carts)("a")
    assert await carts.read() == Cart(changes=5)
    assert version(memory) == 1
    assert await carts.add("tea") == 6
    stored = memory.stored("carts", "a")
    assert isinstance(stored, StoredState)
    assert msgspec.msgpack.decode(stored.data)["unseen"] == "x"


async def test_state_that_does_not_fit_fails_every_call_with_a_typed_error(
    memory: MemoryCluster, cluster: Cluster
) -> None:
    """The error names the field; nothing runs and the stored bytes stay as they are."""
    memory.overwrite("carts", "a", StoredState(1, msgspec.msgpack.encode({"changes": "many"})))
    callers = [each.client(Carts)("a") for each in (cluster, cluster, *memory.runners)]
    found = await outcomes(*(carts.add("tea") for carts in callers))
    for error in found:
        assert type(error) is PersistenceError
        assert "carts/a: its stored state does not fit" in str(error)
        assert "changes" in str(error)
        assert not error.possibly_executed
    assert version(memory) == 1
    assert await cluster.client(Carts)("b").add("tea") == 1


async def test_concurrent_commits_of_many_entities_all_arrive(anywhere: Cluster) -> None:
    """Group commit loses none of five hundred changes."""
    carts = anywhere.client(Carts)
    assert await outcomes(*(carts(f"e{n % 100}").add("tea") for n in range(500)))
    counts = await outcomes(*(carts(f"e{n}").read() for n in range(100)))
    assert all(isinstance(cart, Cart) and cart.changes == 5 for cart in counts)


async def test_a_commit_that_outlasts_its_callers_deadline_still_counts(memory: MemoryCluster, runner: Cluster) -> None:
    """A change that is on its way to the store when the caller gives up is kept whole."""
    carts = runner.client(Carts)("a")
    for rounds in range(1, 12):
        task = soon(carts.add("tea"))
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()
        await until(lambda: part_of(runner).node.router.host is not None)
        cart = await carts.read()
        assert cart.changes == version(memory)
        assert cart.changes == sum(item.count for item in cart.items.values())
