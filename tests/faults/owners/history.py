"""What processes wrote down while shards changed their owners, and the judge of it."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Final

from tests.faults.cluster.notes import NotesReader
from tests.faults.cluster.processes import Freeze

_JUST_BEGUN: Final = 0.3
"""Seconds after a process was let go on in which it may end what it had begun; none of that is committed."""
_LONGEST_CALL: Final = 30.0


@dataclass(frozen=True, slots=True)
class Event:
    """Something that began in a process; `at` is monotonic seconds, `number` an epoch or, of a read, what was read."""

    at: float
    what: str
    key: str
    number: int
    process: str = ""


@dataclass
class History:
    """What happened, and which numbers were acknowledged when, by key and in order."""

    events: Sequence[Event] = ()
    acknowledged: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    freezes: Sequence[Freeze] = ()

    def of(self, key: str, what: str) -> list[Event]:
        """Return what happened to a key, by time."""
        return self._by_key.get((key, what), [])

    @cached_property
    def _by_key(self) -> dict[tuple[str, str], list[Event]]:
        found: dict[tuple[str, str], list[Event]] = {}
        for event in sorted(self.events, key=lambda event: event.at):
            found.setdefault((event.key, event.what), []).append(event)
        return found

    def settled(self) -> "History":
        """Return what is still needed to judge what happens from now on, once this was judged."""
        acts = [
            max(acts, key=lambda act: (act.number, act.at))
            for key in self.acknowledged
            if (acts := self.of(key, "act"))
        ]
        kept: dict[str, list[tuple[float, int]]] = {}
        for key, acknowledged in self.acknowledged.items():
            horizon = bisect_left(acknowledged, (acknowledged[-1][0] - _LONGEST_CALL,)) if acknowledged else 0
            kept[key] = acknowledged[max(0, horizon - 1) :]
        return History(acts, kept)


def read_events(paths: Iterable[Path]) -> list[Event]:
    """Return what all processes wrote down."""
    return [Event(*values) for values in NotesReader(lambda: paths).read()]


def violations(history: History) -> list[str]:
    """Return what a cluster that keeps its promises would not have done."""
    keys = sorted(history.acknowledged)
    found = [text for key in keys for judge in (_stale_reads, _two_owners) for text in judge(history, key)]
    return [*found, *_two_leaders(history)]


def _stale_reads(history: History, key: str) -> Iterator[str]:
    """A read that begins after a number was acknowledged returns that number, or a later one."""
    times = [at for at, _ in history.acknowledged[key]]
    numbers = [number for _, number in history.acknowledged[key]]
    stale: list[tuple[float, Event]] = []
    for read in history.of(key, "read"):
        place = bisect_left(times, read.at)
        if place and read.number < numbers[place - 1]:
            stale.append((read.at - times[bisect_right(numbers, read.number)], read))
    if stale:
        seconds, read = max(stale, key=lambda one: one[0])
        yield f"{key}: {len(stale)} stale reads, one of {read.number} {seconds:.3f} s after the next was acknowledged"


def _two_owners(history: History, key: str) -> Iterator[str]:
    """Once an entity has acted at an epoch, none of its kind acts at an earlier one."""
    newest: Event | None = None
    for act in history.of(key, "act"):
        if newest is None or act.number >= newest.number:
            newest = act
        elif not _had_begun(history, act):
            yield f"{key} acted at epoch {act.number} {act.at - newest.at:.3f} s after it did at {newest.number}"


def _had_begun(history: History, act: Event) -> bool:
    """Whether it may have begun before its process was stopped, and been written down after that."""
    return any(
        freeze.process == act.process and freeze.since <= act.at <= freeze.until + _JUST_BEGUN
        for freeze in history.freezes
    )


def _two_leaders(history: History) -> Iterator[str]:
    """A leader begins after the one before it has been told that it ceased."""
    ceased = {one.number: one.at for one in history.of("leader", "lose")}
    for before, after in pairwise(history.of("leader", "become")):
        late = ceased.get(before.number, float("inf")) - after.at
        if late > 0:
            yield f"epoch {after.number} led {late:.3f} s before epoch {before.number} had been told"
