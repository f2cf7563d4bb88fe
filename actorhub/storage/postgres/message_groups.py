"""Storing, starting, committing and failing durable messages, many at a time."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from actorhub.core.errors import ActorhubError
from actorhub.storage.message_ports import NotPending, Readiness, RunCommit, RunFailure, RunStart, Stored, Verdict
from actorhub.storage.ports import Fenced, VersionConflict
from actorhub.storage.postgres.grouping import Again, Entry
from actorhub.storage.postgres.message_rows import (
    NewRow,
    RunRow,
    addresses,
    contents,
    duplicate_key,
    error_text,
    repeats,
    sparse,
    stored,
    traceback_text,
)
from actorhub.storage.postgres.queries import queries
from actorhub.storage.statistics import StorageCounters

if TYPE_CHECKING:
    from actorhub.storage.postgres.lane import Statement

FenceOf: TypeAlias = Callable[[str], int | None]
"""The key of an incarnation's fence; `None`: without one."""
NewEntry: TypeAlias = Entry[NewRow, Stored]
StartEntry: TypeAlias = Entry[RunStart, Readiness]
RunEntry: TypeAlias = Entry[RunRow, bool]
FailEntry: TypeAlias = Entry[RunFailure, float]

_ASK_AGAIN: Final = 5
_FENCED: Final = 1
_CONFLICT: Final = 2
_NOT_PENDING: Final = 3
_NOT_COUNTED: Final = 6


class StoreGroups:
    """Stores messages: for their owner, which is the group's party, or as deposits, where that is empty."""

    writes = True

    def __init__(self, name: str, fence_of: FenceOf, counters: StorageCounters) -> None:
        self.name = name
        self.sql = queries()["store_messages"]
        self._fence_of = fence_of
        self._counters = counters

    async def run(self, statement: "Statement", group: Sequence[NewEntry]) -> Sequence[Stored | Again]:
        """Return the answer to each message."""
        self._counters.message_groups += 1
        owner = group[0].party or None
        rows = [entry.request for entry in group]
        try:
            answers = await statement.fetch(
                None if owner is None else self._fence_of(owner),
                owner,
                *addresses(rows),
                [row.message.epoch for row in rows],
                *contents(rows),
                [row.message.attempts for row in rows],
                repeats(rows),
            )
        except BaseException:
            _mark_repeated(rows)
            raise
        outcomes: list[Stored | Again] = [
            Stored(verdict=Verdict.NEW, message_id=row.message.message_id) for row in rows
        ]
        for answer in answers:
            outcomes[answer[0] - 1] = Again() if answer[1] == _ASK_AGAIN else stored(answer)
        new = sum(isinstance(outcome, Stored) and outcome.verdict is Verdict.NEW for outcome in outcomes)
        self._counters.stored += new
        return outcomes


class RunStarts:
    """Counts runs before they start."""

    name = "start runs"
    writes = False

    def __init__(self, fence_of: FenceOf, counters: StorageCounters) -> None:
        self.sql = queries()["start_runs"]
        self._fence_of = fence_of
        self._counters = counters

    async def run(self, statement: "Statement", group: Sequence[StartEntry]) -> Sequence[Readiness]:
        """Return for each run whether it may start."""
        self._counters.message_groups += 1
        owner = group[0].party
        starts = [entry.request for entry in group]
        rows = await statement.fetch(
            self._fence_of(owner),
            owner,
            [start.message_id for start in starts],
            [start.shard.group for start in starts],
            [start.shard.number for start in starts],
            [start.epoch for start in starts],
            [start.attempts for start in starts],
        )
        verdicts: Sequence[int] | None = rows[0][0]
        if verdicts is None:
            self._counters.started += len(starts)
            return [Readiness.RUN] * len(starts)
        outcomes = [Readiness(verdict) for verdict in verdicts]
        self._counters.started += outcomes.count(Readiness.RUN)
        return outcomes


class RunCommits:
    """Writes what runs leave behind in one transaction under the owner's fence, each run all or nothing."""

    name = "commit runs"
    writes = True

    def __init__(self, fence_of: FenceOf, counters: StorageCounters) -> None:
        self.sql = queries()["commit_runs"]
        self._fence_of = fence_of
        self._counters = counters

    async def run(self, statement: "Statement", group: Sequence[RunEntry]) -> Sequence[bool | ActorhubError | Again]:
        """Return for each run that is written whether its next one was counted, else why it was refused."""
        self._counters.message_groups += 1
        owner = group[0].party
        outcomes: list[bool | ActorhubError | Again] = [Again()] * len(group)
        apart = _with_keys_of_others([entry.request for entry in group])
        places = [place for place in range(len(group)) if place not in apart]
        rows = [group[place].request for place in places]
        try:
            answer = await statement.fetch(self._fence_of(owner), owner, *run_columns(rows))
        except BaseException:
            for row in rows:
                _mark_repeated(row.outbox)
            raise
        verdicts: Sequence[int] = answer[0][0] or [0] * len(rows)
        for place, row, verdict in zip(places, rows, verdicts, strict=True):
            outcomes[place] = verdict_of(verdict, row.run, owner)
        refused = sum(isinstance(outcome, ActorhubError) for outcome in outcomes)
        self._counters.refused += refused
        self._counters.settled += len(rows) - refused
        self._counters.started += outcomes.count(True)
        return outcomes


