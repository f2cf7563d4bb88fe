"""The nemesis notices defects of the product of each kind that it is there for."""

from collections.abc import Mapping

import pytest

from tests.faults.cluster.faults import KINDS, Faults, Injection, end_lock_session_unheard
from tests.faults.cluster.processes import ClusterProcesses
from tests.faults.leaders.records import shard_of_singleton
from tests.faults.nemesis.run import Plan, run_nemesis


async def _cut_off_the_leader(faults: Faults) -> str:
    """End the lock session of whoever leads the singleton, who does not hear of it."""
    shard = await shard_of_singleton(faults.processes)
    return await end_lock_session_unheard(faults, await faults.processes.owner(str(shard)))


_CUT_OFF = {"cut off the leader": _cut_off_the_leader}
_KILL = {"kill a runner": KINDS["kill a runner"]}
FOUND_BY: dict[str, tuple[Mapping[str, Injection], int, list[str]]] = {
    "a free lock is taken at once": (_CUT_OFF, 2, ["stale reads"]),
    "whoever cannot be asked counts as dead": (_CUT_OFF, 2, ["stale reads"]),
    # Two kills are not enough: each must come between a commit and its reply.
    "keys are ignored": (_KILL, 12, ["different replies"]),
}
"""The faults, how many of them, and what the judges say."""


@pytest.mark.faults
@pytest.mark.parametrize("name", FOUND_BY)
async def test_the_nemesis_finds_each_defect(name: str, nemesis_processes: ClusterProcesses) -> None:
    """With a defect in the product, the judges name the promises that it breaks."""
    kinds, count, expected = FOUND_BY[name]
    for runner in nemesis_processes.runners:
        runner.environment["NEMESIS_MUTANT"] = name
    plan = Plan(1, count, kinds=kinds, longest=2.5, shortest=2.5, station=2, patience=4.0)
    outcome = await run_nemesis(nemesis_processes, plan)
    for text in expected:
        assert any(text in found for found in outcome.found), "\n".join(outcome.found)
