"""The limits of durable messages: the least that Postgres must do for a message, over asyncpg and nothing else.

A durable ask stores the request and then the reply, in two commits, one after the other. `insert_only` writes the reply
into a table of its own, and that row alone says that the request is done. `delete_on_done` also deletes the request.
`indexed` does that, too, and its requests have the columns and the index that are needed to find the messages of an
entity. A durable tell is accepted with one commit. All requests that queue while the last commit is in progress become
one statement with arrays, and each kind of statement has its own connection.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import asyncpg

from benchmarks._workload import ENCODED

if TYPE_CHECKING:
    from asyncpg.prepared_stmt import PreparedStatement

_TABLES: Final = ("request", "reply", "inbox", "done", "told", "indexed_done")
_INDEXED: Final = """
    create table indexed (
        id bigint primary key, shard integer not null, entity_type text not null, entity_id text not null,
        handler text not null, body bytea not null, created_at timestamptz not null default now()
    );
    create index on indexed (shard, entity_type, entity_id, id)
"""
_INSERT: Final = "insert into {} (id, body) select * from unnest($1::bigint[], $2::bytea[])"
_INSERT_INDEXED: Final = """
    insert into indexed (id, shard, entity_type, entity_id, handler, body)
    select * from unnest($1::bigint[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::bytea[])
"""
_DELETE_ON_DONE: Final = """
    with gone as (delete from {} where id = any($1::bigint[]))
    insert into {} (id, body) select * from unnest($1::bigint[], $2::bytea[])
"""
_STATEMENTS: Final = {
    **{table: _INSERT.format(table) for table in ("request", "reply", "inbox", "told")},
    "done": _DELETE_ON_DONE.format("inbox", "done"),
    "indexed": _INSERT_INDEXED,
    "indexed_done": _DELETE_ON_DONE.format("indexed", "indexed_done"),
}


class Grouped:
    """Writes rows in groups. The rows that queue while one group is written are the next group."""

    def __init__(self, statement: "PreparedStatement") -> None:
        self._statement = statement
        self._queue: list[tuple[tuple[object, ...], asyncio.Future[None]]] = []
        self._wakeup: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()

    def write(self, *row: object) -> "asyncio.Future[None]":
        """Queue a row. The future is done once the row is committed."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._queue.append((row, done))
        if self._wakeup is not None:
            self._wakeup.set_result(None)
            self._wakeup = None
        return done

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            if not self._queue:
                self._wakeup = self._loop.create_future()
                await self._wakeup
            group, self._queue = self._queue, []
            await self._statement.fetch(*zip(*(row for row, _ in group), strict=True))
            for _, done in group:
                done.set_result(None)


@dataclass(frozen=True, slots=True)
class DurableLimits:
    """The limits, for the same closed loop that calls a product."""

    numbers: "itertools.count[int]"
    request: Grouped
    reply: Grouped
    inbox: Grouped
    done: Grouped
    told: Grouped
    indexed: Grouped
    indexed_done: Grouped

    async def insert_only(self, _: int) -> None:
        """Store a request, then its reply."""
        number = next(self.numbers)
        await self.request.write(number, ENCODED)
        await self.reply.write(number, ENCODED)

    async def delete_on_done(self, _: int) -> None:
        """Store a request, then delete it and store its reply."""
        number = next(self.numbers)
        await self.inbox.write(number, ENCODED)
        await self.done.write(number, ENCODED)

    async def delete_indexed(self, step: int) -> None:
        """Store a request that can be found by its entity, then delete it and store its reply."""
        number, entity = next(self.numbers), step % 256
        await self.indexed.write(number, entity, "durable", f"e{entity}", "echo", ENCODED)
        await self.indexed_done.write(number, ENCODED)

    async def tell(self, _: int) -> None:
        """Store a request."""
        await self.told.write(next(self.numbers), ENCODED)


@contextlib.asynccontextmanager
async def durable_limits(url: str, schema: str) -> AsyncGenerator[DurableLimits, None]:
    """Make the tables in a schema with this name, and the limits on their own connections."""
    async with contextlib.AsyncExitStack() as stack:
        first = await _connect(stack, url, schema)
        await first.execute(f"create schema {schema}")
        for table in _TABLES:
            await first.execute(f"create table {table} (id bigint primary key, body bytea not null)")
        await first.execute(_INDEXED)
        writers = {
            table: Grouped(await (await _connect(stack, url, schema)).prepare(sql))
            for table, sql in _STATEMENTS.items()
        }
        async with running(list(writers.values())):
            yield DurableLimits(itertools.count(1), **writers)


@contextlib.asynccontextmanager
async def running(writers: Sequence[Grouped]) -> AsyncGenerator[None, None]:
    """Let the writers write for a while."""
    async with asyncio.TaskGroup() as tasks:
        writing = [tasks.create_task(writer.run()) for writer in writers]
        yield
        for task in writing:
            task.cancel()


async def _connect(stack: contextlib.AsyncExitStack, url: str, schema: str) -> "asyncpg.Connection[asyncpg.Record]":
    # A plan that is made while the tables are nearly empty would keep scanning them.
    settings = {"search_path": schema, "plan_cache_mode": "force_custom_plan"}
    connection = await asyncpg.connect(url, server_settings=settings)
    stack.push_async_callback(connection.close)
    return connection
