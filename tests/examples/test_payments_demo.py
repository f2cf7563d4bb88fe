"""The payments example as a user runs it: real processes, a real Postgres, runners killed on the way."""

import re
from pathlib import Path

from tests.examples.demo_process import alive, demo, files, schemas

PAYMENTS = "examples.payments"


async def test_no_cent_is_lost_when_runners_are_lost(postgres_url: str, tmp_path: Path) -> None:
    """A runner is killed, one leaves, every check of the books says yes, and neither process nor schema is left."""
    arguments = ("--accounts", "40", "--transfers", "600", "--kills", "1", "--runners", "2", "--database", postgres_url)
    async with demo(PAYMENTS, tmp_path, *arguments) as run:
        assert await run.end() == 0, run.output
    assert re.search(r"killed runner \d \(pid \d+, SIGKILL\)", run.output)
    assert re.search(r"runner \d \(pid \d+\) left on SIGTERM with status 0", run.output)
    assert len(re.findall(r" yes  ", run.output)) == 10
    assert "every cent is there" in run.output
    assert "2 runners left on SIGTERM with status 0" in run.output
    assert files(tmp_path) == []
    assert len(run.runner_pids) == 4
    assert not any(alive(pid) for pid in run.runner_pids)
    assert await schemas(postgres_url, "payments_") == []
