"""cluster.kv and current().kv: values of the whole cluster, from runners, clients and handlers."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from actorhub import (
    Cluster,
    Entity,
    EntityError,
    Hub,
    KeyValue,
    MalformedMessage,
    MessageTooLarge,
    current,
)
from actorhub.core.clock import SystemClock
from actorhub.core.key_value import MAX_KEY_BYTES, MAX_VALUE_BYTES
from actorhub.testing import MemoryCluster
from actorhub.testing.cluster import until
from tests.support.gates import failure

HOUR = timedelta(hours=1)


class Refused(EntityError):
    pass


class Session(msgspec.Struct):
    user: str
    visits: int = 0


class Refusal(msgspec.Struct):
    reason: str


class Desk(Entity):
    async def note(self, key: str, text: str) -> None:
        await current().kv.set(key, text)

    async def note_and_refuse(self, key: str, text: str) -> None:
        await current().kv.set(key, text)
        raise Refused

    async def count(self, key: str) -> int:
        return await current().kv.typed(int).modify(key, plus_one) or 0


hub = Hub()
hub.register(Desk)


class SteppedClock(SystemClock):
    """A clock whose wall time a test moves."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_800_000_000.0
        self.time = lambda: self.now


def plus_one(number: int | None) -> int:
    return (number or 0) + 1


@pytest.fixture
def clock() -> SteppedClock:
    """The clock of `stepped`."""
    return SteppedClock()


@pytest.fixture
async def stepped(clock: SteppedClock) -> AsyncIterator[MemoryCluster]:
    """A cluster in memory with a runner, whose time a test moves."""
    async with MemoryCluster(hub, clock=clock) as memory:
        await memory.start_runner()
        yield memory


async def test_a_value_comes_back_until_it_is_deleted(anywhere: Cluster) -> None:
    """Set, get, has and delete do what they say, and a default stands in for a value that is not there."""
    kv = anywhere.kv
    assert await kv.get("a") is None
    assert await kv.get("a", 7) == 7
    await kv.set("a", {"list": [1, 2.5, "x", None, b"bytes"]})
    assert await kv.get("a", 7) == {"list": [1, 2.5, "x", None, b"bytes"]}
    assert await kv.has("a")
    await kv.set("a", False)
    assert await kv.get("a", 7) is False
    assert await kv.delete("a")
    assert not await kv.delete("a")
    assert not await kv.has("a")


async def test_size_and_clear_mean_the_prefix(anywhere: Cluster) -> None:
    """Prefixes add up, keys of other prefixes are not touched, and the whole store has an empty prefix."""
    kv = anywhere.kv
    shop = kv.prefix("shop:")
    tea = shop.prefix("tea:")
    assert await tea.is_empty()
    for number in range(3):
        await tea.set(str(number), number)
    await shop.set("open", True)
    await kv.set("shop", "outside")
    assert [await each.size() for each in (kv, shop, tea, kv.prefix(""), kv.prefix("shop:tea:"))] == [5, 4, 3, 5, 3]
    assert await kv.get("shop:tea:2") == 2
    assert not await tea.is_empty()
    assert await tea.clear() == 3
    assert await tea.is_empty()
    assert await shop.get("open") is True
    assert await kv.clear() == 2
    assert await kv.is_empty()
    assert await kv.clear() == 0


async def test_more_than_a_step_is_cleared(runner: Cluster) -> None:
    """Clearing goes on until nothing is left."""
    for number in range(1203):
        await runner.kv.prefix("many:").set(str(number), number)
    await runner.kv.set("other", 1)
    assert await runner.kv.prefix("many:").clear() == 1203
    assert await runner.kv.size() == 1


async def test_values_have_the_type_of_the_store(anywhere: Cluster) -> None:
    """What was written as a struct comes back as one from a typed store, and as builtins from an untyped one."""
    sessions = anywhere.kv.prefix("session:").typed(Session)
    await sessions.set("ada", Session("ada", 2))
    assert await sessions.get("ada") == Session("ada", 2)
    assert await anywhere.kv.get("session:ada") == {"user": "ada", "visits": 2}
    await anywhere.kv.set("session:bob", {"user": "bob", "left": "unknown"})
    assert await sessions.get("bob") == Session("bob")
    assert await sessions.prefix("b").get("ob") == Session("bob")
    times = anywhere.kv.typed(dict[str, datetime])
    now = datetime.now(UTC)
    await times.set("times", {"now": now})
    assert await times.get("times") == {"now": now}


