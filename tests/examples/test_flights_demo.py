"""The flights example as a user runs it: real processes, a real Postgres, a runner killed on the way."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

ROOT = Path(__file__).resolve().parent.parent.parent
DEADLINE = 60.0
AS_FROM_A_TERMINAL = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)
"""What is started in the background of a shell script ignores SIGINT, and so does what it starts."""


class Demo:
    """A running `python -m examples.flights`, with what it printed so far."""

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
async def demo(logs: Path, *arguments: str) -> AsyncIterator[Demo]:
    """Start the example, with its runners' logs under `logs`; it is interrupted if the block leaves it running."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        AS_FROM_A_TERMINAL,
        sys.executable,
        "-m",
        "examples.flights",
        *arguments,
        stdout=PIPE,
        stderr=STDOUT,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(logs)},
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


async def namespaces(url: str) -> list[str]:
    """The example's schemas in the database."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        rows = await connection.fetch("select nspname from pg_namespace where starts_with(nspname, 'flights_')")
    finally:
        await connection.close(timeout=5)
    return [row["nspname"] for row in rows]


async def test_a_run_that_loses_a_runner_ends_equal_to_pandas(postgres_url: str, tmp_path: Path) -> None:
    """A runner is killed and one is added, every entity is equal in the end, and neither process nor schema is left."""
    async with demo(tmp_path, "--flights", "3000", "--database", postgres_url) as run:
        assert await run.end() == 0, run.output
    assert re.search(r"killed runner \d \(pid \d+, SIGKILL\): [\d,]+ of the entities lived there", run.output)
    assert "runner 4 is ready" in run.output
    assert "equal: 1,435 aircraft and 89 airports, in every field" in run.output
    assert "3 runners left on SIGTERM with status 0" in run.output
    assert files(tmp_path) == []
    assert len(run.runner_pids) == 4
    assert not any(alive(pid) for pid in run.runner_pids)
    assert await namespaces(postgres_url) == []


async def test_two_runs_go_side_by_side_on_one_database(postgres_url: str, tmp_path: Path) -> None:
    """Runs at the same time use namespaces of their own, and both end equal."""
    arguments = ("--flights", "500", "--runners", "2", "--no-faults", "--database", postgres_url)
    async with demo(tmp_path, *arguments) as one, demo(tmp_path, *arguments) as other:
        assert await one.end() == 0, one.output
        assert await other.end() == 0, other.output
    assert "SIGKILL" not in one.output
    assert await namespaces(postgres_url) == []


async def test_an_interrupted_run_ends_its_runners_and_cleans_up(postgres_url: str, tmp_path: Path) -> None:
    """Ctrl-C in the middle ends every process and removes the schema; the status says that it was interrupted."""
    async with demo(tmp_path, "--runners", "2", "--database", postgres_url) as run:
        await run.until("driving")
        run.process.send_signal(signal.SIGINT)
        assert await run.end() == 128 + signal.SIGINT, run.output
    assert "interrupted" in run.output
    assert "Traceback" not in run.output
    assert files(tmp_path) == []
    assert len(run.runner_pids) == 2
    assert not any(alive(pid) for pid in run.runner_pids)
    assert await namespaces(postgres_url) == []


async def test_a_runner_that_is_killed_by_somebody_else_ends_the_run(postgres_url: str, tmp_path: Path) -> None:
    """The loss of a runner that was not planned is an error that names the runner, not a quiet part of the show."""
    async with demo(tmp_path, "--runners", "2", "--no-faults", "--database", postgres_url) as run:
        await run.until("driving")
        os.kill(run.runner_pids[1], signal.SIGKILL)
        assert await run.end() == 1, run.output
    assert "runner 2 ended by itself, status -9" in run.output
    assert files(tmp_path) == ["runner-1.log", "runner-2.log"]
    assert not alive(run.runner_pids[0])
    assert await namespaces(postgres_url) == []


async def test_a_database_that_does_not_answer_is_one_clear_error(tmp_path: Path) -> None:
    """Where nothing listens, the run ends at once with the reason, and without a traceback."""
    async with demo(tmp_path, "--flights", "10", "--database", "postgresql://127.0.0.1:1/none") as run:
        assert await run.end() == 1
    assert "ConfigurationError: cannot use the database" in run.output
    assert "Traceback" not in run.output
