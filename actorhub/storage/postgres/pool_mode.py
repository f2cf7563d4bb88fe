"""Finding out what sits between this process and Postgres."""

import asyncio
from typing import Final

import asyncpg

from actorhub.core.errors import ConfigurationError
from actorhub.storage.postgres.connection import Connection, Database, PoolMode
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, refused_connection
from actorhub.storage.postgres.queries import queries

_PROBES: Final = 3
_ANSWER_LIMIT: Final = 2.0
"""Seconds; a pool that has no session left answers with silence."""


async def find_mode(database: Database, first: Connection) -> PoolMode:
    """Return what answers on `first`, a new connection without settings.

    A pooler tells a key of its own for cancelling, where Postgres tells the process id. A pooler in transaction mode
    gives the session that one connection has just used to the next one that begins a transaction.

    Raises:
        ConfigurationError: the pooler passes on single statements only, or the connection was lost.
    """
    others: list[Connection] = []
    pids: set[int] = set()
    try:
        pids |= {await _pid(first), await _pid(first)}
        if pids == {first.get_server_pid()}:
            return PoolMode.DIRECT
        for _ in range(_PROBES):
            if len(pids) > 1:
                return PoolMode.TRANSACTION
            others.append(await database.bare_connect("actorhub start"))
            async with asyncio.timeout(_ANSWER_LIMIT):
                # It keeps the session, so that the next one is given another.
                await others[-1].execute("begin")
                if await _pid(others[-1]) in pids:
                    return PoolMode.TRANSACTION
                pids.add(await _pid(first))
    except TimeoutError:
        pass  # the pool has no session left: what was found until now counts
    except asyncpg.PostgresError as exc:
        if "statement pooling" in str(exc):
            raise ConfigurationError(
                f"the pooler at {database.place} is in statement mode, in which nothing can be committed "
                "together: set pool_mode to transaction or session"
            ) from exc
        raise refused_connection(exc, database.place) from exc
    except FOREIGN_ERRORS as exc:
        raise refused_connection(exc, database.place) from exc
    finally:
        for other in others:
            other.terminate()
    return PoolMode.TRANSACTION if len(pids) > 1 else PoolMode.SESSION


async def check_settings(connection: Connection, database: Database) -> None:
    """Check that `connection` has kept its settings: that its session is its own.

    Raises:
        InterfaceError: it has not.
    """
    kept = await connection.fetchval(queries()["settings_kept"], database.namespace)
    if not kept or await _pid(connection) != await _pid(connection):
        raise asyncpg.InterfaceError("a pooler gave this connection another session than the one that was set up")


async def _pid(connection: Connection) -> int:
    pid: int = await connection.fetchval("select pg_backend_pid()")
    return pid
