"""What Postgres adds to the key-value store: lost answers, slow neighbours, bounds, plans."""

import asyncio

import asyncpg
import pytest

from actorhub.conformance.key_values import LONG, SHORT, gone, value
from actorhub.core.clock import SystemClock
from actorhub.core.errors import PersistenceError
from actorhub.storage.postgres import PostgresStorage
from actorhub.storage.postgres.batching import MAX_WAITING_BYTES
from actorhub.storage.postgres.key_values import WRITERS
from actorhub.storage.postgres.queries import queries
from tests.storage.conftest import PostgresWorld
from tests.storage.lossy_link import LossyLink
from tests.storage.waits import held, until_blocked

_FILL = """
insert into key_value (key, data, expires_at)
select 'k' || n, 'v', case when n % 2 = 0 then now() + interval '1 hour' end from generate_series(1, 20000) as n
"""


def keys_of_every_writer() -> list[str]:
    """Return a key for each connection that writes."""
    found = {hash(key) % WRITERS: key for key in (f"k{number}" for number in range(1000))}
    return [found[number] for number in range(WRITERS)]


async def test_a_write_whose_answer_is_lost_is_not_repeated(postgres_world: PostgresWorld) -> None:
    """Its error says that it may have happened, which it did, and what others wrote afterwards stays."""
    near = (await postgres_world.storage()).key_values
    async with LossyLink(postgres_world.url).served() as link:
        storage = PostgresStorage(link.url, clock=SystemClock())
        await storage.open()
        far = storage.key_values
        await far.put("k", b"zero", None)
        link.lose_next_answer()
        with pytest.raises(PersistenceError) as lost:
            await far.put("k", b"one", None)
        assert lost.value.possibly_executed
        assert await value(near, "k") == b"one"
        await near.put("k", b"two", None)
        link.mend()
        assert await value(far, "k") == b"two"
        assert await far.swap("k", b"two", b"three", None)
        await storage.aclose()


async def test_a_read_whose_answer_is_lost_is_repeated(postgres_world: PostgresWorld) -> None:
    """The caller sees a delay."""
    async with LossyLink(postgres_world.url).served() as link:
        storage = PostgresStorage(link.url, clock=SystemClock())
        await storage.open()
        far = storage.key_values
        await far.put("k", b"one", None)
        await far.get("k")
        link.lose_next_answer()
        async with asyncio.TaskGroup() as tasks:
            read = tasks.create_task(value(far, "k"))
            await link.lost.wait()
            link.mend()
        assert read.result() == b"one"
        await storage.aclose()


async def test_a_refused_write_did_not_happen(postgres_world: PostgresWorld) -> None:
    """What the server cannot store fails with a known outcome, and the connection goes on."""
    store = (await postgres_world.storage()).key_values
    with pytest.raises(PersistenceError) as refused:
        await store.put("zero\x00byte", b"v", None)
    assert not refused.value.possibly_executed
    await store.put("k", b"v", None)


async def test_a_closed_store_writes_nothing(postgres_world: PostgresWorld) -> None:
    """The error says so."""
    storage = await postgres_world.storage()
    await storage.aclose()
    with pytest.raises(PersistenceError, match="closed") as closed:
        await storage.key_values.put("k", b"v", None)
    assert not closed.value.possibly_executed


async def test_a_slow_write_holds_its_own_key_up(postgres_world: PostgresWorld) -> None:
    """While another session locks one key, the other connections write, and everybody reads."""
    store = (await postgres_world.storage()).key_values
    slow, *others = keys_of_every_writer()
    await store.put(slow, b"one", None)
    lock = f"update key_value set data = 'x' where key = '{slow}'"
    async with asyncio.TaskGroup() as tasks, held(postgres_world, lock) as observer:
        waiting = tasks.create_task(store.put(slow, b"two", None))
        await until_blocked(observer)
        for key in others:
            await store.put(key, b"v", None)
        assert await value(store, slow) == b"one"
        assert not waiting.done()
    assert await value(store, slow) == b"two"


async def test_waiting_writes_are_bounded(postgres_world: PostgresWorld) -> None:
    """Writes that would take more memory than is allowed are refused at once, and those before them go through."""
    storage = await postgres_world.storage()
    store = storage.key_values
    data = b"x" * (1 << 20)
    most = MAX_WAITING_BYTES // len(data)
    lock = "lock table key_value in share mode"
    async with asyncio.TaskGroup() as tasks, held(postgres_world, lock) as observer:
        writes = [tasks.create_task(store.put(f"k{number % 7}", data, None)) for number in range(most)]
        await until_blocked(observer)
        with pytest.raises(PersistenceError, match="wait already") as refused:
            await store.put("one more", data, None)
        assert storage.statistics().waiting == most
        for write in writes:
            write.cancel()
    assert not refused.value.possibly_executed
    assert storage.statistics().waiting == 0


async def test_prefixes_and_expiry_use_indexes(postgres_world: PostgresWorld) -> None:
    """Neither counting, clearing nor forgetting a few of many reads the whole table."""
    store = (await postgres_world.storage()).key_values
    sql = await postgres_world.sql()
    await sql.execute(_FILL)
    await sql.execute("vacuum analyze key_value")
    await store.put("few:1", b"v", SHORT)
    await gone(store, "few:1")
    assert await _plan(sql, "count_values", "few:%", None) == {"Index Scan"}
    assert "Seq Scan" not in await _plan(sql, "clear_values", "few:%", "", 100)
    assert "Seq Scan" not in await _plan(sql, "remove_expired_values", 100)


async def _plan(sql: "asyncpg.Connection[asyncpg.Record]", query: str, *arguments: object) -> set[str]:
    """Return the kinds of scans that the query makes."""
    await sql.execute("set plan_cache_mode = force_custom_plan")
    rows = await sql.fetch(f"explain {queries()[query]}", *arguments)
    lines = [row[0] for row in rows]
    return {kind for kind in ("Seq Scan", "Index Scan", "Index Only Scan") if any(kind in line for line in lines)}


async def test_a_put_beside_the_removal_of_expired_values_stays(postgres_world: PostgresWorld) -> None:
    """A value that expired and is written again while the old one is being forgotten is not lost."""
    store = (await postgres_world.storage()).key_values
    for _ in range(20):
        await store.put("k", b"old", SHORT)
        await gone(store, "k")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(store.remove_expired(10))
            tasks.create_task(store.put("k", b"new", LONG))
        assert await value(store, "k") == b"new"
