"""A real Postgres server of the tests' own, which does not outlive them."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import asyncpg
from typing_extensions import override

from actorhub.core.clock import SystemClock
from actorhub.storage.postgres.local_server import LocalServer, StopMode
from actorhub.storage.postgres.programs import find_programs, server_account

# Ends the server and removes its directory once its standard input ends: when the process that started it is gone,
# however that came about. The last line of defence only; `close` is the way.
_WATCHDOG = """
trap '' INT TERM HUP
read -r _
if [ -f "$1/data/postmaster.pid" ]; then
    read -r pid < "$1/data/postmaster.pid"
    if tr '\\0' '\\n' < "/proc/$pid/cmdline" | grep -qxF "$1/data"; then
        kill -CONT "$pid"
        kill -QUIT "$pid"
        tries=0
        while [ -f "$1/data/postmaster.pid" ] && [ $((tries += 1)) -lt 100 ]; do sleep 0.1; done
    fi
fi
rm -rf "$1"
"""


# What a fresh database has, and what a test can have changed: its schemas and its settings. Sessions go first, and are
# waited for, because their advisory locks would be the next test's.
_EMPTY = """
do $$
declare
    name text;
begin
    perform pg_terminate_backend(pid, 10000) from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid();
    for name in select nspname from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema' loop
        execute format('drop schema %I cascade', name);
    end loop;
    create schema public authorization pg_database_owner;
    grant usage on schema public to public;
    execute format('alter database %I reset all', current_database());
end $$
"""
_USES: Final = 50
"""Databases of so many tests are dropped: their catalogs grow with each schema that comes and goes."""


class _Directory:
    """A directory that the server's user can enter; it, and a server in it, are gone after `close`, and with us."""

    def __init__(self) -> None:
        # Not under pytest's tmp_path, whose parents are closed to the server's user when root runs the tests.
        self.path = Path(tempfile.mkdtemp(prefix="ahpg-", dir="/tmp"))
        self.path.chmod(0o711)
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "sh", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )

    def close(self) -> None:
        self._watchdog.communicate()
        shutil.rmtree(self.path, ignore_errors=True)


class Origin(Protocol):
    """What a server's data is copied from."""

    def copy(self, data: Path) -> None:
        """Make a server's data directory."""
        ...


class PostgresTemplate(Origin):
    """Data of a server that never ran, to be copied: initdb takes ten times as long."""

    def __init__(self) -> None:
        self._directory = _Directory()
        self._data = self._directory.path / "data"
        LocalServer(self._data, find_programs(server_account(self._data)), self._directory.path / "log").initialize()

    @override
    def copy(self, data: Path) -> None:
        # Unlike shutil, cp keeps the owner, and shares blocks where the file system can.
        subprocess.run(["cp", "-a", str(self._data), str(data)], check=True, cwd="/")

    def close(self) -> None:
        """Remove it."""
        self._directory.close()


class PostgresServer:
    """A server in a temporary directory, with production's settings; it and its data are gone after `close`.

    The constructor starts it. Verbs are coroutines, so that what shares the loop goes on while the server changes.
    """

    def __init__(self, template: Origin | None = None) -> None:
        """Make the data, from a template where there is one, and start the server."""
        self._directory = _Directory()
        self.directory = self._directory.path
        self.data = data = self.directory / "data"
        self._uses: dict[str, int] = {}
        self._empty: list[str] = []
        self._clock = SystemClock()
        self._programs = find_programs(server_account(data))
        self._server = LocalServer(data, self._programs, self.log)
        try:
            if template is not None:
                template.copy(data)
            self._server.initialize()
            self._server.start()
        except BaseException:
            self.close()
            raise

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.directory / "log"

    @property
    def url(self) -> str:
        """The URL of database `postgres`; the same after every start."""
        return self._server.url

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it lives."""
        return self._server.pid

    async def start(self) -> None:
        """Start it and wait until it takes connections; nothing happens if it does."""
        await asyncio.to_thread(self._server.start)

    async def stop(self, mode: StopMode = "fast") -> None:
        """Stop it and wait until it is gone: `fast` ends sessions, `immediate` crashes them, `smart` waits for them."""
        await asyncio.to_thread(self._server.stop, mode)

    async def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start it; `immediate` makes it recover from its write-ahead log."""
        await self.stop(mode)
        await self.start()

    async def kill(self) -> None:
        """Kill the postmaster with SIGKILL and wait until it is gone; its sessions end by themselves."""
        if (pid := self.pid) is not None:
            os.kill(pid, signal.SIGKILL)
        while self.pid is not None:
            await asyncio.sleep(0.005)

    def freeze(self) -> None:
        """Stop the postmaster, which makes no process from then on, and then all that it has made."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let all of them go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if (pid := self.pid) is None:
            return
        os.kill(pid, number)
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(child), number)

    async def run(self, program: str, *arguments: str) -> None:
        """Run one of Postgres's programs to its end, as the server's user.

        Raises:
            AssertionError: it failed; shows its output.
        """
        with tempfile.TemporaryFile() as output:
            code = await asyncio.to_thread(self._programs.run, program, *arguments, timeout=60, output=output)
            output.seek(0)
            assert code == 0, f"{program} failed: {output.read().decode(errors='replace')}"

    async def sql(self, statement: str, url: str | None = None) -> list[tuple[Any, ...]]:
        """Run one statement, in a transaction of its own, and return its rows."""
        connection = await asyncpg.connect(url or self.url, timeout=10)
        try:
            return [tuple(row) for row in await connection.fetch(statement, timeout=30)]
        finally:
            await connection.close(timeout=5)

    async def create_database(self) -> str:
        """Return the URL of an empty database: a new one, or one that was emptied."""
        if self._empty:
            return self._empty.pop()
        name = f"t{self._clock.token()}"
        await self._execute(self.url, f'create database "{name}"')
        return self.url.replace("/postgres?", f"/{name}?")

    async def drop_database(self, url: str) -> None:
        """Empty a database that `create_database` returned, or remove it; its sessions are ended."""
        self._uses[url] = uses = self._uses.get(url, 0) + 1
        if uses < _USES:
            await self._execute(url, _EMPTY)
            self._empty.append(url)
        else:
            await self._execute(self.url, f'drop database "{urlsplit(url).path[1:]}" with (force)')

    def close(self) -> None:
        """End the server at once and remove its files."""
        try:
            self.thaw()
            self._server.stop("immediate")
        finally:
            self._directory.close()

    @staticmethod
    async def _execute(url: str, statement: str) -> None:
        connection = await asyncpg.connect(url, timeout=10)
        try:
            await connection.execute(statement, timeout=30)
        finally:
            await connection.close(timeout=5)
