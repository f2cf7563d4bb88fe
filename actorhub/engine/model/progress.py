"""How far a run got: the checkpoints that it stored, and those under way."""

from actorhub.storage.checkpoint_ports import Scope


class Progress:
    """What a run stored of itself, as far as it is known here. Each run has its own."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.generation = 0
        self.saved: dict[str, bytes] | None = None
        """Results by the step's name; `None`: not loaded yet."""
        self.under_way: set[str] = set()
        """Steps that run now."""
        self.sleeps = 0
        """How many sleeps without a name began since the last `save`."""
        self.waits = 0
        """How many durable waits hold the run up: it may be cut short then, since it goes on elsewhere."""
        self.is_uncounted = False
        """The store counts no attempt of the message: this run stored a step, or began to wait."""
        self.is_unsure = False
        """A `save` that perhaps was written failed: the store may be generations ahead."""

    def closed(self) -> None:
        """Begin anew: what was stored is history."""
        self.saved = {}
        self.sleeps = 0
        self.generation += 1

    def check_quiet(self, what: str) -> None:
        """Refuse to end the run `what`, or what it is now, while steps run.

        Raises:
            RuntimeError: some do.
        """
        if self.under_way:
            raise RuntimeError(f"{what}: steps {sorted(self.under_way)} still run: await them first")
