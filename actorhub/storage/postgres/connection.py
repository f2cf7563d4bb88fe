"""Making, bounding and ending connections."""

import asyncio
import contextlib
import enum
import os
import socket
from collections.abc import AsyncGenerator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import asyncpg

from actorhub.core.errors import ConfigurationError
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, is_other_era, refused_connection
from actorhub.storage.postgres.queries import quoted
from actorhub.storage.postgres.target import Target, target_of

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection

START_LIMIT: Final = timedelta(seconds=4)
"""How long the first connection waits for a server that is starting up."""
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
_ERAS: Final = 3
"""How often one connection is made again because it led to another run of the server."""
_STATEMENTS: Final = 300
"""More than the engine has; those of handlers replace each other."""


class PoolMode(enum.Enum):
    """What sits between this process and Postgres."""

    DIRECT = "no pooler"
    SESSION = "a pooler in session mode"
    TRANSACTION = "a pooler in transaction mode"


class Guard(Protocol):
    """Keeps connections to another run of the server, or to another database, from being used unawares."""

    @property
    def statement(self) -> str:
        """What fails with `OTHER_ERA` over such a connection; empty while nothing is known."""
        ...

    @property
    def era(self) -> str:
        """The token of the era that connections are let into; empty while nothing is known."""
        ...

    async def renew(self, failed: str) -> None:
        """Find out where the database is now, because a connection failed the statement `failed`.

        Raises:
            FOREIGN_ERRORS: it cannot be found out, or what is there cannot be used.
        """
        ...


class Database:
    """Where to connect, and as what: a database and a namespace in it."""

    def __init__(self, url: str, namespace: str) -> None:
        self.url = url
        self.namespace = namespace
        self.guard: Guard | None = None
        """Whom connections are checked by."""
        self.mode = PoolMode.DIRECT
        """As far as is known: the start finds out, before anything is set."""
        self._target: Target | None = None
        self._next = 0

    @property
    def target(self) -> Target:
        """Hosts and parameters.

        Raises:
            ConfigurationError: the URL cannot be used.
        """
        if self._target is None:
            self._target = target_of(self.url, os.environ)
        return self._target

    @property
    def place(self) -> str:
        """Hosts and database, for messages."""
        try:
            return self.target.place
        except ConfigurationError:
            return "(unreadable URL)"

    async def connect(self, name: str, settings: Mapping[str, str]) -> Connection:
        """Return a new connection, marked with `name`, that has `settings`.

        Behind a pooler in transaction mode it has none: they would stay behind in a session that others use. There,
        `begin` gives them to each transaction.

        Raises:
            FOREIGN_ERRORS: it failed.
        """
        for attempt in range(1, _ERAS + 1):
            statement = self.check
            try:
                return await self._checked_connect(name, settings, statement)
            except FOREIGN_ERRORS as exc:
                if self.guard is None or not is_other_era(exc) or attempt == _ERAS:
                    raise
                await self.guard.renew(statement)
        raise AssertionError("it is tried once at least")

    @property
    def check(self) -> str:
        """The statement that a connection, or behind a pooler in transaction mode a transaction, begins with."""
        return "" if self.guard is None else self.guard.statement

    async def _checked_connect(self, name: str, settings: Mapping[str, str], check: str) -> Connection:
        # A pooler refuses what it does not know at the start of a connection.
        at_start: Mapping[str, str] | None = settings if self.mode is PoolMode.DIRECT else {}
        if self.mode is PoolMode.TRANSACTION:
            at_start = None
        connection = await self.bare_connect(name, at_start)
        if first := f"{set_all(settings)}; {check}" if self.mode is PoolMode.SESSION else check:
            try:
                async with deadline(connection, timedelta(seconds=self.target.limit)):
                    await connection.execute(first)
            except BaseException:
                connection.terminate()
                raise
        return connection

    async def bare_connect(self, name: str, settings: Mapping[str, str] | None = None) -> Connection:
        """Return a new connection, marked with `name`.

        Args:
            name: What marks it on the server.
            settings: Those that it starts with, and falls back to. `None`: it has none, and nothing stays prepared in
                it either; somebody else may have the session next.

        Raises:
            FOREIGN_ERRORS: it failed, with every host.
        """
        addresses, first = self.target.addresses, self._next
        for attempt in range(len(addresses)):
            # First the host that served last, then each other one, whatever others find at the same time. Whoever comes
            # after an attempt that hangs begins with the next.
            number = (first + attempt) % len(addresses)
            self._next = (number + 1) % len(addresses)
            try:
                connection = await self._connect_to(addresses[number], name, settings)
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched):
                if attempt == len(addresses) - 1:
                    raise
            else:
                self._next = number
                return connection
        raise AssertionError("a URL has one host at least")

    async def first_connect(self, name: str) -> Connection:
        """Like `bare_connect`, for the start: wait while the server starts up, explain what is wrong.

        Raises:
            ConfigurationError: names server and database, never the password, and the remedy.
        """
        target = self.target
        try:
            async with asyncio.timeout(max(START_LIMIT.total_seconds(), target.limit * len(target.addresses))):
                while True:
                    try:
                        return await self.bare_connect(name)
                    except asyncpg.CannotConnectNowError:
                        await asyncio.sleep(0.1)
        except FOREIGN_ERRORS as exc:
            raise refused_connection(exc, target.place) from exc

    def settings(self, more: Mapping[str, str], *, in_namespace: bool = True) -> Mapping[str, str]:
        """Return all settings of a connection: the user's, those of every connection, `more`.

        Args:
            more: Beat the others.
            in_namespace: Whether its search path is the namespace; otherwise it is the role's own.
        """
        path = {"search_path": quoted(self.namespace)} if in_namespace else {}
        return {**self.target.settings, **_BASE_SETTINGS, **path, **more}

    async def _connect_to(self, address: str, name: str, settings: Mapping[str, str] | None) -> Connection:
        async with asyncio.timeout(self.target.limit):
            connection: Connection = await asyncpg.connect(
                address,
                server_settings={"application_name": self.target.application_name or name, **(settings or {})},
                timeout=self.target.limit,
                statement_cache_size=0 if settings is None else _STATEMENTS,
                max_cached_statement_lifetime=0,
            )
        _keep_alive(connection, self.target.socket_options)
        return connection

    def __repr__(self) -> str:
        return f"Database({self.namespace!r})"


def begin(settings: Mapping[str, str]) -> str:
    """Return what begins a transaction that has `settings`, whatever those of its session are."""
    local = {name: value for name, value in settings.items() if not name.startswith("tcp_")}
    return f"begin isolation level read committed read write; {set_all(local, local=True)}"


def set_all(settings: Mapping[str, str], *, local: bool = False) -> str:
    """Return the statement that sets them, for the session or for its present transaction."""
    calls = (f"set_config({_literal(name)}, {_literal(value)}, {local})" for name, value in settings.items())
    return f"select {', '.join(calls)}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


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


def _keep_alive(connection: Connection, options: Mapping[int, int]) -> None:
    # asyncpg has no public way to its socket.
    transport: asyncio.Transport = getattr(connection, "_transport")  # noqa: B009 - a private name, unknown to the stubs
    found = transport.get_extra_info("socket")
    if not options or found is None or found.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in options.items():
        found.setsockopt(socket.IPPROTO_TCP, option, value)
