"""Storing, starting, committing and failing durable messages, many at a time."""

import enum
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import msgspec

from actorhub.core.errors import ActorhubError
from actorhub.storage.message_ports import (
    NewMessage,
    NotPending,
    Readiness,
    RunCommit,
    RunFailure,
    RunStart,
    Stored,
    Verdict,
)
from actorhub.storage.ports import Fenced, VersionConflict
from actorhub.storage.postgres.batching import Again, Entry
from actorhub.storage.postgres.connections import Statement
from actorhub.storage.postgres.message_columns import FAILURES, message_arguments, run_arguments, start_arguments
from actorhub.storage.postgres.message_requests import duplicate_key, key_hash, repeated
from actorhub.storage.postgres.message_rows import stored
from actorhub.storage.postgres.queries import queries
from actorhub.storage.statistics import StorageCounters

FenceOf: TypeAlias = Callable[[str], int | None]
"""The key of an incarnation's fence; `None`: without one."""
NewEntry: TypeAlias = Entry[NewMessage, Stored]
StartEntry: TypeAlias = Entry[RunStart, Readiness]
RunEntry: TypeAlias = Entry[RunCommit, bool]
FailEntry: TypeAlias = Entry[RunFailure, float]

_ASK_AGAIN: Final = 5
"""What `store_messages` says of a message that something happened to meanwhile."""


class RunVerdict(enum.IntEnum):
    """What `commit_runs` says of a run."""

    WRITTEN = 0
    """Now, and its next run was counted, if it has one."""
    FENCED = 1
    CONFLICT = 2
    NOT_PENDING = 3
    DUPLICATE_KEY = 4
    NOT_COUNTED = 6
    """It is written, now or before, but its next run was not counted with it."""


class StoreBatches:
    """Stores messages: for their shards' owner, which is the batch's, or as deposits, where the batch has none."""

    writes = True

    def __init__(self, name: str, fence_of: FenceOf, counters: StorageCounters) -> None:
        self.name = name
        self.sql = queries()["store_messages"]
        self._fence_of = fence_of
        self._counters = counters

    async def run(self, statement: Statement, batch: Sequence[NewEntry]) -> Sequence[Stored | Again]:
        """Return the answer to each message."""
        self._counters.message_batches += 1
        owner = batch[0].owner or None
        messages = [entry.request for entry in batch]
        try:
            answers = await statement.fetch(
                None if owner is None else self._fence_of(owner), owner, *message_arguments(messages)
            )
        except BaseException:
            # The batch may have been written for all that. When it is sent again, its messages may be settled already,
            # and only what says that it is repeated is looked for there.
            for entry in batch:
                entry.request = repeated(entry.request)
            raise
        outcomes: list[Stored | Again] = [
            Stored(verdict=Verdict.NEW, message_id=message.message_id) for message in messages
        ]
        new = len(messages)
        self._counters.acknowledge(answers[0]["position"])
        for answer in answers:
            if answer[0] is None:
                break  # All are plainly stored.
            outcome = Again() if answer[1] == _ASK_AGAIN else stored(answer)
            outcomes[answer[0] - 1] = outcome
            new -= isinstance(outcome, Again) or outcome.verdict is not Verdict.NEW
        self._counters.stored += new
        return outcomes


class StartBatches:
    """Counts runs before they start."""

    name = "start runs"
    writes = False

    def __init__(self, fence_of: FenceOf, counters: StorageCounters) -> None:
        self.sql = queries()["start_runs"]
        self._fence_of = fence_of
        self._counters = counters

    async def run(self, statement: Statement, batch: Sequence[StartEntry]) -> Sequence[Readiness]:
        """Return for each run whether it may start."""
        self._counters.message_batches += 1
        owner = batch[0].owner
        starts = [entry.request for entry in batch]
        rows = await statement.fetch(self._fence_of(owner), owner, *start_arguments(starts))
        verdicts: Sequence[int] | None = rows[0][0]
        if verdicts is None:
            self._counters.started += len(starts)
            return [Readiness.RUN] * len(starts)
        outcomes = [Readiness(verdict) for verdict in verdicts]
        self._counters.started += outcomes.count(Readiness.RUN)
        return outcomes


