"""The one place where asyncpg's and the operating system's exceptions become ours."""

import enum
from typing import Final
from urllib.parse import parse_qs, urlsplit

import asyncpg

from actorhub.core.errors import ConfigurationError, PersistenceError

TRANSPORT_ERRORS: Final = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)
FOREIGN_ERRORS: Final = (asyncpg.PostgresError, UnicodeError, *TRANSPORT_ERRORS)
"""Everything that talking to Postgres raises; `TimeoutError` is an `OSError`."""

POOLER: Final = (
    "a connection pooler that changes server sessions sits between this runner and Postgres: "
    "give the runner a direct (session) connection, because its shard locks live in one session"
)

_TRANSIENT_CLASSES: Final = ("08", "25", "40", "53", "57", "58")
"""Connection, read-only or broken transaction, rollback (deadlock), resources, operator intervention, system error."""
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
    (asyncpg.TooManyConnectionsError, "raise the server's max_connections, or end other clients"),
)


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
        if state.startswith(_TRANSIENT_CLASSES) or state == _LOCK_NOT_AVAILABLE:
            return Cause.TRANSIENT
        return Cause.DATA if state.startswith(_DATA_CLASSES) else Cause.PERMANENT
    return Cause.TRANSIENT


def translate(error: BaseException, doing: str) -> PersistenceError:
    """Return the `PersistenceError` for `error`; raise it `from` that."""
    return PersistenceError(f"cannot {doing}: {summary(error)}")


def met_pooler(error: BaseException) -> bool:
    """Whether `error` can only come from a pooler that changed the server session in between."""
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in _FOREIGN_STATEMENTS


def refused_connection(error: BaseException, url: str) -> ConfigurationError:
    """Return the `ConfigurationError` for a connection that Postgres, or the way to it, refused."""
    return ConfigurationError(f"cannot connect to Postgres at {place(url)}: {summary(error)}: {_remedy(error)}")


def place(url: str) -> str:
    """Return host, port and database of `url`, never its user or password."""
    try:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        hosts = parts.netloc.rpartition("@")[2] or ",".join(query.get("host", ["localhost"]))
        database = parts.path.removeprefix("/") or ",".join(query.get("database", query.get("dbname", [""])))
    except ValueError:
        return "(unreadable URL)"
    if parts.scheme not in {"postgresql", "postgres"}:
        return "(unreadable URL)"
    return f"{hosts}/{database}" if database else hosts


def summary(error: BaseException) -> str:
    """Return what `error` says in one line; asyncpg adds hints and details on lines of their own."""
    if isinstance(error, TimeoutError):
        return str(error) or "no answer in time"
    first, *_ = str(error).splitlines() or [""]
    return first or type(error).__name__


def _remedy(error: BaseException) -> str:
    if isinstance(error, asyncpg.PostgresError) and ("startup parameter" in str(error) or error.sqlstate == "08P01"):
        return POOLER
    if "unrecognized configuration parameter" in str(error):
        return "actorhub needs Postgres 14 or newer"
    known = (remedy for kind, remedy in _REMEDIES if isinstance(error, kind))
    return next(known, "check that the server runs, and host and port in the database URL")
