"""Runner processes, as a user would start them in several terminals."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

_SERVE: Final = ("-m", "actorhub", "serve", "--listen", "127.0.0.1:0")
_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_READY: Final = re.compile(r"\bready\b.*?\b(127\.0\.0\.1:\d+)")
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 30.0
_TAIL_LINES: Final = 30


class RunnerFailed(Exception):
    """A runner did not start, or ended unexpectedly. The text quotes the end of its log."""


class RunnerProcess:
    """One `actorhub serve` process, with its output in a log file.

    Args:
        number: Its number, from 1.
        process: The process.
        log: File for its output.
    """

    def __init__(self, number: int, process: Process, log: Path) -> None:
        self.number = number
        self.address = ""
        """The address on which it listens, once it is ready."""
        self.killed = False
        """Whether it was killed on purpose."""
        self._process = process
        self._log = log
        self._ready = asyncio.Event()
        self._leaving = False

    @property
    def name(self) -> str:
        """Its name in the output of the demo."""
        return f"runner {self.number}"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def serving(self) -> bool:
        """Whether it is ready and has not been told to leave."""
        return self._ready.is_set() and not self._leaving

    async def watch(self) -> None:
        """Write its output to the log, and watch for its end.

        Raises:
            RunnerFailed: It ended by itself.
        """
        output = self._process.stdout
        assert output is not None
        with self._log.open("wb") as log:
            async for line in output:
                log.write(line)
                log.flush()
                if not self._ready.is_set() and (found := _READY.search(line.decode(errors="replace"))):
                    self.address = found[1]
                    self._ready.set()
        status = await self._process.wait()
        if not self._leaving:
            raise RunnerFailed(f"{self.name} ended by itself, status {status}:\n{self._tail()}")

    async def ready(self) -> None:
        """Return when it owns shards and accepts calls.

        Raises:
            RunnerFailed: It took too long.
        """
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._ready.wait()
        except TimeoutError:
            raise RunnerFailed(f"{self.name} was not ready within {_START_SECONDS:.0f} s:\n{self._tail()}") from None

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._leaving = self.killed = True
        self._process.kill()

    async def stop(self) -> int:
        """Ask it to leave with SIGTERM, and return its exit status. Kill it if it does not leave."""
        self._leaving = True
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                pass  # it is killed below, and its status shows that
            finally:
                if self._process.returncode is None:
                    self._process.kill()
        return await self._process.wait()

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(f"  | {line}" for line in lines[-_TAIL_LINES:])


class Runners:
    """The runner processes of one cluster.

    Args:
        group: Watches them; a runner that ends by itself ends what the group does.
        arguments: Given to each of them: hub, database and namespace.
        logs: Directory for their output.
    """

    def __init__(self, group: asyncio.TaskGroup, arguments: tuple[str, ...], logs: Path) -> None:
        self._group = group
        self._arguments = arguments
        self._logs = logs
        self.environment: dict[str, str] = {}
        """Environment variables for runners that are started from now on, besides those of this process."""
        self.processes: list[RunnerProcess] = []

    async def start(self) -> RunnerProcess:
        """Start another runner. Wait for it with its `ready`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *_SERVE,
            *self._arguments,
            stdout=PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=_ROOT,
            env={**os.environ, **self.environment},
            start_new_session=True,  # Ctrl-C must reach the demo only, which stops its runners itself
        )
        number = len(self.processes) + 1
        runner = RunnerProcess(number, process, self._logs / f"runner-{number}.log")
        self.processes.append(runner)
        self._group.create_task(runner.watch())
        return runner

    async def stop(self) -> dict[RunnerProcess, int]:
        """Stop all runners gracefully, at the same time. Return the exit status of each."""
        async with asyncio.TaskGroup() as group:
            stops = {runner: group.create_task(runner.stop()) for runner in self.processes}
        return {runner: stop.result() for runner, stop in stops.items()}


@asynccontextmanager
async def runner_processes(arguments: tuple[str, ...], logs: Path) -> AsyncGenerator[Runners, None]:
    """Provide runner processes. None of them outlives the block.

    Raises:
        ExceptionGroup: of `RunnerFailed`, when one ended by itself.
    """
    async with asyncio.TaskGroup() as group:
        runners = Runners(group, arguments, logs)
        try:
            yield runners
        finally:
            await runners.stop()