class CommitBatches:
    """Writes what runs leave behind in one transaction under the owner's fence, each run all or nothing."""

    name = "commit runs"
    writes = True

    def __init__(self, fence_of: FenceOf, counters: StorageCounters) -> None:
        self.sql = queries()["commit_runs"]
        self._fence_of = fence_of
        self._counters = counters

    async def run(self, statement: Statement, batch: Sequence[RunEntry]) -> Sequence[bool | ActorhubError | Again]:
        """Return for each run that is written whether its next one was counted, else why it was refused."""
        self._counters.message_batches += 1
        owner = batch[0].owner
        outcomes: list[bool | ActorhubError | Again] = [Again()] * len(batch)
        apart = _with_keys_of_others([entry.request for entry in batch])
        places = [place for place in range(len(batch)) if place not in apart]
        runs = [batch[place].request for place in places]
        try:
            answer = await statement.fetch(self._fence_of(owner), owner, *run_arguments(runs))
        except BaseException:
            # As for stored messages: what was told may be settled by the time that the batch is sent again.
            for place, run in zip(places, runs, strict=True):
                if run.outbox:
                    outbox = tuple(map(repeated, run.outbox))
                    batch[place].request = msgspec.structs.replace(run, outbox=outbox)
            raise
        self._counters.acknowledge(answer[0][1])
        verdicts: Sequence[int] = answer[0][0] or [RunVerdict.WRITTEN] * len(runs)
        for place, run, verdict in zip(places, runs, verdicts, strict=True):
            outcomes[place] = run_outcome(verdict, run, owner)
        counted, uncounted = outcomes.count(True), outcomes.count(False)
        self._counters.refused += len(runs) - counted - uncounted
        self._counters.settled += counted + uncounted
        self._counters.started += counted
        return outcomes


class FailureBatches:
    """Records failed runs."""

    name = "record failed runs"
    writes = True

    def __init__(self, fence_of: FenceOf, counters: StorageCounters) -> None:
        self.sql = queries()["fail_runs"]
        self._fence_of = fence_of
        self._counters = counters

    async def run(self, statement: Statement, batch: Sequence[FailEntry]) -> Sequence[float | ActorhubError]:
        """Return for each run when the next one is due, or why it was refused."""
        self._counters.message_batches += 1
        owner = batch[0].owner
        failures = [entry.request for entry in batch]
        freed = [place for place, failure in enumerate(failures, 1) if failure.frees_key]
        ids = [failures[place - 1].message_id for place in freed]
        rows = await statement.fetch(self._fence_of(owner), owner, FAILURES.encode(failures), ids, freed)
        dues: Sequence[float] = rows[0][0]
        outcomes = [_due(due, failure, owner) for due, failure in zip(dues, failures, strict=True)]
        recorded = sum(isinstance(outcome, float) for outcome in outcomes)
        self._counters.failed_runs += recorded
        self._counters.refused += len(outcomes) - recorded
        return outcomes


def run_outcome(verdict: int, run: RunCommit, owner: str) -> bool | ActorhubError:
    """Return what a verdict of `commit_runs` means: whether the next run was counted, or the error."""
    match verdict:
        case RunVerdict.WRITTEN:
            return run.next_start is not None
        case RunVerdict.NOT_COUNTED:
            return False
        case RunVerdict.FENCED:
            return Fenced(f"{run.shard} no longer belongs to {owner} at epoch {run.epoch}")
        case RunVerdict.CONFLICT:
            return VersionConflict(
                f"{run.entity_type}/{run.entity_id}: version {run.version - 1} is not the stored one"
            )
        case RunVerdict.NOT_PENDING:
            return NotPending(f"message {run.message_id} was settled before this run of it")
        case _:
            return duplicate_key(run)


def _due(due: float, failure: RunFailure, owner: str) -> float | ActorhubError:
    if due >= 0:
        return due
    if due == -1:
        return Fenced(f"{failure.shard} no longer belongs to {owner} at epoch {failure.epoch}")
    return NotPending(f"message {failure.message_id} was settled before this run of it")


def _with_keys_of_others(runs: Sequence[RunCommit]) -> frozenset[int]:
    """Return the places of runs that told a message with the key of an earlier run's message.

    In one batch the two would insert the same key, and neither would see that the other one's payload may differ.
    """
    seen: set[bytes] = set()
    found: set[int] = set()
    for place, run in enumerate(runs):
        if not run.outbox:
            continue
        hashes = {hashed for message in run.outbox if (hashed := key_hash(message)) is not None}
        if seen.isdisjoint(hashes):
            seen |= hashes
        else:
            found.add(place)
    return frozenset(found)
