"""What senders and handlers of durable messages saw, to be judged by `durable_violations`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tests.faults.cluster.notes import NotesReader

CallOutcome: TypeAlias = Literal["ok", "failed", "unknown", "clash", "pending"]
Expected: TypeAlias = Literal["value", "error", "dead"]
Ending: TypeAlias = Literal["value", "error", "dead", "cancelled"]
RowState: TypeAlias = Literal["pending", "scheduled", "done", "failed", "cancelled", "dead"]


@dataclass(frozen=True, slots=True)
class Terminal:
    """How a message ended, as one caller was told."""

    ending: Ending
    position: int = 0
    """Of a value: how many commits its entity's state held, this one included."""
    epoch: int = 0
    attempt: int = 0


@dataclass(slots=True)
class Sent:
    """One call of one sender; times are monotonic seconds, `due` is seconds since the Unix epoch.

    Calls with the same `content` are the same message: they share a key. Every other call has a content of its own.
    """

    content: int
    sender: str
    entity: str
    kind: Literal["ask", "tell"]
    invoked: float
    key: str = ""
    expected: Expected = "value"
    """What its handler does whenever it is let."""
    attempts: int = 100
    """Runs at most."""
    due: float = 0.0
    """Before which it must not start; 0: at once."""
    outcome: CallOutcome = "pending"
    """`ok`: an ask has its terminal reply, a tell was accepted. `failed`: the error promised that no handler ran."""
    completed: float = 0.0
    message_id: int = 0
    """Of an accepted tell."""
    error: str = ""
    replies: list[Terminal] = field(default_factory=list)
    """Every terminal reply that was given for this call, first and repeated ones."""
    cancelled: float = 0.0
    """When a cancellation succeeded."""


@dataclass(frozen=True, slots=True)
class Run:
    """A handler that began, as its process wrote down before it did anything else."""

    time: float
    wall: float
    content: int
    entity: str
    message_id: int
    attempt: int
    epoch: int
    seen: int
    """How many commits the entity's state held."""
    process: str


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit, as the entity's state tells; the position is its place there."""

    content: int
    message_id: int
    epoch: int
    attempt: int
    target: str = ""
    """To whom its handler told the message with the content `-content`."""
    is_witnessed: bool = False
    """It wrote a row of its own."""


@dataclass(frozen=True)
class Ledger:
    """An entity's stored state: its commits in order."""

    version: int
    epoch: int
    commits: Sequence[Commit]


@dataclass(frozen=True, slots=True)
class Witness:
    """A row that a handler wrote by SQL of its own, in the transaction of its run."""

    content: int
    message_id: int
    entity: str
    epoch: int
    attempt: int
    position: int


@dataclass(frozen=True, slots=True)
class Row:
    """What the store says of one message."""

    message_id: int
    entity: str
    state: RowState


@dataclass
class Book:
    """Everything that is known of a finished run, after whatever was stored had time to end."""

    sent: Sequence[Sent] = ()
    """In the order of their invocation."""
    runs: Sequence[Run] = ()
    """In the order of time."""
    ledgers: Mapping[str, Ledger] = field(default_factory=dict)
    witnesses: Sequence[Witness] = ()
    rows: Sequence[Row] = ()
    is_calm: bool = False
    """Nothing failed, runners at most left gracefully: then no message runs twice."""

    def commits(self) -> dict[int, list[tuple[str, int, Commit]]]:
        """Return each content's commits: where, at which position, what."""
        found: dict[int, list[tuple[str, int, Commit]]] = {}
        for entity, ledger in self.ledgers.items():
            for position, commit in enumerate(ledger.commits, 1):
                found.setdefault(commit.content, []).append((entity, position, commit))
        return found

    def by_content(self) -> dict[int, list[Sent]]:
        """Return each content's calls."""
        found: dict[int, list[Sent]] = {}
        for call in self.sent:
            found.setdefault(call.content, []).append(call)
        return found

    def first_runs(self) -> dict[int, Run]:
        """Return each content's first run."""
        found: dict[int, Run] = {}
        for run in self.runs:
            found.setdefault(run.content, run)
        return found


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """Read what processes wrote down, in order of time."""
    return runs_of(NotesReader(lambda: paths).read())


def runs_of(noted: Iterable[Sequence[Any]]) -> list[Run]:
    """Return the runs that processes wrote down, in order of time."""
    return sorted((Run(*values) for values in noted), key=lambda run: run.time)
