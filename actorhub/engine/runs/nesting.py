"""Runs within another run's turn: a reentrant handler, called back by whom its entity waits for.

Such a run commits nothing by itself. What it changed and told becomes part of the commit of the run around it, which
therefore ends after it; a commit of its own would make the half-done state of that one visible. If it raises, what it
and the runs within it changed is taken back. That can be told apart as long as nobody else changes the state between
its first step and its last; where both did, the whole activation is undone.
"""

from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any

from actorhub.core.errors import MalformedMessage
from actorhub.engine.model.records import Cell, Message
from actorhub.engine.model.run import NestedChanges, Run
from actorhub.engine.runs.driving import resumed


class Nesting:
    """What one nested run changed."""

    def __init__(self, message: Message, cell: Cell, outer: Run | None) -> None:
        """Prepare.

        Args:
            message: The call that came back.
            cell: The entity.
            outer: The run around it; `None`: several `readonly` ones.
        """
        self._cell = cell
        self.outer = outer
        self.depth = message.chain.count(cell.address)
        self._before = self._left = self._encoded()
        self._is_mixed = cell.record is not None and self._before is None
        """Whether others have changed the state meanwhile."""
        self._is_changed = False
        """Whether a step of this run, or of one within it, has changed the state."""
        carried = None if cell.record is None else cell.record.carried
        self._stored = self._before
        """The state before it, with the fields of other releases."""
        if carried is not None and self._before is not None:
            self._stored = carried.merged(cell.instance.state, self._before)
        if outer is not None:
            outer.parts += 1
            outer.inner = [*outer.inner, self]

    @property
    def has_changes(self) -> bool:
        """Whether the run has changed the state, and nobody else has."""
        return not self._is_mixed and self._encoded() != self._before

    def on_step_ended(self) -> None:
        """Note how the run leaves the state to others."""
        state = self._encoded()
        for nesting in self._with_those_around():
            nesting.take_step(state)

    def take_step(self, left: bytes | None) -> None:
        """Note what a step of this run, or of one within it, has left."""
        self._is_changed = self._is_changed or left != self._left
        self._left = left

    def note_others(self, found: bytes | None) -> None:
        """Note what others have done before a step of this run, or of one within it."""
        if found != self._left:
            self._is_mixed = True
            self._left = found

    def resume(self, context: Context, step: Callable[[], Any]) -> Any:
        """Take one step of the run; see `resumed`."""
        state = self._encoded()
        for nesting in self._with_those_around():
            nesting.note_others(state)
        try:
            return resumed(context, step)
        finally:
            self.on_step_ended()

    def undo(self) -> bool:
        """Take back what the run changed; return `False` if that cannot be told from what others changed."""
        if self.has_changes and self._stored is not None:
            codec, record = self._cell.hosted_type.spec.state, self._cell.record
            assert codec is not None
            assert record is not None
            state = self._cell.instance.state = codec.decode(self._stored)
            if record.carried is not None:
                record.carried = record.carried.moved(state, self._stored)
        return not (self._is_mixed and self._is_changed)

    def join(self, run: Run) -> None:
        """Make what the run told, and what it changed, the run's around it."""
        assert self.outer is not None
        if run.spec.readonly and self.has_changes:
            raise TypeError(f"{run.what} is readonly and changed the state: remove readonly=True")
        if run.outbox is not None:
            self.outer.outbox = [*(self.outer.outbox or ()), *run.outbox]
            run.outbox = None

    def end(self) -> None:
        """Let the run around it end."""
        self.on_step_ended()
        if self.outer is not None:
            outer = self.outer
            outer.inner = [nesting for nesting in outer.inner if nesting is not self]
            if not outer.inner and outer.unnested is not None and not outer.unnested.done():
                outer.unnested.set_result(None)
            outer.end_part()

    def _with_those_around(self) -> Iterator[NestedChanges]:
        yield self
        inner = self.outer.inner if self.outer is not None else ()
        for depth in range(1, self.depth):
            around = [nesting for nesting in inner if nesting.depth == depth]
            # Of several that might be the one around this run, none takes the change for its own.
            if len(around) == 1:
                yield around[0]

    def _encoded(self) -> bytes | None:
        codec = self._cell.hosted_type.spec.state
        if codec is None:
            return None
        try:
            return codec.encode(self._cell.instance.state)
        except MalformedMessage:
            return None  # The run around it has left something in it that is not meant to stay.


def end_nesting(run: Run) -> None:
    """Let the run around it end, if it is a nested one."""
    nesting, run.nesting = run.nesting, None
    if nesting is not None:
        nesting.end()
