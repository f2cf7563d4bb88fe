"""Storing, starting, committing and failing durable messages, many at a time."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

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
from actorhub.storage.postgres.grouping import Again, Entry
from actorhub.storage.postgres.message_rows import (
    duplicate_key,
    error_text,
    key_hash,
    lines,
    numbers,
    rare_columns,
    repeated,
    repeats,
    shard_columns,
    stored,
    traceback_text,
)
from actorhub.storage.postgres.queries import queries
from actorhub.storage.statistics import StorageCounters

if TYPE_CHECKING:
    from actorhub.storage.postgres.lane import Statement

FenceOf: TypeAlias = Callable[[str], int | None]
"""The key of an incarnation's fence; `None`: without one."""
NewEntry: TypeAlias = Entry[NewMessage, Stored]
StartEntry: TypeAlias = Entry[RunStart, Readiness]
RunEntry: TypeAlias = Entry[RunCommit, bool]
FailEntry: TypeAlias = Entry[RunFailure, float]

WRITTEN: Final = 0
"""The verdict of `commit_runs` on a run that is written, with its next one counted, if it has one."""
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
        messages = [entry.request for entry in group]
        try:
            answers = await statement.fetch(
                None if owner is None else self._fence_of(owner), owner, *new_columns(messages)
            )
        except BaseException:
            for entry in group:
                entry.request = repeated(entry.request)
            raise
        outcomes: list[Stored | Again] = [
            Stored(verdict=Verdict.NEW, message_id=message.message_id) for message in messages
        ]
        new = len(messages)
        for answer in answers:
            outcome = Again() if answer[1] == _ASK_AGAIN else stored(answer)
            outcomes[answer[0] - 1] = outcome
            new -= isinstance(outcome, Again) or outcome.verdict is not Verdict.NEW
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
            *_start_columns(starts),
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
        runs = [group[place].request for place in places]
        try:
            answer = await statement.fetch(self._fence_of(owner), owner, *run_columns(runs))
        except BaseException:
            for place, run in zip(places, runs, strict=True):
                if run.outbox:
                    outbox = tuple(map(repeated, run.outbox))
                    group[place].request = msgspec.structs.replace(run, outbox=outbox)
            raise
        verdicts: Sequence[int] = answer[0][0] or [0] * len(runs)
        for place, run, verdict in zip(places, runs, verdicts, strict=True):
            outcomes[place] = verdict_of(verdict, run, owner)
        counted, uncounted = outcomes.count(True), outcomes.count(False)
        self._counters.refused += len(runs) - counted - uncounted
        self._counters.settled += counted + uncounted
        self._counters.started += counted
        return outcomes


class RunFailures:
    """CheckpointWrite failed runs."""

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


def new_columns(messages: Sequence[NewMessage]) -> tuple[object, ...]:
    """Return the arguments of `store_messages` after fence and incarnation."""
    shards, epochs = [message.shard for message in messages], [message.epoch for message in messages]
    held_group, held_numbers, held_epochs, groups, places, rows = shard_columns(shards, epochs)
    return (
        held_group,
        held_numbers,
        held_epochs,
        numbers([message.message_id for message in messages]),
        groups,
        places,
        rows,
        lines([message.entity_type for message in messages]),
        lines([message.entity_id for message in messages]),
        lines([message.handler for message in messages]),
        numbers([message.attempts for message in messages]),
        *rare_columns(messages),
        repeats(messages),
    )


def run_columns(runs: Sequence[RunCommit]) -> tuple[object, ...]:
    """Return the arguments of `commit_runs` after fence and incarnation."""
    replies = [run.reply if run.message_id else None for run in runs]
    held_group, *held = shard_columns([run.shard for run in runs], [run.epoch for run in runs])
    return (
        None if None in replies else held_group,
        *held,
        numbers([run.message_id for run in runs]),
        numbers([0 if reply is None else reply.outcome.value for reply in replies]),
        numbers([run.retention for run in runs]),
        [None if reply is None else reply.body for reply in replies],
        *_next_columns([run.next_start for run in runs]),
        *_state_columns(runs),
        *_outbox_columns(runs),
    )


def _start_columns(starts: Sequence[RunStart]) -> tuple[object, ...]:
    held_group, held_numbers, held_epochs, *rows = shard_columns(
        [start.shard for start in starts], [start.epoch for start in starts]
    )
    return (
        held_group,
        held_numbers,
        held_epochs,
        numbers([start.message_id for start in starts]),
        *rows,
        numbers([start.attempts for start in starts]),
    )


def _next_columns(starts: Sequence[RunStart | None]) -> tuple[str | None, str | None]:
    if starts.count(None) == len(starts):
        return None, None
    return (
        numbers([0 if start is None else start.message_id for start in starts]),
        numbers([0 if start is None else start.attempts for start in starts]),
    )


def _state_columns(runs: Sequence[RunCommit]) -> tuple[Sequence[object] | None, ...]:
    versions = [run.version for run in runs]
    if not any(versions):
        return None, None, None, None
    return (
        [run.entity_type for run in runs],
        [run.entity_id for run in runs],
        versions,
        [run.data if run.version else None for run in runs],
    )


def _outbox_columns(runs: Sequence[RunCommit]) -> tuple[Sequence[object] | None, ...]:
    outbox = [message for run in runs for message in run.outbox]
    if not outbox:
        return (None,) * 15
    return (
        [place for place, run in enumerate(runs, 1) for _ in run.outbox],
        [message.message_id for message in outbox],
        [message.shard.group for message in outbox],
        [message.shard.number for message in outbox],
        [message.entity_type for message in outbox],
        [message.entity_id for message in outbox],
        [message.handler for message in outbox],
        *rare_columns(outbox),
        repeats(outbox),
    )


def verdict_of(verdict: int, run: RunCommit, owner: str) -> bool | ActorhubError:
    """Return what a verdict of `commit_runs` means: whether the next run was counted, or the error."""
    match verdict:
        case _ if verdict == WRITTEN:
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


def _with_keys_of_others(runs: Sequence[RunCommit]) -> frozenset[int]:
    """Return the places of runs that told a message with the key of an earlier run's message."""
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
