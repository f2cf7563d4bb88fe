"""A Postgres server in a temporary directory, which does not outlive the process that made it."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import asyncpg

from actorhub.core.clock import SystemClock
from actorhub.core.errors import ConfigurationError
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, refused_connection, summary
from actorhub.storage.postgres.local_server import LocalServer
from actorhub.storage.postgres.programs import REMEDY, find_programs, reachable, server_account
from actorhub.storage.postgres.target import target_of

_REMEDY: Final = (
    "pip install 'actorhub[embedded]', or define a fixture actorhub_postgres that returns the URL of a server of yours"
)
_GUARD: Final = Path(__file__).with_name("postgres_guard.py")
_CONNECT_SECONDS: Final = 10.0
_STATEMENT_SECONDS: Final = 60.0


class TemporaryPostgres:
    """A server with production's settings; `close` ends it and removes its files, as does the end of this process.

    However this process ends, killed or crashed, a guard process notices it and cleans up. Several processes may have
    a server each. Started by root it runs as another user, since Postgres refuses root.
    """

    def __init__(self) -> None:
        """Make and start the server; blocks until it takes connections.

        Raises:
            ConfigurationError: there is no Postgres to start, or it does not start; says why and what to do.
        """
        self.directory = Path(tempfile.mkdtemp(prefix="actorhub-postgres-"))
        # mkdtemp makes it private, and the server may run as another user: let that one pass through, not look around.
        self.directory.chmod(0o711)
        self._guard = subprocess.Popen(
            # With -P the guard's own directory does not become a place to import from.
            [sys.executable, "-P", str(_GUARD), str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
            # Away from the terminal: Ctrl-C is for the tests.
            start_new_session=True,
        )
        self._server: LocalServer | None = None
        try:
            self._server = _server_in(self.directory)
            self._server.initialize()
            self._server.start()
        except BaseException:
            self.close()
            raise

    @property
    def server(self) -> LocalServer:
        """The server itself, for tests that stop or crash it."""
        assert self._server is not None
        return self._server

    @property
    def url(self) -> str:
        """The URL of database `postgres`; the same after every start."""
        return self.server.url

    def close(self) -> None:
        """End the server at once and remove its files; sessions are cut off."""
        _remove(self._server, self.directory)
        self._guard.communicate(b"done")


def remove(directory: Path) -> None:
    """End the server that another process made in `directory`, if it runs, and remove its files."""
    _remove(_server_in(directory) if (directory / "data").exists() else None, directory)


def _remove(server: LocalServer | None, directory: Path) -> None:
    if server is not None:
        if (pid := server.pid) is not None:
            os.kill(pid, signal.SIGCONT)  # one that a test has stopped would not hear the next signal
        server.stop("immediate")
        # Where the directory's path is too long for a socket, that has another place.
        shutil.rmtree(parse_qs(urlsplit(server.url).query)["host"][0], ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)


def _server_in(directory: Path) -> LocalServer:
    """Return the server whose files are, or will be, in `directory`.

    Raises:
        ConfigurationError: there are no Postgres programs here, or their user cannot enter the directory.
    """
    data = directory / "data"
    account = server_account(data)
    if account is not None and not reachable(directory, account):
        raise ConfigurationError(
            f"Postgres does not run as root, and user {account.name} cannot enter {directory}: "
            "set TMPDIR to a directory that every user can enter"
        )
    try:
        programs = find_programs(account)
    except ConfigurationError as exc:
        raise ConfigurationError(str(exc).replace(REMEDY, _REMEDY)) from exc
    return LocalServer(data, programs, directory / "log")


def create_database(server: str) -> str:
    """Make an empty database and return its URL.

    Args:
        server: URL of any database of the server.

    Raises:
        ConfigurationError: the server cannot be reached, or refuses.
    """
    name = f"actorhub_{SystemClock().token()}"
    _execute(server, f'create database "{name}"')
    return urlsplit(server)._replace(path=f"/{name}").geturl()


def drop_database(server: str, url: str) -> None:
    """Drop a database that `create_database` made, and end the sessions in it.

    Raises:
        ConfigurationError: the server cannot be reached, or refuses.
    """
    _execute(server, f'drop database if exists "{urlsplit(url).path[1:]}" with (force)')


def _execute(url: str, statement: str) -> None:
    # In a thread of its own, since this one may run an event loop, or is about to, and asyncio.run would disturb it.
    with ThreadPoolExecutor(max_workers=1) as threads:
        threads.submit(asyncio.run, _executed(url, statement)).result()


async def _executed(url: str, statement: str) -> None:
    target = target_of(url, os.environ)
    try:
        connection = await asyncpg.connect(target.addresses[0], timeout=_CONNECT_SECONDS)
    except FOREIGN_ERRORS as exc:
        raise refused_connection(exc, target.place) from exc
    try:
        await connection.execute(statement, timeout=_STATEMENT_SECONDS)
    except FOREIGN_ERRORS as exc:
        raise ConfigurationError(f"Postgres at {target.place} refuses `{statement}`: {summary(exc)}") from exc
    finally:
        await connection.close(timeout=_CONNECT_SECONDS)
