"""An example's demo as a user runs it."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

ROOT = Path(__file__).resolve().parent.parent.parent
DEADLINE = 60.0
AS_FROM_A_TERMINAL = (
    "import ctypes, os, signal, sys\n"
    "prctl = getattr(ctypes.CDLL(None), 'prctl', None)\n"
    "prctl and prctl(1, int(signal.SIGINT))\n"
    "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)
"""What is started in the background of a shell script ignores SIGINT, and so does what it starts.

Linux interrupts the demo when the process of the test is gone, so that it ends its runners and cleans up.
"""


class Demo:
    """A running `python -m examples.…`, with what it printed so far."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.output = ""

    async def until(self, text: str) -> None:
        """Read on until `text` was printed."""
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            while text not in self.output:
                line = await self.process.stdout.readline()
                assert line, f"{text!r} never came:\n{self.output}"
                self.output += line.decode()

    async def end(self) -> int:
        """Read on to the end and return the exit status."""
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            self.output += (await self.process.stdout.read()).decode()
            return await self.process.wait()

    @property
    def runner_pids(self) -> list[int]:
        """The processes that it named."""
        return [int(pid) for pid in re.findall(r"is ready: pid (\d+)", self.output)]


@asynccontextmanager
async def demo(module: str, logs: Path, *arguments: str, directory: Path = ROOT) -> AsyncGenerator[Demo, None]:
    """Start `python -m module` in `directory`, with its runners' logs under `logs`; interrupt it if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        AS_FROM_A_TERMINAL,
        sys.executable,
        "-m",
        module,
        *arguments,
        stdout=PIPE,
        stderr=STDOUT,
        cwd=directory,
        env={**os.environ, "TMPDIR": str(logs), "PYTHONPATH": str(ROOT)},
    )
    started = Demo(process)
    try:
        yield started
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            await started.end()


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def files(directory: Path) -> list[str]:
    """The names of all files under `directory`."""
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


async def schemas(url: str, prefix: str) -> list[str]:
    """The schemas in the database whose names begin with `prefix`."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        rows = await connection.fetch("select nspname from pg_namespace where starts_with(nspname, $1)", prefix)
    finally:
        await connection.close(timeout=5)
    return [row["nspname"] for row in rows]
