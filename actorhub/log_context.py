"""Log records that say which handler they come from."""

import logging
from typing import Final

from actorhub.context import Current
from actorhub.engine.model.records import running

FIELDS: Final = ("entity_type", "entity_id", "shard", "runner", "message_id", "is_leader")
"""What a record gets; all are empty texts outside of handlers."""


class HandlerFields(logging.Filter):
    """Adds `FIELDS` to each record that passes. Give it to a `logging.Handler`, which sees every logger's records."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; let every record pass."""
        message = running.get()
        if message is None or message.cell is None:
            record.__dict__.update(dict.fromkeys(FIELDS, ""))
            return True
        here = Current(message, message.cell)
        record.entity_type = here.entity_type
        record.entity_id = here.entity_id
        record.shard = str(here.shard_id)
        record.runner = here.runner.address
        record.message_id = str(here.message_id or "")
        record.is_leader = here.is_leader
        return True
