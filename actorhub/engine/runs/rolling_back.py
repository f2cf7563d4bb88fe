"""Sets the state of an instance back to what is committed."""

from typing import Final

from actorhub.core.carried import Carried
from actorhub.core.logger import get_logger
from actorhub.engine.model.records import Cell

_log: Final = get_logger("actorhub.results")


def roll_back(cell: Cell, *, shared: bool) -> None:
    """Set the instance's state to what is committed; beside other (shared) runs only if it differs."""
    record, codec = cell.record, cell.hosted_type.spec.state
    assert record is not None
    assert codec is not None
    if shared:
        try:
            if codec.encode(cell.instance.state) == record.data:
                return
        except Exception:  # noqa: BLE001 - user code: an object may fail in any way while it is encoded
            _log.warning("%s: a readonly handler left a state that cannot be encoded; it was rolled back", cell.address)
    stored = record.data if record.carried is None else record.carried.full
    cell.instance.state = codec.decode(stored)
    if record.carried is not None:
        record.carried = Carried.find(cell.instance.state, stored)
    # A decoded copy may encode to other bytes, such as a set in another order, and would look changed.
    record.data = codec.encode(cell.instance.state)
