"""Fields for log records that say which handler a record comes from."""

import logging
from typing import Final

from actorhub.context import Current
from actorhub.engine.model.run import running

FIELDS: Final = ("entity_type", "entity_id", "shard", "runner", "message_id", "is_leader")
"""The fields that a record gets. Outside of handlers all of them are empty strings."""


class HandlerFields(logging.Filter):
    """A logging filter that adds `FIELDS` to each record. Add it to a `logging.Handler`, which gets all records."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields, and let every record pass."""
        run = running.get()
        if run is None:
            record.__dict__.update(dict.fromkeys(FIELDS, ""))
            return True
        here = Current(run)
        record.entity_type = here.entity_type
        record.entity_id = here.entity_id
        record.shard = str(here.shard_id)
        record.runner = here.runner.address
        record.message_id = str(here.message_id or "")
        record.is_leader = here.is_leader
        return True
