"""The first connection of a storage: what is there, whether it will do, and the schema."""

from typing import Final

from actorhub.core.errors import ConfigurationError
from actorhub.core.logger import get_logger
from actorhub.storage.postgres.connection import Database, PoolMode, close
from actorhub.storage.postgres.eras import Entered, describe_copy, enter_era
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, POOLER, translate
from actorhub.storage.postgres.pool_mode import find_mode
from actorhub.storage.postgres.queries import queries
from actorhub.storage.postgres.schema import migrate_over
from actorhub.storage.postgres.server import ServerFacts, check_server, server_facts

_log: Final = get_logger(__name__)


async def start(database: Database) -> tuple[ServerFacts, Entered]:
    """Find out how Postgres is reached, check it, bring the schema up to date, and enter the present era.

    Raises:
        ConfigurationError: the database cannot be used; says what to do.
        PersistenceError: Postgres failed.
    """
    connection = await database.first_connect("actorhub start")
    try:
        database.mode = await find_mode(database, connection)
        if database.mode is not PoolMode.DIRECT:
            _log.info("Postgres at %s is reached through %s", database.place, _MODES[database.mode])
        try:
            row = await connection.fetchrow(queries()["server"])
        except FOREIGN_ERRORS as exc:
            raise translate(exc, "read the server's settings") from exc
        assert row is not None
        facts = server_facts(row)
        check_server(facts, database.place)
        await migrate_over(connection, database)
        try:
            entered = await enter_era(connection, database)
            if entered.is_copy:
                raise ConfigurationError(await describe_copy(connection, database, entered))
        except FOREIGN_ERRORS as exc:
            raise translate(exc, "enter the database's era") from exc
        return facts, entered
    finally:
        await close(connection)


async def check_lock_way(database: Database) -> None:
    """Find out how the lock session will reach Postgres.

    Raises:
        ConfigurationError: in a way in which it cannot hold locks.
    """
    connection = await database.first_connect("actorhub start")
    try:
        database.mode = await find_mode(database, connection)
    finally:
        await close(connection)
    if database.mode is PoolMode.TRANSACTION:
        raise ConfigurationError(f"--lock-database leads to {database.place}, through a pooler as well: {POOLER}")


_MODES: Final = {
    PoolMode.SESSION: "a pooler in session mode: its pool must have room for --max-connections of each runner",
    PoolMode.TRANSACTION: "a pooler in transaction mode: statements take more round trips, and a runner's lock session "
    "needs another way (--lock-database), or none with --locks lease",
}
