"""What processes wrote down while shards changed their owners, and the judge of it."""

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True)
class Event:
    """Something that began in a process; `at` is monotonic seconds, `number` an epoch or, of a read, what was read."""

    at: float
    what: str
    key: str
    number: int


@dataclass
class History:
    """What happened, and which numbers were acknowledged when, by key and in order."""

    events: Sequence[Event] = ()
    acknowledged: dict[str, list[tuple[float, int]]] = field(default_factory=dict)

    def of(self, key: str, what: str) -> list[Event]:
        """Return what happened to a key, by time."""
        return sorted((one for one in self.events if (one.key, one.what) == (key, what)), key=lambda one: one.at)


def read_events(paths: Iterable[Path]) -> list[Event]:
    """Return what all processes wrote down."""
    lines = (line for path in paths for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))
    return [Event(*json.loads(line)) for line in lines]


def violations(history: History) -> list[str]:
    """Return what a cluster that keeps its promises would not have done."""
    keys = sorted(history.acknowledged)
    found = [text for key in keys for judge in (_stale_reads, _two_owners) for text in judge(history, key)]
    return [*found, *_two_leaders(history)]


def _stale_reads(history: History, key: str) -> Iterator[str]:
    """A read that begins after a number was acknowledged returns that number, or a later one."""
    times = [at for at, _ in history.acknowledged[key]]
    late = [(read, place) for read in history.of(key, "read") if (place := bisect_left(times, read.at))]
    stale = [(read.at - history.acknowledged[key][read.number][0], read) for read, place in late if read.number < place]
    if stale:
        seconds, read = max(stale, key=lambda one: one[0])
        yield f"{key}: {len(stale)} stale reads, one of {read.number} {seconds:.3f} s after the next was acknowledged"


def _two_owners(history: History, key: str) -> Iterator[str]:
    """Once an entity has acted at an epoch, none of its kind acts at an earlier one."""
    for before, after in pairwise(history.of(key, "act")):
        if after.number < before.number:
            yield f"{key} acted at epoch {after.number} {after.at - before.at:.3f} s after it did at {before.number}"


def _two_leaders(history: History) -> Iterator[str]:
    """A leader begins after the one before it has been told that it ceased."""
    ceased = {one.number: one.at for one in history.of("leader", "lose")}
    for before, after in pairwise(history.of("leader", "become")):
        late = ceased.get(before.number, float("inf")) - after.at
        if late > 0:
            yield f"epoch {after.number} led {late:.3f} s before epoch {before.number} had been told"
