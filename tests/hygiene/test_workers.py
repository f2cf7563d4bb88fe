"""Tests that run side by side do not disturb each other, and a worker that is lost leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

from actorhub.testing.cluster import until
from tests.hygiene.sources import ROOT

_SIDE_BY_SIDE = '''
"""Tests that write down when they begin and end."""
import os
import time
from pathlib import Path
import pytest

def note(kind):
    with Path(__file__).with_name("log").open("a") as log:
        log.write(kind)
    time.sleep(0.01)

def wait_for_the_other_worker():
    Path(__file__).with_name(os.environ["PYTEST_XDIST_WORKER"]).touch()
    while len(list(Path(__file__).parent.glob("gw*"))) < 2:
        time.sleep(0.01)

@pytest.mark.parametrize("number", range(40))
def test_together(number):
    note("(")
    wait_for_the_other_worker()
    note(")")

@pytest.mark.alone
@pytest.mark.parametrize("number", range(20))
def test_alone(number):
    note("[")
    note("]")
'''
_LOST = '''
"""A test that ends its worker while it has servers and frozen runners."""
import os
import signal
from pathlib import Path

async def test_it(own_postgres, postgres_url, processes):
    for runner in processes.runners:
        processes.spawn(runner)
    served = Processes(Path(__file__).parent, ACTORHUB_DATABASE_URL=postgres_url)
    served = await served.serve()
    for runner in processes.runners:
        await runner.ready()
        runner.freeze()
    os.kill(own_postgres.pid, signal.SIGSTOP)
    pids = [own_postgres.pid, served.pid, *(runner._process.pid for runner in processes.runners)]
    Path(__file__).with_name("log").write_text(" ".join(map(str, pids)))
    os.kill(os.getpid(), signal.SIGKILL)

from tests.faults.conftest import processes
from tests.support.processes import Processes
'''


def _run(text: str, directory: Path, workers: int) -> tuple[str, str]:
    """Run the tests in `text` by so many workers; return what they wrote down, and what pytest said."""
    file = directory / "test_nested.py"
    file.write_text(text)
    options = ("-n", str(workers), "--dist", "worksteal", "--max-worker-restart", "0", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-p", "tests.conftest", *options, str(file)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (directory / "log").exists(), done.stdout + done.stderr
    return (directory / "log").read_text(), done.stdout


def test_a_test_that_is_alone_has_no_other_beside_it(tmp_path: Path) -> None:
    """It begins when all others have ended, and the others begin when it has."""
    log, said = _run(_SIDE_BY_SIDE, tmp_path, 2)
    assert " 60 passed" in said
    assert log.count("[]") == 20
    assert "((" in log
    depth = 0
    for kind in log:
        assert kind in "()" or depth == 0, log
        depth += {"(": 1, ")": -1}.get(kind, 0)


async def test_a_worker_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    """Neither servers nor runners are left, though they are stopped and cannot notice that anybody is gone."""
    log, said = _run(_LOST, tmp_path, 1)
    assert "crashed" in said
    pids = [int(pid) for pid in log.split()]
    assert len(pids) == 5
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "that all of them are gone")
