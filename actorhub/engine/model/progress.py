"""How far a run got: the checkpoints that it stored, and those under way."""

import msgspec

from actorhub.core.tokens import Deferral
from actorhub.storage.checkpoint_ports import Scope


class Wait(msgspec.Struct, frozen=True, eq=False):
    """A durable wait that a run is in."""

    name: str
    since: float
    """Monotonic seconds at which this run began it."""
    until: float | None
    """Seconds since the Unix epoch, by the store's clock, at which it is over; `None`: it has no limit."""
    deferral: Deferral | None
    """What it waits for; `None`: it sleeps."""


class Progress:
    """What a run has stored of itself, as far as this process knows. Each run has its own."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.generation = 0
        self.saved: dict[str, bytes] | None = None
        """Results by the step's name; `None`: not loaded yet."""
        self.under_way: set[str] = set()
        """Names of the steps that are running."""
        self.sleeps = 0
        """How many sleeps without a name began since the last `save`; the number is the name of such a sleep."""
        self.waits: list[Wait] = []
        """The durable waits that the run is in. During those it may be cut short: its next run goes on from there."""
        self.is_uncounted = False
        """This run stored a step or began a durable wait, so the store counts no attempts of the message."""
        self.is_unsure = False
        """A `save` failed with an unknown outcome: the store may be one or more generations ahead."""

    def on_closed(self) -> None:
        """Start over: a commit closed the scope, and the checkpoints before it are history."""
        self.saved = {}
        self.sleeps = 0
        self.generation += 1

    def check_quiet(self, what: str) -> None:
        """Refuse to end the run `what`, or its present generation, while steps are running.

        Raises:
            RuntimeError: at least one step is running.
        """
        if self.under_way:
            raise RuntimeError(f"{what}: steps {sorted(self.under_way)} still run: await them first")
