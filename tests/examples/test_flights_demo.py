"""The flights example as a user runs it: real processes, a real Postgres, a runner killed on the way."""

import os
import re
import signal
from pathlib import Path

from tests.examples.demo_process import alive, demo, files, schemas

FLIGHTS = "examples.flights"


async def test_a_run_that_loses_a_runner_ends_equal_to_pandas(postgres_url: str, tmp_path: Path) -> None:
    """A runner is killed and one is added, every entity is equal in the end, and neither process nor schema is left."""
    async with demo(FLIGHTS, tmp_path, "--flights", "3000", "--database", postgres_url) as run:
        assert await run.end() == 0, run.output
    assert re.search(r"killed runner \d \(pid \d+, SIGKILL\): [\d,]+ of the entities lived there", run.output)
    assert "runner 4 is ready" in run.output
    assert "equal: 1,435 aircraft and 89 airports, in every field" in run.output
    assert "3 runners left on SIGTERM with status 0" in run.output
    assert files(tmp_path) == []
    assert len(run.runner_pids) == 4
    assert not any(alive(pid) for pid in run.runner_pids)
    assert await schemas(postgres_url, "flights_") == []


async def test_two_runs_go_side_by_side_on_one_database(postgres_url: str, tmp_path: Path) -> None:
    """Runs at the same time use namespaces of their own, and both end equal."""
    arguments = ("--flights", "500", "--runners", "2", "--no-faults", "--database", postgres_url)
    async with demo(FLIGHTS, tmp_path, *arguments) as one, demo(FLIGHTS, tmp_path, *arguments) as other:
        assert await one.end() == 0, one.output
        assert await other.end() == 0, other.output
    assert "SIGKILL" not in one.output
    assert await schemas(postgres_url, "flights_") == []


async def test_an_interrupted_run_ends_its_runners_and_cleans_up(postgres_url: str, tmp_path: Path) -> None:
    """Ctrl-C in the middle ends every process and removes the schema; the status says that it was interrupted."""
    async with demo(FLIGHTS, tmp_path, "--runners", "2", "--database", postgres_url) as run:
        await run.until("driving")
        run.process.send_signal(signal.SIGINT)
        assert await run.end() == 128 + signal.SIGINT, run.output
    assert "interrupted" in run.output
    assert "Traceback" not in run.output
    assert files(tmp_path) == []
    assert len(run.runner_pids) == 2
    assert not any(alive(pid) for pid in run.runner_pids)
    assert await schemas(postgres_url, "flights_") == []


async def test_a_runner_that_is_killed_by_somebody_else_ends_the_run(postgres_url: str, tmp_path: Path) -> None:
    """The loss of a runner that was not planned is an error that names the runner, not a quiet part of the show."""
    async with demo(FLIGHTS, tmp_path, "--runners", "2", "--no-faults", "--database", postgres_url) as run:
        await run.until("driving")
        os.kill(run.runner_pids[1], signal.SIGKILL)
        assert await run.end() == 1, run.output
    assert "runner 2 ended by itself, status -9" in run.output
    assert files(tmp_path) == ["runner-1.log", "runner-2.log"]
    assert not alive(run.runner_pids[0])
    assert await schemas(postgres_url, "flights_") == []


async def test_a_database_that_does_not_answer_is_one_clear_error(tmp_path: Path) -> None:
    """Where nothing listens, the run ends at once with the reason, and without a traceback."""
    async with demo(FLIGHTS, tmp_path, "--flights", "10", "--database", "postgresql://127.0.0.1:1/none") as run:
        assert await run.end() == 1
    assert "ConfigurationError: cannot use the database" in run.output
    assert "Traceback" not in run.output


async def test_durable_records_survive_two_kills_and_a_crash_of_postgres(open_directory: Path, tmp_path: Path) -> None:
    """Told once or twice, through SIGKILLs and a Postgres that ends at once, every record is applied exactly once."""
    arguments = ("--durable", "--flights", "3000", "--runners", "2")
    async with demo(FLIGHTS, tmp_path, *arguments, directory=open_directory) as run:
        assert await run.end() == 0, run.output
    assert len(re.findall(r"killed runner \d \(pid \d+, SIGKILL\)", run.output)) == 2
    assert len(re.findall(r"crashed Postgres \(pid \d+, SIGQUIT: -m immediate\)", run.output)) == 1
    assert "equal: 1,435 aircraft and 89 airports, in every field" in run.output
    assert re.search(r"records told +. 5,996, and \d{3} of them again with the same key", run.output)
    assert "2 runners left on SIGTERM with status 0" in run.output
    assert files(tmp_path) == []
    assert len(run.runner_pids) == 4
    assert not any(alive(pid) for pid in run.runner_pids)
