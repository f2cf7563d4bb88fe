"""`actorhub serve --workers N`: a parent that starts runner processes and keeps them running.

Workers are spawned, never forked: gRPC does not survive a fork.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

import click
import msgspec

from actorhub.cli.running import Ready, database_shown
from actorhub.cli.signals import on_stop_signals
from actorhub.core.backoff import Backoff
from actorhub.core.clock import SystemClock
from actorhub.core.config import SETTINGS, HostPort, Settings

_log: Final = logging.getLogger("actorhub.workers")

_BACKOFF: Final = Backoff(0.5, 30.0)
_BEYOND_GRACE: Final = 10.0
"""Seconds beyond its grace time after which a worker is killed."""

_decode: Final = msgspec.json.Decoder(Ready).decode


def run_workers(reference: str, settings: Settings, flags: Mapping[str, object]) -> int:
    """Run as many workers as the settings say until a signal ends them all; return the exit code.

    Args:
        reference: MODULE:HUB.
        settings: Those of the first worker; the others listen at free ports of the same host, and serve HTTP at the
            ports after its own.
        flags: What was given on the command line, by setting.
    """
    return asyncio.run(Workers(reference, settings, flags).run())


class Workers:
    """The processes by number; the first listens at the address that the settings name."""

    def __init__(self, reference: str, settings: Settings, flags: Mapping[str, object]) -> None:
        from actorhub.storage.postgres.embedded import EmbeddedPostgres  # noqa: PLC0415 - asyncpg loads where used

        self._reference = reference
        self._settings = settings
        self._flags = flags
        self._clock = SystemClock()
        self._stopping = asyncio.Event()
        self._processes: dict[int, Process] = {}
        self._links: dict[int, asyncio.StreamWriter] = {}
        """One socket to each worker, which leaves when this end closes."""
        self._ready: dict[int, Ready] = {}
        self._announced = False
        self._database_url = settings.database_url
        self._embedded = EmbeddedPostgres() if settings.database_url is None else None

    async def run(self) -> int:
        """Start the first worker, then the others; return once all have ended."""
        on_stop_signals(self._stop, self._end_at_once)
        async with AsyncExitStack() as stack:
            if self._embedded is not None:
                # Until every worker has ended, so that a worker's crash does not stop it.
                stack.push_async_callback(self._embedded.stop)
                self._database_url = await self._embedded.start()
            # Alone at first: a mistake in the program or the settings is then reported once, not once per worker.
            first = await self._started(0)
            if first is not None and 0 not in self._ready:
                code = await first.wait()
                return 0 if self._stopping.is_set() else max(code, 1)
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._settings.workers):
                    tasks.create_task(self._keep(number, first if number == 0 else None))
                tasks.create_task(self._end_in_time())
        return 0

    async def _keep(self, number: int, process: Process | None) -> None:
        """Keep one worker running until all are to stop."""
        failures = 0
        while not self._stopping.is_set():
            started = self._clock.monotonic()
            process = process or await self._started(number)
            if process is None:
                return
            code = await process.wait()
            self._processes.pop(number, None)
            self._links.pop(number).close()
            if self._stopping.is_set():
                return
            failures = failures + 1 if self._clock.monotonic() - started <= _BACKOFF.maximum else 1
            delay = _BACKOFF.delay(failures, self._clock.random())
            _log.warning(
                "worker %d (pid %d) %s and is started again in %.1f s", number, process.pid, _ended(code), delay
            )
            process = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()

    async def _started(self, number: int) -> Process | None:
        """Start a worker and wait until it is ready or has ended; `None` if all are to stop."""
        if self._stopping.is_set():
            return None
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "actorhub.cli.worker", self._reference, str(theirs.fileno())),
                env=self._environment(number),
                pass_fds=(theirs.fileno(),),
                # Ctrl-C in a terminal goes to the parent alone, which passes it on once.
                start_new_session=True,
            )
        self._processes[number] = process
        if self._stopping.is_set():
            # `_stop` came while the process was being made, and signalled only those that it found.
            _signal(process, signal.SIGTERM)
        reader, self._links[number] = await asyncio.open_connection(sock=ours)
        line = await reader.readline()
        if line:
            self._ready[number] = _decode(line)
            self._announce()
        return process

    def _announce(self) -> None:
        if not self._announced and len(self._ready) == self._settings.workers:
            self._announced = True
            addresses = ", ".join(self._ready[number].address for number in sorted(self._ready))
            click.echo(f"ready: {len(self._ready)} runners {addresses}, database {database_shown(self._settings)}")

    def _environment(self, number: int) -> dict[str, str]:
        settings = self._settings
        given = {name: "true" if value is True else str(value) for name, value in self._flags.items() if value}
        assert self._database_url is not None
        given |= {"workers": "1", "database_url": self._database_url}
        if number > 0:
            port = _free_port(settings.listen.host) if settings.advertise is not None else 0
            given["listen"] = str(HostPort(settings.listen.host, port))
            if settings.advertise is not None:
                given["advertise"] = str(HostPort(settings.advertise.host, port))
            if settings.http is not None:
                port = settings.http.port
                given["http"] = str(HostPort(settings.http.host, port + number if port else 0))
        return {**os.environ, **{SETTINGS[name].env: value for name, value in given.items()}}

    def _stop(self) -> None:
        self._stopping.set()
        for process in self._processes.values():
            _signal(process, signal.SIGTERM)

    def _kill(self) -> None:
        for process in self._processes.values():
            _signal(process, signal.SIGKILL)

    def _end_at_once(self) -> None:
        self._kill()
        if self._embedded is not None:
            self._embedded.leave_at_once()

    async def _end_in_time(self) -> None:
        """Kill the workers that do not end within their grace time."""
        await self._stopping.wait()
        grace = self._settings.grace.total_seconds() + _BEYOND_GRACE
        try:
            async with asyncio.timeout(grace):
                for process in list(self._processes.values()):
                    await process.wait()
        except TimeoutError:
            _log.warning("killing the workers that did not end within %.0f s", grace)
            self._kill()


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _ended(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
