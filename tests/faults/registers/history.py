"""What clients saw, and whether a cluster that keeps its promises could have made them see it."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tests.faults.cluster.notes import NotesReader

Outcome: TypeAlias = Literal["ok", "failed", "unknown", "pending"]


@dataclass
class Operation:
    """One call of one client; times are monotonic seconds."""

    key: str
    number: int
    invoked: float
    outcome: Outcome = "pending"
    """`failed`: the error promised that no handler ran. `unknown`: it did not."""
    completed: float = 0.0
    position: int = 0
    """How many operations the state held when this one was in it, as its reply said."""
    error: str = ""


@dataclass(frozen=True)
class Start:
    """A handler that began, as its process wrote down before it did anything else."""

    time: float
    key: str
    number: int
    epoch: int
    process: str


@dataclass(frozen=True)
class Stored:
    """The committed state of a key in Postgres: which operations are in it, in order, and at which epochs."""

    version: int
    epoch: int
    numbers: Sequence[int]
    epochs: Sequence[int]


@dataclass
class History:
    """Operations in the order of their invocation: one at a time per key, concurrent over keys."""

    operations: list[Operation] = field(default_factory=list)

    def by_key(self) -> Mapping[str, list[Operation]]:
        """Return each key's operations, in the order of their invocation."""
        found: dict[str, list[Operation]] = {}
        for operation in self.operations:
            found.setdefault(operation.key, []).append(operation)
        return found

    def counts(self) -> Mapping[str, int]:
        """Return how many operations had each outcome."""
        return Counter(operation.outcome for operation in self.operations)

    def stall(self, since: float) -> float:
        """Return the longest time that a key went without a success, among those that ended after `since`."""
        longest = 0.0
        for operations in self.by_key().values():
            times = [each.completed for each in operations if each.outcome == "ok"]
            gaps = (after - max(before, since) for before, after in itertools.pairwise(times) if after > since)
            longest = max(longest, max(gaps, default=0.0))
        return longest


def read_starts(paths: Iterable[Path]) -> list[Start]:
    """Read what processes wrote down, in order of time."""
    return starts_of(NotesReader(lambda: paths).read())


def starts_of(noted: Iterable[Sequence[Any]]) -> list[Start]:
    """Return the starts that processes wrote down, in order of time."""
    return sorted((Start(*values) for values in noted), key=lambda start: start.time)


def violations(history: History, stored: Mapping[str, Stored], starts: Sequence[Start]) -> list[str]:
    """Return every way in which what was seen breaks invariants B, C, E, F or G; empty if there is none."""
    started = Counter((start.key, start.number) for start in starts)
    found: list[str] = []
    for key, operations in history.by_key().items():
        state = stored.get(key, Stored(0, 0, [], []))
        found += _state_violations(key, state)
        found += _order_violations(key, operations, state)
        for operation in operations:
            if operation.outcome == "failed" and started[key, operation.number]:
                found.append(f"{key}: {operation.number} failed as never executed, and its handler ran")
        known = {operation.number for operation in operations}
        found += [
            f"{key}: {number} is in the state and nobody sent it" for number in state.numbers if number not in known
        ]
    return found


def _state_violations(key: str, state: Stored) -> list[str]:
    found: list[str] = []
    if state.version != len(state.numbers):
        found.append(f"{key}: version {state.version} after {len(state.numbers)} commits")
    if list(state.epochs) != sorted(state.epochs):
        found.append(f"{key}: epochs fall along its commits: {_falls(state.epochs)}")
    if state.epochs and state.epoch != state.epochs[-1]:
        found.append(f"{key}: stored at epoch {state.epoch}, last committed by a handler at epoch {state.epochs[-1]}")
    twice = [number for number, count in Counter(state.numbers).items() if count > 1]
    if twice:
        found.append(f"{key}: committed twice: {twice}")
    return found


def _falls(epochs: Sequence[int]) -> list[tuple[int, int]]:
    return [(before, after) for before, after in itertools.pairwise(epochs) if after < before]


def _order_violations(key: str, operations: Sequence[Operation], state: Stored) -> list[str]:
    """Compare with the one order that a client's sequential calls allow.

    A call whose outcome is unknown may take effect at any time after its invocation, or never.
    """
    places = {number: place for place, number in enumerate(state.numbers, 1)}
    found: list[str] = []
    last_ok = 0
    for operation in operations:
        place = places.get(operation.number)
        if operation.outcome == "failed" and place is not None:
            found.append(f"{key}: {operation.number} failed as never executed, and is in the state")
        if operation.outcome == "ok" and place is None:
            found.append(f"{key}: {operation.number} was acknowledged and is lost")
        if operation.outcome == "ok" and place is not None and place != operation.position:
            found.append(f"{key}: {operation.number} was acknowledged as number {operation.position}, is {place}")
        if place is not None and place < last_ok:
            found.append(f"{key}: {operation.number} is before what was acknowledged before it was sent")
        if operation.outcome == "ok" and place is not None:
            last_ok = place
    return found
