"""The one place where asyncpg's and the operating system's exceptions become ours."""

import enum
from typing import Final

import asyncpg

from actorhub.core.errors import ConfigurationError, PersistenceError

TRANSPORT_ERRORS: Final = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)
FOREIGN_ERRORS: Final = (asyncpg.PostgresError, UnicodeError, *TRANSPORT_ERRORS)
"""Everything that talking to Postgres raises; `TimeoutError` is an `OSError`."""

POOLER: Final = (
    "a pooler in transaction mode gives one server session to many connections in turn, and the locks of a runner's "
    "shards live in one session: name a direct way to the same database, or one through a pool in session mode, for "
    "the lock session alone (--lock-database URL), or start every runner with --locks lease"
)

_TRANSIENT_CLASSES: Final = ("08", "25", "40", "53", "57", "58")
"""Connection, read-only or broken transaction, rollback (deadlock), resources, operator intervention, system error."""
_LOST_CLASSES: Final = ("08", "25", "53", "57", "58")
_LOCK_NOT_AVAILABLE: Final = "55P03"
_DATA_CLASSES: Final = ("21", "22", "23", "44", "54")
"""Cardinality, data, constraint, check option, program limit: one row of a batch may be to blame."""

_REMEDIES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        "check user and password in the database URL, and the server's pg_hba.conf",
    ),
    (asyncpg.InvalidCatalogNameError, "create the database, or name another one in the database URL"),
    (asyncpg.ClientConfigurationError, "write postgresql://user:password@host:port/database"),
)
_LIMITS: Final = (
    ("for role", "raise the limit of this role (alter role … connection limit …)"),
    ("for database", "raise the limit of this database (alter database … connection limit …)"),
    ("max_client_conn", "raise the pooler's max_client_conn"),
    ("", "raise the server's max_connections, or end other clients"),
)
"""What the message of a limit says, and what to do."""


OTHER_ERA: Final = "57AER"
"""What a connection fails with that leads to another run of the server, or to another database, than is known."""
_MISSING: Final = ("42P01", "42883", "3F000")
"""A table, a function or a schema."""
_FOREIGN_STATEMENTS: Final = ("26000", "42P05")
"""A prepared statement that is missing, or there already: another server session answered."""


class Cause(enum.Enum):
    """What can be done about a failed statement."""

    TRANSIENT = "connect again and repeat"
    DATA = "a row is to blame: try the rows apart"
    PERMANENT = "repeating is useless"


def cause(error: BaseException) -> Cause:
    """Return what can be done about `error`, one of `FOREIGN_ERRORS`."""
    if isinstance(error, ValueError):
        return Cause.DATA  # asyncpg or the codec could not encode an argument
    if isinstance(error, asyncpg.PostgresError):
        state = str(error.sqlstate or "")
        # An outdated plan is made again on the next connection.
        is_outdated = isinstance(error, asyncpg.InvalidCachedStatementError)
        if state.startswith(_TRANSIENT_CLASSES) or state == _LOCK_NOT_AVAILABLE or is_outdated:
            return Cause.TRANSIENT
        return Cause.DATA if state.startswith(_DATA_CLASSES) else Cause.PERMANENT
    return Cause.TRANSIENT


def translate(error: BaseException, doing: str) -> PersistenceError:
    """Return the `PersistenceError` for `error`; raise it `from` that."""
    remedy = f": {_remedy(error)}" if limit_met(error) else ""
    return PersistenceError(f"cannot {doing}: {summary(error)}{remedy}")


def spoils_connection(error: BaseException) -> bool:
    """Whether the session should not be used again: it is lost, read-only, or what it prepared is outdated."""
    if isinstance(error, asyncpg.PostgresError):
        state = str(error.sqlstate or "")
        is_outdated = isinstance(error, asyncpg.InvalidCachedStatementError)
        return is_outdated or state.startswith(_LOST_CLASSES) or state in _FOREIGN_STATEMENTS
    return isinstance(error, TRANSPORT_ERRORS) and not isinstance(error, ValueError)


def is_other_era(error: BaseException) -> bool:
    """Whether the check of a new connection found another era; a database without our schema is another one, too."""
    return isinstance(error, asyncpg.PostgresError) and str(error.sqlstate or "") in (OTHER_ERA, *_MISSING)


def limit_met(error: BaseException) -> bool:
    """Whether a connection was refused because there are too many."""
    return isinstance(error, asyncpg.TooManyConnectionsError) or "no more connections allowed" in str(error)


def refused_connection(error: BaseException, place: str, wanted: str = "") -> ConfigurationError:
    """Return the `ConfigurationError` for a connection that Postgres, or the way to it, refused.

    Args:
        error: One of `FOREIGN_ERRORS`.
        place: Hosts and database.
        wanted: What is needed there.
    """
    needed = f" (needed: {wanted})" if wanted else ""
    return ConfigurationError(f"cannot connect to Postgres at {place}{needed}: {summary(error)}: {_remedy(error)}")


def summary(error: BaseException) -> str:
    """Return what `error` says in one line; asyncpg adds hints and details on lines of their own."""
    if isinstance(error, TimeoutError):
        return str(error) or "no answer in time"
    first, *_ = str(error).splitlines() or [""]
    return first or type(error).__name__


def _remedy(error: BaseException) -> str:
    if limit_met(error):
        remedy = next(remedy for text, remedy in _LIMITS if text in str(error))
        return f"{remedy}, or let each process take fewer connections (--max-connections; a runner needs 4)"
    if "unrecognized configuration parameter" in str(error):
        return "check the options in the database URL; actorhub needs Postgres 14 or newer"
    known = (remedy for kind, remedy in _REMEDIES if isinstance(error, kind))
    return next(known, "check that the server runs, and host and port in the database URL")
