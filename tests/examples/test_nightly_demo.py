"""The nightly example as a user runs it: real processes, a real Postgres, its leader lost at every boundary."""

import re
import signal
from pathlib import Path

from tests.examples.demo_process import alive, demo, files, schemas

NIGHTLY = "examples.nightly"


async def test_a_leader_that_is_lost_at_every_boundary_leaves_the_same_roll_up(
    postgres_url: str, tmp_path: Path
) -> None:
    """Killed and moved at each boundary once, each step takes effect once, and the roll-up is equal to pandas."""
    async with demo(NIGHTLY, tmp_path, "--days", "3", "--rounds", "1", "--database", postgres_url) as run:
        assert await run.end() == 0, run.output
    hit = re.findall(r"(SIGKILL|SIGTERM)\b.* while it led: (2013-01-0\d), ([a-z ]+)", run.output)
    assert len(hit) == len(set(hit)) == 18
    assert len({boundary for _, _, boundary in hit}) == 9
    assert {(how, boundary) for how, _, boundary in hit} == {
        (how, boundary) for how in ("SIGKILL", "SIGTERM") for _, _, boundary in hit
    }
    for step in ("load", "rollup", "write", "publish"):
        ran = re.search(rf"step {step} +. ran (\d+) times, took effect 3 times", run.output)
        assert ran is not None, run.output
        assert int(ran[1]) >= 5
    assert len(re.findall(r" yes  ", run.output)) == 7
    assert "each step once, equal to pandas" in run.output
    assert files(tmp_path) == []
    assert len(run.runner_pids) == 3 + 18
    assert not any(alive(pid) for pid in run.runner_pids)
    assert await schemas(postgres_url, "nightly_") == []


async def test_an_interrupted_run_of_the_job_ends_its_runners(postgres_url: str, tmp_path: Path) -> None:
    """Ctrl-C while leaders stand at a boundary ends every process and removes the schemas."""
    async with demo(NIGHTLY, tmp_path, "--database", postgres_url) as run:
        await run.until("load is stored")
        run.process.send_signal(signal.SIGINT)
        assert await run.end() == 128 + signal.SIGINT, run.output
    assert "Traceback" not in run.output
    assert files(tmp_path) == []
    assert not any(alive(pid) for pid in run.runner_pids)
    assert await schemas(postgres_url, "nightly_") == []
