"""Stored messages that cannot be read, or are for nobody: each is a dead letter, and its neighbours run."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from actorhub import Cluster, Entity, Hub, MalformedMessage, Singleton, handler
from actorhub.conformance.unreadable_messages import unreadable
from actorhub.storage.message_ports import MessageFilter, MessageState, MessageStore, NewMessage
from actorhub.testing import MemoryCluster
from tests.support.parts import runner_of
from tests.support.postgres_server import PostgresServer

hub = Hub()
DEAD = MessageFilter(states=frozenset({MessageState.DEAD}))


class Books(Entity[list[str]], name="books"):
    """One list."""

    @handler(durable=True)
    async def add(self, line: str) -> int:
        """Add a line."""
        self.state.append(line)
        return len(self.state)

    async def read(self) -> list[str]:
        """Return the lines."""
        return self.state


class Keeper(Singleton[int], name="keeper"):
    """The one keeper."""

    @handler(durable=True)
    async def note(self, line: str) -> str:
        """Return the line."""
        return line


hub.register(Books)
hub.register(Keeper)


class Store:
    """The way of a hand into the store of a runner."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.messages: MessageStore = runner_of(cluster).storage.messages

    def row(self, entity: type[Any] = Books, entity_id: str = "ada", line: str = "x", **more: Any) -> NewMessage:
        """Return a row like those of the engine's own."""
        spec = entity.__declaration__.spec
        fields: dict[str, Any] = {
            "message_id": int(self.cluster.snowflake()),
            "shard": runner_of(self.cluster).node.router.sharding.shard_of(spec, entity_id),
            "entity_type": spec.name,
            "entity_id": entity_id,
            "handler": next(iter(spec.handlers)),
            "body": spec.handlers[next(iter(spec.handlers))].arguments.encode((line,)),
        }
        return NewMessage(**{**fields, **more})

    async def insert(self, *rows: NewMessage) -> None:
        """Store rows behind the runner's back, and have it look."""
        for future in [self.messages.deposit(row) for row in rows]:
            await future
        await self.cluster.poll_storage()

    async def dead(self, count: int) -> list[int]:
        """Return the ids of the dead letters, once there are so many."""
        async with asyncio.timeout(10):
            while len(found := await self.messages.messages(DEAD)) < count:
                await asyncio.sleep(0.01)
        return [row.message_id for row in found]


@pytest.fixture(params=["memory", "postgres"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """The store of a runner, in memory and in a real Postgres."""
    if request.param == "memory":
        async with MemoryCluster(hub) as memory:
            yield Store(await memory.start_runner())
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    url = await server.create_database()
    grace = timedelta(seconds=2)
    async with hub.runner(database_url=url, listen="127.0.0.1:0", shards_per_group=16, grace=grace) as cluster:
        yield Store(cluster)
    await server.drop_database(url)


async def test_a_row_that_cannot_be_read_is_a_dead_letter_beside_its_neighbours(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of its entity and of others run, whoever waits for it is answered, and the log says it once."""
    cluster, bad = store.cluster, unreadable(store.row())
    with caplog.at_level(logging.WARNING):
        await store.insert(store.row(line="before"), bad, store.row(line="after"), store.row(entity_id="bob"))
        assert await store.dead(1) == [bad.message_id]
        with pytest.raises(MalformedMessage, match=r"cannot be read: headers: .*tenant"):
            await cluster.reply(bad.message_id)
        books = cluster.client(Books)
        assert await asyncio.gather(*(books(name).add("new") for name in ("ada", "bob", "eve"))) == [3, 2, 1]
        assert await books("ada").read() == ["before", "after", "new"]
        for _ in range(5):
            await cluster.poll_storage()
            assert await books("bob").add("more") > 2
    assert len([record for record in caplog.records if str(bad.message_id) in record.getMessage()]) == 1
    assert len(caplog.records) == 1


async def test_one_that_is_due_later_is_a_dead_letter_too(store: Store) -> None:
    """It is found by the scan for due messages, beside those that are due."""
    bad, good = unreadable(store.row(delay=0.05)), store.row(delay=0.05)
    await store.insert(bad, good)
    assert await store.dead(1) == [bad.message_id]
    assert await store.cluster.reply(good.message_id) == 1


async def test_rows_for_nobody_are_dead_letters(store: Store) -> None:
    """Ids that no entity can have, other ids of a singleton, and the id of no message."""
    nobodys = [
        store.row(entity_id="tab\there"),
        store.row(entity_id="", shard=store.row().shard),
        store.row(Keeper, entity_id="another"),
        store.row(message_id=0),
    ]
    await store.insert(*nobodys, store.row(), store.row(Keeper, entity_id="keeper"))
    assert set(await store.dead(4)) == {row.message_id for row in nobodys}
    for row, text in zip(nobodys, ("control character", "empty", "keeper is a singleton", "id 0"), strict=True):
        with pytest.raises(MalformedMessage, match=text):
            await store.cluster.reply(row.message_id)
    assert await store.cluster.client(Books)("ada").add("y") == 2
    assert await store.cluster.singleton(Keeper).note("y") == "y"


async def test_a_dead_letter_that_cannot_be_read_is_retried_cancelled_and_purged(store: Store) -> None:
    """Retried it is one again, cancelled it is one no longer, and purged it is gone."""
    first, second = unreadable(store.row()), unreadable(store.row())
    await store.insert(first, second)
    assert await store.dead(2) == [first.message_id, second.message_id]
    assert await store.cluster.retry(first.message_id)
    with pytest.raises(MalformedMessage, match="headers"):
        await store.cluster.reply(first.message_id)
    assert await store.cluster.cancel(first.message_id)
    assert await store.dead(1) == [second.message_id]
    assert await store.messages.purge(DEAD) == 1
    assert await store.messages.messages(DEAD) == []
    assert not await store.cluster.cancel(second.message_id)


async def test_rows_that_cannot_be_read_do_not_hide_what_is_behind_them(store: Store) -> None:
    """However many of them come first."""
    bad = [unreadable(store.row(entity_id=name)) for name in ("ada", "bob") for _ in range(100)]
    good = [store.row(entity_id=name) for name in ("ada", "bob")]
    await store.insert(*bad, *good)
    assert [await store.cluster.reply(row.message_id) for row in good] == [1, 1]
    assert len(await store.dead(200)) == 200