async def test_a_value_of_another_type_names_its_key(anywhere: Cluster) -> None:
    """It is neither read, nor changed, nor written, and the error says which key and which field."""
    sessions = anywhere.kv.prefix("session:").typed(Session)
    await anywhere.kv.set("session:ada", {"user": 7})
    for call in (sessions.get("ada"), sessions.modify("ada", lambda session: session)):
        error = await failure(call)
        assert isinstance(error, MalformedMessage)
        assert re.search(r"session:ada.*Expected `str`, got `int`.*\$\.user", str(error))
    wrong: KeyValue[Any] = sessions
    for value in ("text", object(), Session(user=7)):  # type: ignore[arg-type]
        error = await failure(wrong.set("bob", value))
        assert isinstance(error, MalformedMessage)
        assert "session:bob" in str(error)
    assert not await sessions.has("bob")
    with pytest.raises(TypeError, match="its value"):
        anywhere.kv.typed(list[Session | Refusal])


async def test_none_cannot_be_stored(cluster: Cluster) -> None:
    """The error says what to do instead."""
    with pytest.raises(TypeError, match="use delete"):
        await cluster.kv.set("a", None)
    assert not await cluster.kv.has("a")


@pytest.mark.parametrize(
    "key", ["", "line\nbreak", "zero\x00", "\ud800", "k" * (MAX_KEY_BYTES + 1), "é" * (MAX_KEY_BYTES // 2 + 1), 7, None]
)
async def test_what_cannot_be_a_key_is_refused(cluster: Cluster, key: str) -> None:
    """Every method says so, and reaches no store."""
    kv = cluster.kv
    calls = (kv.get(key), kv.set(key, 1), kv.delete(key), kv.has(key), kv.ttl(key), kv.modify(key, lambda _: 1))
    for call in calls:
        assert isinstance(await failure(call), MalformedMessage)
    assert await kv.is_empty()


async def test_a_prefix_counts_for_the_length_of_a_key(cluster: Cluster) -> None:
    """The longest key is taken, one byte more is not, and neither is a prefix that no key could have."""
    short = cluster.kv.prefix("p" * 1000)
    await short.set("k" * (MAX_KEY_BYTES - 1000), 1)
    assert await short.size() == 1
    assert isinstance(await failure(short.set("k" * (MAX_KEY_BYTES - 999), 1)), MalformedMessage)
    assert isinstance(await failure(short.get("")), MalformedMessage)
    for text in ("p" * (MAX_KEY_BYTES + 1), "\x00", "\udfff"):
        with pytest.raises(MalformedMessage):
            cluster.kv.prefix(text)


async def test_a_value_has_at_most_a_mebibyte(anywhere: Cluster) -> None:
    """The largest one is written, read and changed; one byte more is MessageTooLarge, and nothing is written."""
    head = len(msgspec.msgpack.encode(b"x" * 70_000)) - 70_000
    largest = b"x" * (MAX_VALUE_BYTES - head)
    kv = anywhere.kv.typed(bytes)
    await kv.set("a", largest)
    assert await kv.modify("a", lambda data: b"y" + (data or b"")[1:]) == b"y" + largest[1:]
    error = await failure(kv.set("a", largest + b"x"))
    assert isinstance(error, MessageTooLarge)
    assert "'a'" in str(error)
    assert not error.possibly_executed
    assert isinstance(await failure(kv.modify("a", lambda data: (data or b"") + b"x")), MessageTooLarge)
    assert await kv.get("a") == b"y" + largest[1:]


async def test_concurrent_changes_lose_nothing(anywhere: Cluster) -> None:
    """Fifty tasks that each add one count fifty."""
    numbers = anywhere.kv.typed(int)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        changes = [tasks.create_task(numbers.modify("n", plus_one)) for _ in range(50)]
    assert sorted(change.result() or 0 for change in changes) == list(range(1, 51))
    assert await numbers.get("n") == 50


async def test_concurrent_changes_of_several_processes_lose_nothing(memory: MemoryCluster, runner: Cluster) -> None:
    """Neither do those of two runners, a client, and handlers."""
    processes = [runner, await memory.start_runner(), await memory.client()]
    await memory.settled()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        for number in range(20):
            for process in processes:
                tasks.create_task(process.kv.typed(int).modify("n", plus_one))
            tasks.create_task(processes[2].client(Desk)(str(number)).count("n"))
    assert await runner.kv.get("n") == 80


async def test_a_change_sees_what_is_there(anywhere: Cluster) -> None:
    """It makes, replaces, keeps and deletes, and the result is what is stored then."""
    kv = anywhere.kv
    seen: list[object] = []

    def becomes(new: object) -> Callable[[object], object]:
        def change(old: object) -> object:
            seen.append(old)
            return new

        return change

    assert await kv.modify("a", becomes(None)) is None
    assert await kv.modify("a", becomes((1, 2))) == [1, 2]
    assert await kv.modify("a", becomes([1, 2])) == [1, 2]
    assert await kv.modify("a", becomes("x")) == "x"
    assert await kv.modify("a", becomes(None)) is None
    assert not await kv.has("a")
    assert seen == [None, None, [1, 2], [1, 2], "x"]


async def test_a_change_may_use_what_it_gets(cluster: Cluster) -> None:
    """The value is its own, so changing it in place and returning it is a change."""
    kv = cluster.kv.typed(list[int])
    await kv.set("a", [1])

    def grown(numbers: list[int] | None) -> list[int]:
        assert numbers is not None
        numbers.append(len(numbers) + 1)
        return numbers

    assert await kv.modify("a", grown) == [1, 2]
    assert await kv.get("a") == [1, 2]


async def test_a_change_that_raises_changes_nothing(cluster: Cluster) -> None:
    """Its exception reaches the caller, and a coroutine function is refused."""
    await cluster.kv.set("a", 1)

    async def later(number: object) -> object:
        return number

    def failing(number: object) -> object:
        raise LookupError(number)

    assert isinstance(await failure(cluster.kv.modify("a", failing)), LookupError)
    error = await failure(cluster.kv.modify("a", later))
    assert isinstance(error, TypeError)
    assert "plain function" in str(error)
    assert await cluster.kv.get("a") == 1


async def test_a_value_lives_for_its_time(stepped: MemoryCluster, clock: SteppedClock) -> None:
    """It is there until its time is over, and neither a moment longer nor for any method."""
    kv = (await stepped.client()).kv
    await kv.set("a", 1, ttl=HOUR)
    await kv.set("b", 1)
    assert await kv.ttl("a") == HOUR
    clock.now += 3599
    assert await kv.ttl("a") == timedelta(seconds=1)
    assert await kv.get("a") == 1
    clock.now += 1
    assert await kv.get("a", "gone") == "gone"
    assert (await kv.has("a"), await kv.ttl("a"), await kv.delete("a"), await kv.size()) == (False, None, False, 1)
    assert await kv.ttl("b") is None
    assert await kv.modify("a", lambda value: [value]) == [None]


async def test_a_new_value_has_a_new_time(stepped: MemoryCluster, clock: SteppedClock) -> None:
    """Writing sets the time again or drops it, and a change keeps it, or gives its own to what it makes."""
    kv = stepped.runners[0].kv
    await kv.set("a", 1, ttl=HOUR)
    clock.now += 1800
    assert await kv.modify("a", plus_one, ttl=2 * HOUR) == 2
    assert await kv.ttl("a") == HOUR / 2
    await kv.set("a", 3, ttl=HOUR)
    assert await kv.ttl("a") == HOUR
    await kv.set("a", 4)
    assert await kv.ttl("a") is None
    assert await kv.modify("b", plus_one, ttl=HOUR) == 1
    clock.now += 1800
    assert await kv.modify("b", plus_one, ttl=HOUR) == 2
    assert await kv.ttl("b") == HOUR / 2
    clock.now += 1800
    assert await kv.modify("b", plus_one) == 1
    assert await kv.ttl("b") is None


@pytest.mark.parametrize("ttl", [timedelta(), timedelta(seconds=-1), timedelta(days=1_000_001), timedelta.max])
async def test_a_time_must_be_positive_and_finite(cluster: Cluster, ttl: timedelta) -> None:
    """ValueError says so, and nothing is written."""
    with pytest.raises(ValueError, match=r"must be more than zero|is longer than 1000000 days"):
        await cluster.kv.set("a", 1, ttl=ttl)
    with pytest.raises(ValueError, match=r"must be more than zero|is longer than 1000000 days"):
        await cluster.kv.modify("a", plus_one, ttl=ttl)
    assert not await cluster.kv.has("a")


async def test_the_longest_time_can_be_stored(anywhere: Cluster) -> None:
    """A million days from now is a time that every store knows."""
    await anywhere.kv.set("a", 1, ttl=timedelta(days=1_000_000))
    left = await anywhere.kv.ttl("a")
    assert left is not None
    assert left > timedelta(days=999_999)


async def test_runners_forget_expired_values(clock: SteppedClock) -> None:
    """What nobody sees any longer is removed from the store, and nothing else."""
    async with MemoryCluster(hub, clock=clock) as memory:
        values = memory.store.key_values
        for number in range(2500):
            values.put(f"k{number}", b"\x01", 1.0)
        values.put("stays", b"\x01", None)
        clock.now += 1
        runner = await memory.start_runner()
        await until(lambda: len(values) == 1, "only one value being kept")
        assert await runner.kv.get("stays") == 1


async def test_handlers_share_the_store(anywhere: Cluster) -> None:
    """What a handler wrote is there for everybody, also while it runs and after it raised."""
    desk = anywhere.client(Desk)("ada")
    await desk.note("a", "noted")
    assert await anywhere.kv.get("a") == "noted"
    assert isinstance(await failure(desk.note_and_refuse("a", "stays")), Refused)
    assert await anywhere.kv.get("a") == "stays"
    assert await desk.count("n") == 1
    assert await anywhere.kv.get("n") == 1


def test_a_store_shows_its_prefix() -> None:
    """Its text names the prefix, and no value."""

    async def shown() -> str:
        async with MemoryCluster(hub) as memory:
            return repr((await memory.start_runner()).kv.prefix("shop:"))

    assert asyncio.run(shown()) == "KeyValue(prefix='shop:')"
