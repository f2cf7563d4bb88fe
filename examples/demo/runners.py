"""Runner processes: what a user would start in as many terminals."""

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
    """A runner did not start, or ended when it should not have; the text quotes the end of its log."""


class RunnerProcess:
    """One `actorhub serve`, with its output in a log file.

    Args:
        number: What it is called here, from 1.
        process: The process.
        log: Where its output goes.
    """

    def __init__(self, number: int, process: Process, log: Path) -> None:
        self.number = number
        self.address = ""
        """Where it listens, once it is ready."""
        self.killed = False
        """Whether it was killed on purpose."""
        self._process = process
        self._log = log
        self._ready = asyncio.Event()
        self._leaving = False

    @property
    def name(self) -> str:
        """How it is called in the output."""
        return f"runner {self.number}"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def serving(self) -> bool:
        """Whether it is ready, and nobody told it to leave."""
        return self._ready.is_set() and not self._leaving

    async def watch(self) -> None:
        """Keep its output, and notice its end.

        Raises:
            RunnerFailed: it ended by itself.
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
        """Return when it owns shards and takes calls.

        Raises:
            RunnerFailed: it took too long.
        """
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._ready.wait()
        except TimeoutError:
            raise RunnerFailed(f"{self.name} was not ready within {_START_SECONDS:.0f} s:\n{self._tail()}") from None

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._leaving = self.killed = True
        self._process.kill()

    async def stop(self) -> int:
        """Ask it to leave with SIGTERM, and return its exit status; kill it if it does not go."""
        self._leaving = True
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                pass  # killed below, and its status says so
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
        """Set for those that are started from now on, besides what is set here."""
        self.processes: list[RunnerProcess] = []

    async def start(self) -> RunnerProcess:
        """Start another one; wait for it with its `ready`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *_SERVE,
            *self._arguments,
            stdout=PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=_ROOT,
            env={**os.environ, **self.environment},
            start_new_session=True,  # Ctrl-C is for the demo, which ends its runners itself
        )
        number = len(self.processes) + 1
        runner = RunnerProcess(number, process, self._logs / f"runner-{number}.log")
        self.processes.append(runner)
        self._group.create_task(runner.watch())
        return runner

    async def stop(self) -> dict[RunnerProcess, int]:
        """End all that still run, gracefully and at once; return the exit status of every one."""
        async with asyncio.TaskGroup() as group:
            stops = {runner: group.create_task(runner.stop()) for runner in self.processes}
        return {runner: stop.result() for runner, stop in stops.items()}


@asynccontextmanager
async def runner_processes(arguments: tuple[str, ...], logs: Path) -> AsyncGenerator[Runners, None]:
    """Hold runner processes; none of them outlives the block.

    Raises:
        ExceptionGroup: of `RunnerFailed`, when one ended by itself.
    """
    async with asyncio.TaskGroup() as group:
        runners = Runners(group, arguments, logs)
        try:
            yield runners
        finally:
            await runners.stop()