class RunFailures:
    """Notes failed runs."""

    name = "note failed runs"
    writes = True

    def __init__(self, fence_of: FenceOf, counters: StorageCounters) -> None:
        self.sql = queries()["fail_runs"]
        self._fence_of = fence_of
        self._counters = counters

    async def run(self, statement: "Statement", group: Sequence[FailEntry]) -> Sequence[float | ActorhubError]:
        """Return for each run when the next one is due, or why it was refused."""
        self._counters.message_groups += 1
        owner = group[0].party
        failures = [entry.request for entry in group]
        rows = await statement.fetch(
            self._fence_of(owner),
            owner,
            [failure.message_id for failure in failures],
            [failure.shard.group for failure in failures],
            [failure.shard.number for failure in failures],
            [failure.epoch for failure in failures],
            [failure.pause for failure in failures],
            [failure.attempts for failure in failures],
            [failure.error for failure in failures],
            [error_text(failure.error_type) for failure in failures],
            [error_text(failure.error_text) for failure in failures],
            [traceback_text(failure.traceback) for failure in failures],
        )
        dues: Sequence[float] = rows[0][0]
        outcomes = [_due(due, failure, owner) for due, failure in zip(dues, failures, strict=True)]
        noted = sum(isinstance(outcome, float) for outcome in outcomes)
        self._counters.failed_runs += noted
        self._counters.refused += len(outcomes) - noted
        return outcomes


def run_columns(rows: Sequence[RunRow]) -> tuple[Sequence[object] | None, ...]:
    """Return the arguments of `commit_runs` after fence and incarnation."""
    runs = [row.run for row in rows]
    replies = [run.reply if run.message_id else None for run in runs]
    outbox = [message for row in rows for message in row.outbox]
    told = [place for place, row in enumerate(rows, 1) for _ in row.outbox]
    columns: tuple[Sequence[object] | None, ...] = (
        [run.shard.group for run in runs],
        [run.shard.number for run in runs],
        [run.epoch for run in runs],
        [run.entity_type for run in runs],
        [run.entity_id for run in runs],
        [run.version for run in runs],
        sparse([run.data if run.version else None for run in runs]),
        sparse([run.message_id or None for run in runs]),
        sparse([None if reply is None else reply.outcome for reply in replies]),
        sparse([None if reply is None else reply.body for reply in replies]),
        [run.retention for run in runs],
    )
    told_columns = (told, *addresses(outbox), *contents(outbox), repeats(outbox)) if outbox else [None] * 15
    next_ids = sparse([None if run.next_start is None else run.next_start.message_id for run in runs])
    next_counts = [None if run.next_start is None else run.next_start.attempts for run in runs] if next_ids else None
    return (*columns, *told_columns, next_ids, next_counts)


def verdict_of(verdict: int, run: RunCommit, owner: str) -> bool | ActorhubError:
    """Return what a verdict of `commit_runs` means: whether the next run was counted, or the error."""
    match verdict:
        case 0:
            return run.next_start is not None
        case _ if verdict == _NOT_COUNTED:
            return False
        case _ if verdict == _FENCED:
            return Fenced(f"{run.shard} does not belong to {owner} at epoch {run.epoch} any more")
        case _ if verdict == _CONFLICT:
            return VersionConflict(
                f"{run.entity_type}/{run.entity_id}: version {run.version - 1} is not the stored one"
            )
        case _ if verdict == _NOT_PENDING:
            return NotPending(f"message {run.message_id} was settled before this run of it")
        case _:
            return duplicate_key(run)


def _due(due: float, failure: RunFailure, owner: str) -> float | ActorhubError:
    if due >= 0:
        return due
    if due == -1:
        return Fenced(f"{failure.shard} does not belong to {owner} at epoch {failure.epoch} any more")
    return NotPending(f"message {failure.message_id} was settled before this run of it")


def _with_keys_of_others(rows: Sequence[RunRow]) -> frozenset[int]:
    """Return the places of runs that told a message with the key of an earlier run's message."""
    seen: set[bytes] = set()
    found: set[int] = set()
    for place, row in enumerate(rows):
        hashes = {message.key_hash for message in row.outbox if message.key_hash is not None}
        if seen.isdisjoint(hashes):
            seen |= hashes
        else:
            found.add(place)
    return frozenset(found)


def _mark_repeated(rows: Sequence[NewRow]) -> None:
    for row in rows:
        row.repeated = True
