"""The promises of `actorhub.storage.key_value_ports`, as tests that every key-value store must pass.

Subclass the suites in a test module and give it the fixtures `store` and `other`: one store, as two processes have it.
"""

import asyncio

from actorhub.conformance.storage import PATIENCE_SECONDS
from actorhub.core.key_value import MAX_VALUE_BYTES
from actorhub.storage.key_value_ports import ClearStep, KeyValues, KeyValueStore

SHORT = 0.02
"""Seconds that a value lives that a test sees expire."""
LONG = 3600.0


async def value(store: KeyValues, key: str) -> bytes | None:
    """Return the stored bytes of `key`."""
    stored = await store.get(key)
    return None if stored is None else stored.data


async def gone(store: KeyValues, key: str) -> None:
    """Return once the time of `key` is over."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await store.get(key) is not None:  # noqa: ASYNC110 - only the store's clock tells
            await asyncio.sleep(SHORT / 4)


async def incremented(store: KeyValues, key: str) -> None:
    """Add one to a number, by comparing and trying again."""
    while True:
        before = await value(store, key)
        after = b"%d" % (int(before or b"0") + 1)
        if await store.swap(key, before, after, None):
            return


class KeyValueSuite:
    """Reading and writing."""

    async def test_a_value_is_seen_by_every_process(self, store: KeyValues, other: KeyValues) -> None:
        """What one process wrote, replaced or deleted, another one sees as soon as it was acknowledged."""
        assert await other.get("k") is None
        await store.put("k", b"one", None)
        assert await value(other, "k") == b"one"
        await other.put("k", b"two", None)
        assert await value(store, "k") == b"two"
        assert await store.delete("k")
        assert not await other.delete("k")
        assert await other.get("k") is None

    async def test_any_bytes_under_any_text_come_back(self, store: KeyValues) -> None:
        """Empty values, zero bytes, a value at the limit, keys of every script and with every wildcard."""
        pairs = {
            "empty": b"",
            "zero": b"\x00\xff\x00",
            "large": b"x" * MAX_VALUE_BYTES,
            "k%_\\'\"": b"wildcards",
            "ключ 鍵 🔑": b"scripts",
            "k" * 1024: b"long",
        }
        for key, data in pairs.items():
            await store.put(key, data, None)
        assert {key: await value(store, key) for key in pairs} == pairs
        assert await store.count("", None) == len(pairs)

    async def test_many_are_read_at_once(self, store: KeyValues) -> None:
        """Each of many concurrent reads gets its own value, also where the values are large and some are missing."""
        sizes = {f"k{number}": 1 if number % 2 else MAX_VALUE_BYTES for number in range(30)}
        for number, (key, size) in enumerate(sizes.items()):
            await store.put(key, b"%c" % number * size, None)
        async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
            reads = [tasks.create_task(value(store, f"k{number % 32}")) for number in range(64)]
        for number, read in enumerate(reads):
            expected = None if number % 32 >= 30 else b"%c" % (number % 32) * sizes[f"k{number % 32}"]
            assert read.result() == expected

    async def test_a_swap_writes_only_over_what_it_expects(self, store: KeyValues) -> None:
        """It makes, replaces, removes or leaves alone if the value is the expected one, else it does nothing."""
        assert not await store.swap("k", b"one", b"two", None)
        assert not await store.swap("k", b"one", None, None)
        assert await store.swap("k", None, None, None)
        assert await store.swap("k", None, b"one", None)
        assert not await store.swap("k", None, b"two", None)
        assert not await store.swap("k", None, None, None)
        assert not await store.swap("k", b"other", b"two", None)
        assert await value(store, "k") == b"one"
        assert await store.swap("k", b"one", b"two", None)
        assert not await store.swap("k", b"one", None, None)
        assert await store.swap("k", b"two", None, None)
        assert await store.get("k") is None

    async def test_concurrent_swaps_lose_nothing(self, store: KeyValues, other: KeyValues) -> None:
        """Of all that swap for the same value one wins, so a count by many in two processes is exact."""
        async with asyncio.timeout(3 * PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
            for number in range(40):
                tasks.create_task(incremented(store if number % 2 else other, "count"))
        assert await value(store, "count") == b"40"

    async def test_keys_are_counted_and_cleared_by_prefix(self, store: KeyValues) -> None:
        """Wildcards in a prefix stand for themselves, and case counts."""
        for key in ("a%:1", "a%:2", "a%", "a", "ab:1", "a_:1", "A%:1", "a\\:1", "z"):
            await store.put(key, b"v", None)
        counts = {prefix: await store.count(prefix, None) for prefix in ("", "a", "a%", "a%:", "a_", "a\\", "b")}
        assert counts == {"": 9, "a": 7, "a%": 3, "a%:": 2, "a_": 1, "a\\": 1, "b": 0}
        assert await store.count("a", 5) == 5
        assert await store.clear("a%", "", 100) == ClearStep(3, None)
        assert await store.count("", None) == 6
        assert await store.clear("", "", 100) == ClearStep(6, None)
        assert await store.count("", 1) == 0

    async def test_clearing_goes_on_behind_the_last_key(self, store: KeyValues) -> None:
        """Steps go by the order of UTF-8, and what is written behind them meanwhile stays."""
        for key in ("pB", "pa", "pä", "p🔑", "p\uffff"):
            await store.put(key, b"v", None)
        assert await store.clear("p", "", 2) == ClearStep(2, "pa")
        await store.put("pA", b"v", None)
        assert await store.clear("p", "pa", 2) == ClearStep(2, "p\uffff")
        assert await store.clear("p", "p\uffff", 2) == ClearStep(1, None)
        assert await store.count("", None) == 1

    async def test_a_value_has_a_time(self, store: KeyValues) -> None:
        """Its end is told by the reads, kept by a swap, and set again, or dropped, by a put."""
        await store.put("k", b"one", LONG)
        assert await store.swap("k", b"one", b"two", 2 * LONG)
        stored = await store.get("k")
        assert stored is not None
        assert stored.ttl is not None
        assert LONG - PATIENCE_SECONDS < stored.ttl <= LONG
        await store.put("k", b"three", 2 * LONG)
        stored = await store.get("k")
        assert stored is not None
        assert stored.ttl is not None
        assert stored.ttl > LONG
        await store.put("k", b"four", None)
        stored = await store.get("k")
        assert stored is not None
        assert stored.ttl is None

    async def test_a_value_that_a_swap_makes_has_a_time(self, store: KeyValues) -> None:
        """It ends like one that was put, and its replacement with it."""
        assert await store.swap("k", None, b"one", SHORT)
        await gone(store, "k")
        assert await store.swap("k", None, b"two", LONG)
        stored = await store.get("k")
        assert stored is not None
        assert stored.ttl is not None

    async def test_an_expired_value_is_gone_for_every_method(self, store: KeyValues) -> None:
        """It is neither counted, nor found to be replaced, deleted or cleared, and makes room for a new one."""
        for key in ("a", "b", "c", "d", "e"):
            await store.put(key, b"v", SHORT)
        for key in ("a", "b", "c", "d", "e"):
            await gone(store, key)
        assert await store.count("", None) == 0
        assert not await store.delete("a")
        assert not await store.swap("b", b"v", b"w", None)
        assert not await store.swap("b", b"v", None, None)
        assert await store.swap("c", None, b"new", None)
        assert await store.clear("", "c", 100) == ClearStep(0, None)
        await store.put("d", b"new", None)
        assert await store.clear("", "", 100) == ClearStep(2, None)


class ExpirySuite:
    """Forgetting what nobody sees any longer."""

    async def test_expired_values_are_removed_in_steps(self, store: KeyValueStore) -> None:
        """A step takes so many at most, and nothing else."""
        await store.put("stays", b"v", None)
        await store.put("lives", b"v", LONG)
        for number in range(5):
            await store.put(f"k{number}", b"v", SHORT)
        for number in range(5):
            await gone(store, f"k{number}")
        await store.put("k0", b"again", None)
        assert await store.remove_expired(3) == 3
        assert await store.remove_expired(3) == 1
        assert await store.remove_expired(3) == 0
        assert await store.count("", None) == 3
