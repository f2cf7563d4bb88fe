"""Everything at once under faults of every kind; whatever was acknowledged is judged.

`FAULT_SEED` repeats a run, `FAULT_COUNT` bounds the long one, `ACTORHUB_LOCKS` says how runners hold their shards, and
`FAULT_REPORT` names the file that gets the report.
"""

import os
import random
from pathlib import Path

import pytest

from tests.faults.cluster.processes import ClusterProcesses
from tests.faults.nemesis.report import write
from tests.faults.nemesis.run import ALL_KINDS, LOCKS, Outcome, Plan, run_nemesis

COUNT = int(os.environ.get("FAULT_COUNT", "200"))
SEED = int(os.environ.get("FAULT_SEED", "0")) or random.randrange(1, 1_000_000)
REPORT = os.environ.get("FAULT_REPORT", "")


def told(outcome: Outcome) -> str:
    """Say what a run was like."""
    return (
        f"seed {outcome.seed}: {outcome.faults.total()} faults in {outcome.seconds:.0f} s, "
        f"{dict(outcome.acknowledged)}, {outcome.reads} reads"
    )


@pytest.mark.faults
async def test_everything_at_once_survives_forty_faults(nemesis_processes: ClusterProcesses) -> None:
    """Faults that come fast and on top of each other break no promise to anybody."""
    outcome = await run_nemesis(nemesis_processes, Plan(SEED, 40, longest=0.6, overlap=0.7))
    print(told(outcome))
    assert outcome.found == [], "\n".join(outcome.found)
    assert set(outcome.faults) == set(ALL_KINDS)


@pytest.mark.faults
@pytest.mark.timeout(7200)
async def test_everything_at_once_survives_the_nemesis(nemesis_processes: ClusterProcesses) -> None:
    """The same for as long as it takes to inject hundreds of faults, or thousands."""
    outcome = await run_nemesis(nemesis_processes, Plan(SEED, COUNT))
    print(told(outcome))
    if REPORT:
        [row] = await nemesis_processes.fetch("show server_version")
        write(Path(REPORT), outcome, LOCKS, row[0])
    assert outcome.found == [], "\n".join(outcome.found)
