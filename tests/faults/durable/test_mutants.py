"""The judge of durable messages finds each of many defects of the product, and none where there is none."""

import pytest

from tests.faults import mutants
from tests.faults.cluster.processes import ClusterProcesses
from tests.faults.durable.checks import durable_violations, explained_violations
from tests.faults.durable.process_scenarios import (
    ProcessScenario,
    a_commit_that_arrives_after_the_takeover,
    a_commit_that_never_arrives,
    a_teller_that_dies,
    a_teller_that_freezes,
)
from tests.faults.durable.scenarios import (
    Scenario,
    a_handler_that_refuses,
    a_key_whose_message_was_cancelled,
    a_message_that_is_cancelled,
    a_message_that_kills_its_runner,
    a_runner_that_dies_with_a_backlog,
    a_runner_that_leaves,
    an_answer_that_is_lost,
    messages_for_later,
    one_key_from_several_callers,
)

FOUND_BY: dict[str, tuple[Scenario, str]] = {
    "keys are ignored": (one_key_from_several_callers, "D: 1 was committed"),
    "a repeated call is taken for a new one": (an_answer_that_is_lost, "D: 1 was committed 2 times"),
    "shards are released before they are drained": (a_runner_that_leaves, "B: 1 ran 2 times"),
    "what a former owner left is not loaded": (a_runner_that_dies_with_a_backlog, "is still pending"),
    "the newest message is loaded first": (a_runner_that_dies_with_a_backlog, "G: e0: "),
    "runs are counted after they end": (a_message_that_kills_its_runner, "P: 1 "),
    "what a handler tells leaves at once": (a_handler_that_refuses, "was told by a run that was not committed"),
    "domain errors are run again": (a_handler_that_refuses, "A: "),
    "the state is not rolled back": (a_handler_that_refuses, "ended as error and is in the state"),
    "messages run before they are due": (messages_for_later, "T: "),
    "cancellations are forgotten": (a_message_that_is_cancelled, "was cancelled and"),
    "a cancelled key stays taken": (a_key_whose_message_was_cancelled, "D: e0: 2 was refused for key k"),
}

FOUND_IN_PROCESSES: dict[str, tuple[ProcessScenario, str]] = {
    "the fence is off": (a_commit_that_arrives_after_the_takeover, "B: e0: 2 was committed at epoch"),
    "replies leave before their commit": (a_commit_that_never_arrives, "D: 2 was replied"),
    "what is stored does not go first": (a_teller_that_dies, "G: "),
}


@pytest.mark.parametrize("scenario", dict.fromkeys(each for each, _ in FOUND_BY.values()), ids=lambda it: it.__name__)
async def test_the_product_passes_each_scenario(scenario: Scenario) -> None:
    """Without a defect, the ground on which one would show is clean."""
    found = durable_violations(await scenario())
    assert found == [], explained_violations(found)


@pytest.mark.parametrize("name", FOUND_BY)
async def test_each_defect_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a defect in the product, the judge names the promise that it breaks."""
    scenario, expected = FOUND_BY[name]
    mutants.apply(name, monkeypatch.setattr)
    found = durable_violations(await scenario())
    assert any(expected in text for text in found), explained_violations(found)


@pytest.mark.parametrize("name", FOUND_IN_PROCESSES)
async def test_the_product_passes_each_scenario_of_processes(name: str, durable_processes: ClusterProcesses) -> None:
    """Without a defect, real processes on a real Postgres break no promise on such ground."""
    found = durable_violations(await FOUND_IN_PROCESSES[name][0](durable_processes))
    assert found == [], explained_violations(found)


async def test_what_a_frozen_teller_left_is_not_overtaken(durable_processes: ClusterProcesses) -> None:
    """Neither does it run a second time when the teller goes on."""
    found = durable_violations(await a_teller_that_freezes(durable_processes))
    assert found == [], explained_violations(found)


@pytest.mark.parametrize("name", FOUND_IN_PROCESSES)
async def test_each_defect_of_processes_is_found(name: str, durable_processes: ClusterProcesses) -> None:
    """With a defect in the product, the judge names the promise that it breaks."""
    scenario, expected = FOUND_IN_PROCESSES[name]
    for runner in durable_processes.runners:
        runner.environment["DURABLE_MUTANT"] = name
    found = durable_violations(await scenario(durable_processes))
    assert any(expected in text for text in found), explained_violations(found)
