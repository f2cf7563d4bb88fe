"""Which era of the database this process works in: no connection to another one is used until that one was entered."""

import asyncio
from datetime import UTC, datetime
from typing import Final

import asyncpg
import msgspec
from typing_extensions import override

from actorhub.core.errors import ConfigurationError, PersistenceError
from actorhub.core.logger import get_logger
from actorhub.storage.past import Past
from actorhub.storage.ports import Era
from actorhub.storage.postgres.connection import Connection, Database, Guard, begin, close, deadline
from actorhub.storage.postgres.control import STATEMENT_LIMIT
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, is_other_era, translate
from actorhub.storage.postgres.queries import queries, quoted
from actorhub.storage.postgres.schema import LOCK_TIMEOUT, migrate_over
from actorhub.storage.statistics import StorageCounters

_log: Final = get_logger(__name__)

_MANY: Final = 100_000


class Entered(msgspec.Struct, frozen=True, kw_only=True):
    """What a database reports about its present era."""

    era: Era
    begun_at: datetime
    is_copy: bool
    """Whether the era is the one of the original, and nobody has adopted the copy."""
    is_adopted: bool
    """Whether a copy was adopted with this."""
    server_started_at: int
    """Microseconds since the Unix epoch, by the server's clock."""
    table_oid: int


async def enter_era(connection: Connection, database: Database, *, adopts: bool = False) -> Entered:
    """Return the present era, after it was begun if nobody did that yet.

    Args:
        connection: Has no settings, and perhaps no session of its own.
        database: Where it leads.
        adopts: Make a copy a cluster of its own.

    Raises:
        FOREIGN_ERRORS: Postgres failed.
    """
    await connection.execute(begin(database.settings({"lock_timeout": LOCK_TIMEOUT})))
    row = await connection.fetchrow(queries()["enter_era"], adopts)
    await connection.execute("commit")
    assert row is not None
    return Entered(
        era=Era(row["cluster"], row["token"]),
        begun_at=row["begun_at"],
        is_copy=row["is_copy"],
        is_adopted=row["is_adopted"],
        server_started_at=row["server_started_at"],
        table_oid=row["table_oid"],
    )


async def describe_copy(connection: Connection, database: Database, found: Entered) -> str:
    """Return what to tell whoever meets a copy that nobody has adopted: what it would do, and the remedy."""
    await connection.execute(begin(database.settings({})))
    row = await connection.fetchrow(queries()["pending_work"])
    await connection.execute("commit")
    assert row is not None
    messages = f"{row['messages']}{' or more' if row['messages'] >= _MANY else ''}"
    since = found.begun_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return (
        f"schema {database.namespace} of {database.place} is a copy of the database of cluster {found.era.cluster}, "
        f"with {messages} pending messages and {row['schedules']} schedules that the original, as it worked since "
        f"{since}, may run as well: if the copy is complete, and is to take the original's place or to live on its "
        "own, run actorhub migrate --adopt"
    )


class Visit(msgspec.Struct, frozen=True):
    """What somebody found who did not come to work."""

    entered: Entered
    copy: str
    """What to say of a copy that nobody has adopted; empty if it is not one."""


async def visit_era(url: str, namespace: str, *, adopts: bool) -> Visit:
    """Return what the database's era is, after a copy was adopted if `adopts` says so.

    Raises:
        ConfigurationError: the database cannot be reached.
        PersistenceError: Postgres failed.
    """
    database = Database(url, namespace)
    connection = await database.first_connect("actorhub migrate")
    try:
        entered = await enter_era(connection, database, adopts=adopts)
        return Visit(entered, await describe_copy(connection, database, entered) if entered.is_copy else "")
    except FOREIGN_ERRORS as exc:
        raise translate(exc, "enter the database's era") from exc
    finally:
        await close(connection)


class EraGuard(Guard):
    """Lets connections into the present era only.

    Each connection is checked when it is made (`statement`), because a server process never changes its server. Behind
    a pooler in transaction mode each transaction is checked. Whoever finds another era has it entered (`renew`); only
    then the connection is used. So nothing that was asked in the belief of one era is written in another, unless
    whoever asked was told.
    """

    def __init__(self, database: Database, counters: StorageCounters) -> None:
        self._database = database
        self._counters = counters
        self._turn = asyncio.Lock()
        self._statement = ""
        self.past = Past()
        self.obstacle = ""
        """Why the database that answers cannot be used."""

    @property
    @override
    def era(self) -> str:
        return self.past.present.token

    @property
    @override
    def statement(self) -> str:
        return self._statement

    @override
    async def renew(self, failed: str) -> None:
        async with self._turn:
            if failed != self._statement:
                return  # Another connection was first.
            async with asyncio.timeout(STATEMENT_LIMIT.total_seconds()):
                connection = await self._database.bare_connect("actorhub start")
            try:
                async with deadline(connection, STATEMENT_LIMIT):
                    await self._enter(connection)
            finally:
                await close(connection)

    def on_entered(self, found: Entered, parted_at: int = 0) -> None:
        """Work in that era from now on.

        Args:
            found: The present era, and not a copy's.
            parted_at: How far the log had come where the database's past and this process's part.
        """
        self._statement = (
            f"select {quoted(self._database.namespace)}.check_era({found.server_started_at}, {found.table_oid}::oid, "
            f"'{found.era.token}')"
        )
        acknowledged, self._counters.acknowledged = self._counters.acknowledged, 0
        change = self.past.enter(found.era, parted_at=parted_at, acknowledged=acknowledged)
        if not change.lost:
            self._counters.acknowledge(acknowledged)

    async def _enter(self, connection: Connection) -> None:
        try:
            found = await self._find(connection)
            if found.is_copy:
                raise ConfigurationError(await describe_copy(connection, self._database, found))
            await connection.execute(begin(self._database.settings({})))
            parted_at = await connection.fetchval(queries()["parted_at"], self.past.tokens)
            await connection.execute("commit")
        except ConfigurationError as exc:
            if self.obstacle != str(exc):
                _log.error("the database cannot be used as it is now: %s", exc)
            self.obstacle = str(exc)
            raise asyncpg.CannotConnectNowError(str(exc)) from exc
        except PersistenceError as exc:
            raise asyncpg.CannotConnectNowError(str(exc)) from exc
        self.obstacle = ""
        self.on_entered(found, parted_at)

    async def _find(self, connection: Connection) -> Entered:
        try:
            return await enter_era(connection, self._database)
        except asyncpg.CannotConnectNowError as exc:
            raise ConfigurationError(f"{self._database.place}: {exc}") from exc
        except asyncpg.PostgresError as exc:
            if not is_other_era(exc):
                raise
        await connection.execute("rollback")
        if not await self._is_whole(connection):
            raise ConfigurationError(
                f"{self._database.place} has no complete schema {self._database.namespace}: a restore seems to be "
                "under way; if none is, run actorhub migrate"
            )
        # The data is older than the schema of this release.
        await migrate_over(connection, self._database)
        return await enter_era(connection, self._database)

    async def _is_whole(self, connection: Connection) -> bool:
        """Whether a release has migrated the schema: one that is being restored gets its keys after its rows."""
        await connection.execute(begin(self._database.settings({})))
        found = await connection.fetchval(queries()["is_whole"], self._database.namespace)
        await connection.execute("commit")
        return bool(found)
