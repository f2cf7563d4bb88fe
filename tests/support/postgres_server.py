"""A real Postgres server of the tests' own, which does not outlive them."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

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


class PostgresServer:
    """A server in a temporary directory, with production's settings; it and its data are gone after `close`.

    The constructor starts it. Verbs are coroutines, so that what shares the loop goes on while the server changes.
    """

    def __init__(self) -> None:
        # Not under pytest's tmp_path, whose parents are closed to the server's user when root runs the tests.
        self.directory = Path(tempfile.mkdtemp(prefix="ahpg-", dir="/tmp"))
        self.directory.chmod(0o711)
        data = self.directory / "data"
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "sh", str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        self._clock = SystemClock()
        self._server = LocalServer(data, find_programs(server_account(data)), self.log)
        try:
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

    async def create_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"t{self._clock.token()}"
        await self._execute(f'create database "{name}"')
        return self.url.replace("/postgres?", f"/{name}?")

    async def drop_database(self, url: str) -> None:
        """Remove a database that `create_database` made; its sessions are ended."""
        await self._execute(f'drop database if exists "{urlsplit(url).path[1:]}" with (force)')

    def close(self) -> None:
        """End the server at once and remove its files."""
        try:
            if (pid := self.pid) is not None:
                os.kill(pid, signal.SIGCONT)
            self._server.stop("immediate")
        finally:
            self._watchdog.communicate()
            shutil.rmtree(self.directory, ignore_errors=True)

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url, timeout=10)
        try:
            await connection.execute(statement, timeout=30)
        finally:
            await connection.close(timeout=5)
