"""Making, bounding and ending connections."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import asyncpg

from actorhub.core.errors import ConfigurationError
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, refused_connection
from actorhub.storage.postgres.queries import quoted

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
    TransactionPool: TypeAlias = asyncpg.Pool[asyncpg.Record]
else:
    TransactionPool = asyncpg.Pool
    Connection = asyncpg.Connection

CONNECT_TIMEOUT: Final = timedelta(seconds=4)
_CLOSE_TIMEOUT: Final = timedelta(seconds=1)

_BASE_SETTINGS: Final = {
    # Under a stricter isolation level the statements of a function share one snapshot, and the fence proves nothing.
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    # A plan made while a table was nearly empty would stay a sequential scan.
    "plan_cache_mode": "force_custom_plan",
    "jit": "off",
    "idle_in_transaction_session_timeout": "3s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "5s",
}
_TRANSACTION_SETTINGS: Final = {
    # Handlers await other things between their statements; a commit holds its fence no longer than a statement.
    "idle_in_transaction_session_timeout": "15s",
    "statement_timeout": "10s",
}
_TRANSACTION_IDLE_LIMIT: Final = timedelta(minutes=1)
_SOCKET_OPTIONS: Final = {
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPINTVL": 2,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 5000,
}


class Database:
    """Where to connect, and as what: a database and a namespace in it."""

    def __init__(self, url: str, namespace: str) -> None:
        self.url = url
        self.namespace = namespace

    async def connect(self, name: str, settings: Mapping[str, str]) -> Connection:
        """Return a new connection in the namespace, marked with `name`; takes at most `CONNECT_TIMEOUT`.

        Raises:
            FOREIGN_ERRORS: it failed.
        """
        server_settings = {
            **_BASE_SETTINGS,
            "search_path": quoted(self.namespace),
            "application_name": name,
            **settings,
        }
        async with asyncio.timeout(CONNECT_TIMEOUT.total_seconds()):
            connection: Connection = await asyncpg.connect(
                self.url, server_settings=server_settings, timeout=CONNECT_TIMEOUT.total_seconds()
            )
        _keep_alive(connection)
        return connection

    async def first_connect(self, name: str, settings: Mapping[str, str]) -> Connection:
        """Like `connect`, for the start: wait while the server starts up, explain what is wrong.

        Raises:
            ConfigurationError: names server and database, never the password, and the remedy.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT.total_seconds()):
                while True:
                    try:
                        return await self.connect(name, settings)
                    except asyncpg.CannotConnectNowError:
                        await asyncio.sleep(0.1)
        except FOREIGN_ERRORS as exc:
            raise refused_connection(exc, self.url) from exc
        except ValueError as exc:
            raise ConfigurationError(f"the database URL cannot be read: {exc}") from exc

    async def transaction_pool(self, name: str, size: int) -> TransactionPool:
        """Return a pool of at most `size` connections with the role's own search path, without connecting yet."""

        async def prepare(connection: Connection) -> None:
            _keep_alive(connection)

        return await asyncpg.create_pool(
            self.url,
            min_size=0,
            max_size=size,
            init=prepare,
            max_inactive_connection_lifetime=_TRANSACTION_IDLE_LIMIT.total_seconds(),
            server_settings={**_BASE_SETTINGS, **_TRANSACTION_SETTINGS, "application_name": name},
            timeout=CONNECT_TIMEOUT.total_seconds(),
        )

    def __repr__(self) -> str:
        return f"Database({self.namespace!r})"


class Terminable(Protocol):
    """A connection, of our own or of a pool."""

    def terminate(self) -> None:
        """End it at once."""
        ...


@contextlib.asynccontextmanager
async def deadline(connection: Terminable, limit: timedelta) -> AsyncGenerator[None]:
    """End `connection` when the body takes longer than `limit`, or fails or is cancelled while a statement runs.

    Ending the connection is what wakes the body: asyncpg answers a cancelled wait by asking the server, over another
    connection, to cancel the statement, and on a dead network that hangs as well.
    """
    timer = asyncio.get_running_loop().call_later(limit.total_seconds(), connection.terminate)
    try:
        yield
    except asyncio.CancelledError:
        connection.terminate()
        raise
    finally:
        timer.cancel()


async def close(connection: Connection | None) -> None:
    """End `connection`, politely if that works within a second."""
    if connection is None or connection.is_closed():
        return
    try:
        async with deadline(connection, _CLOSE_TIMEOUT):
            await connection.close()
    except FOREIGN_ERRORS:
        connection.terminate()


def _keep_alive(connection: Connection) -> None:
    # asyncpg has no public way to its socket.
    transport: asyncio.Transport = getattr(connection, "_transport")  # noqa: B009 - a private name, unknown to the stubs
    found = transport.get_extra_info("socket")
    if found is None or found.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _SOCKET_OPTIONS.items():
        if (option := getattr(socket, name, None)) is not None:
            found.setsockopt(socket.IPPROTO_TCP, option, value)
