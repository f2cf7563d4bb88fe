"""Reads beside a durable wait: while a run waits in `deferred` or `sleep`, readonly handlers of its entity run.

They see what is committed, and not what the run has half done. So they run on a *view*: a copy of the instance with the
committed state, in a cell of its own, which nobody but its readers knows. The run may go on whenever it likes, and a
task of it may change the state during the wait: neither meets the readers. The entity's own cell counts its readers,
so that it does not leave while there are some.
"""

import copy
from typing import Final

from actorhub.core.logger import get_logger
from actorhub.core.texts import summary_of
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.records import ACTIVE, CLOSING, DEAD, Cell, HostedShard, Message, StateRecord
from actorhub.engine.model.run import Run

_log: Final = get_logger("actorhub.turns")


class Reading:
    """The views of entities whose run waits. Every method is synchronous."""

    def __init__(self) -> None:
        self._views: dict[Cell, Cell] = {}
        """By entity: the latest view of it that is read."""
        self._entities: dict[Cell, Cell] = {}
        """By view that is read: whose it is."""

    def admit(self, cell: Cell, holder: Run | None, message: Message) -> Cell | None:
        """Give a message a turn on a view of its entity, if that is in a durable wait; return the view.

        Args:
            cell: The entity.
            holder: The suspended run that has the entity for itself.
            message: A message of a readonly handler, which cannot run on the cell now.
        """
        if holder is None or holder.progress is None or not holder.progress.waits:
            return None
        if cell.phase != ACTIVE or message.spec.stream or not _may_overtake(message, cell):
            return None
        view = self._views.get(cell)
        if view is None or not view.load or _version(view) != _version(cell):
            view = _view_of(cell)
            if view is None:
                return None
            self._views[cell] = view
            self._entities[view] = cell
        view.admit(message.spec)
        cell.nested += 1
        return view

    def entity_of(self, view: Cell) -> Cell | None:
        """Return the entity whose view this is; `None` for a cell that is none."""
        return self._entities.get(view)

    def on_read(self, view: Cell) -> None:
        """A reader of the view has ended."""
        entity = self._entities[view]
        entity.nested -= 1
        if not view.load:
            del self._entities[view]
            if self._views.get(entity) is view:
                del self._views[entity]

    def on_lost(self, shard: HostedShard) -> None:
        """The shard is lost: whatever reads of it ends with an error."""
        for view, entity in list(self._entities.items()):
            if view.shard is shard:
                view.phase = DEAD
                del self._entities[view]
                self._views.pop(entity, None)


def _version(cell: Cell) -> int:
    return 0 if cell.record is None else cell.record.version


def _view_of(cell: Cell) -> Cell | None:
    """Return a new view; `None` if user code does not let its instance be copied, so that reads wait for their turn."""
    view = Cell(cell.hosted_type, cell.shard, cell.entity_id)
    # It ends after what runs, and starts nothing by itself.
    view.phase = CLOSING
    try:
        view.instance = copy.copy(cell.instance)
        if cell.record is not None:
            codec = cell.hosted_type.spec.state
            assert codec is not None
            view.record = StateRecord(cell.record.version, cell.record.data)
            view.instance.state = codec.decode(cell.record.data)
            # A decoded copy may encode to other bytes, such as a set in another order, and would look changed.
            view.record.data = codec.encode(view.instance.state)
    except Exception as exc:  # noqa: BLE001 - user code: `__copy__`, or a type in the state
        _log.warning("%s: cannot be read during its wait, since its copy failed: %s", cell.address, summary_of(exc))
        return None
    return view


def _may_overtake(message: Message, cell: Cell) -> bool:
    """Whether nothing of the same sender waits in the mailbox that must run before (invariant G).

    A durable message may be overtaken by one that is not, here as where it waits in the store.
    """
    return not any(
        not isinstance(queued, DurableMessage) and not queued.spec.readonly and _sender(queued) == _sender(message)
        for queued in cell.queue or ()
    )


def _sender(message: Message) -> tuple[object, ...]:
    return getattr(message, "caller", None), *message.chain[-1:]
