"""What a singleton's leaders left behind while they were killed and frozen, and the judge of it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.faults.cluster.notes import NotesReader
from tests.faults.leaders.hub import LEAD, PARTS


@dataclass(frozen=True)
class Done:
    """A step that was committed; `number` is the epoch where it is the first one of a leader."""

    seq: int
    number: int
    part: str
    epoch: int
    incarnation: str
    at: float


@dataclass(frozen=True)
class Tick:
    """A fire time of the schedule that was committed; `fire_time` is seconds since the Unix epoch."""

    seq: int
    fire_time: int
    ticks: int
    epoch: int
    incarnation: str
    at: float


@dataclass(frozen=True)
class Sample:
    """Who had the singleton's shard at one moment."""

    at: float
    holders: tuple[str, ...]
    """Names of the sessions that had its lock."""
    epoch: int
    owner: str | None


@dataclass(frozen=True)
class Turn:
    """A leader began or stopped to lead, as its process wrote down; `at` is monotonic seconds."""

    at: float
    what: str
    epoch: int
    incarnation: str


@dataclass(frozen=True)
class Stored:
    """The singleton's row in the end."""

    version: int
    epoch: int
    number: int
    ticks: int


@dataclass(frozen=True)
class Chronicle:
    """Everything that is known of a run once all processes left."""

    done: Sequence[Done]
    ticks: Sequence[Tick]
    stored: Stored
    skipped: int
    """Fire times that the schedule counts as skipped."""
    dead: int = 0
    """Dead letters."""
    samples: Sequence[Sample] = ()
    turns: Sequence[Turn] = ()
    ends: Mapping[str, float] = field(default_factory=dict[str, float])
    """When processes were killed, by incarnation."""
    frozen: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    """When processes were stopped for a while, by incarnation: they may believe that they lead, and commit nothing."""

    @property
    def commits(self) -> Sequence[Done | Tick]:
        """All that leaders committed."""
        return [*self.done, *self.ticks]


def leader_violations(chronicle: Chronicle) -> list[str]:
    """Return how the promises about singletons were broken, as text."""
    return [
        *_epochs(chronicle),
        *_steps(chronicle),
        *_fire_times(chronicle),
        *_state(chronicle),
        *_locks(chronicle.samples),
        *_turns(chronicle),
    ]


def read_turns(files: Iterable[Path]) -> list[Turn]:
    """Return what processes wrote down, in order of time."""
    return turns_of(NotesReader(lambda: files).read())


def turns_of(noted: Iterable[Sequence[Any]]) -> list[Turn]:
    """Return the turns that processes wrote down, in order of time."""
    return sorted((Turn(*values) for *values, _ in noted), key=lambda turn: turn.at)


def _epochs(chronicle: Chronicle) -> Iterator[str]:
    """Commits of two leaders must not interleave: by sequence and by clock, no epoch comes after a later one."""
    for kind in (Done, Tick):
        rows = [row for row in chronicle.commits if isinstance(row, kind)]
        for one, other in pairwise(sorted(rows, key=lambda row: row.seq)):
            if other.epoch < one.epoch:
                yield f"epoch fell: {other} after {one}"
    by_epoch: dict[int, list[Done | Tick]] = {}
    for commit in chronicle.commits:
        by_epoch.setdefault(commit.epoch, []).append(commit)
    for earlier, later in pairwise(sorted(by_epoch)):
        last, first = max(row.at for row in by_epoch[earlier]), min(row.at for row in by_epoch[later])
        if first < last:
            yield f"epochs {earlier} and {later} interleave: {first:.3f} is before {last:.3f}"
    for epoch, commits in by_epoch.items():
        if len(leaders := {row.incarnation for row in commits}) > 1:
            yield f"epoch {epoch} has leaders {sorted(leaders)}"


def _steps(chronicle: Chronicle) -> Iterator[str]:
    """Each part of each number is committed once, in order, without a gap."""
    rows = sorted((row for row in chronicle.done if row.part != LEAD), key=lambda row: row.seq)
    for place, row in enumerate(rows):
        expected = place // len(PARTS) + 1, PARTS[place % len(PARTS)]
        if (row.number, row.part) != expected:
            yield f"{row} came where {expected} was to come"
            return
    complete = len(rows) // len(PARTS)
    if chronicle.stored.number not in {complete, complete - (len(rows) % len(PARTS) == 0)}:
        yield f"the state says {chronicle.stored.number}, the steps {complete}"


def _fire_times(chronicle: Chronicle) -> Iterator[str]:
    """Each second from the first fire time to the last is committed once, or counted as skipped."""
    counts = Counter(tick.fire_time for tick in chronicle.ticks)
    yield from (
        f"fire time {fire_time} was committed {count} times" for fire_time, count in counts.items() if count > 1
    )
    if counts:
        left_out = sorted(set(range(min(counts), max(counts) + 1)) - set(counts))
        if len(left_out) > chronicle.skipped:
            yield f"{len(left_out)} fire times did not run, {chronicle.skipped} were skipped: {left_out[:10]}"
    if chronicle.dead:
        yield f"{chronicle.dead} fire times became dead letters"


def _state(chronicle: Chronicle) -> Iterator[str]:
    """Nothing that was committed is forgotten: each tick and each save made one version."""
    stored = chronicle.stored
    ticks = [tick.ticks for tick in sorted(chronicle.ticks, key=lambda tick: tick.seq)]
    if ticks != list(range(1, len(ticks) + 1)):
        yield f"the ticks count {_first_wrong(ticks)}"
    if stored.ticks != len(ticks):
        yield f"the state says {stored.ticks} ticks, there are {len(ticks)}"
    if stored.version != stored.number + stored.ticks:
        yield f"version {stored.version} after {stored.number} saves and {stored.ticks} ticks"
    last = max((row.epoch for row in chronicle.commits), default=0)
    if stored.epoch > last:
        yield f"the state is of epoch {stored.epoch}, the last commit of {last}"


def _first_wrong(ticks: Sequence[int]) -> str:
    return next((f"{tick} where {place} was to come" for place, tick in enumerate(ticks, 1) if tick != place), "")


def _locks(samples: Sequence[Sample]) -> Iterator[str]:
    """At every moment one session at most has the lock, and the shard's epoch never falls."""
    yield from (f"several have the lock: {sample}" for sample in samples if len(sample.holders) > 1)
    for one, other in pairwise(samples):
        if other.epoch < one.epoch:
            yield f"the shard's epoch fell: {other} after {one}"
        if other.epoch == one.epoch and None not in (one.owner, other.owner) and other.owner != one.owner:
            yield f"the owner changed within an epoch: {other} after {one}"


def _turns(chronicle: Chronicle) -> Iterator[str]:
    """A leader begins after the one before it stopped, or died; one that was frozen does not know that it lost."""
    begun = [turn for turn in chronicle.turns if turn.what == "become"]
    for one, other in pairwise(sorted(begun, key=lambda turn: (turn.epoch, turn.at))):
        if any(one.at <= at <= other.at for at in chronicle.frozen.get(one.incarnation, ())):
            continue
        ended = [turn.at for turn in chronicle.turns if turn.what == "lose" and turn.epoch == one.epoch]
        if one.incarnation in chronicle.ends:
            ended.append(chronicle.ends[one.incarnation])
        if not any(one.at <= end <= other.at for end in ended):
            yield f"two led: {other} while {one} had not ended"
