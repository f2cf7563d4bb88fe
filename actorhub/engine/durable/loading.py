"""Makes durable messages from their rows."""

from typing import Final

from actorhub.core.cron import parse_fire_time_key
from actorhub.core.errors import MalformedMessage
from actorhub.engine.durable.handlers import StoredHandlers
from actorhub.engine.durable.in_memory import InMemory
from actorhub.engine.durable.owner import Owner
from actorhub.engine.durable.settlement import Settlement
from actorhub.engine.durable.strays import Strays
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.records import HostedShard
from actorhub.engine.model.spec import HandlerSpec
from actorhub.storage.message_ports import PendingMessage

_LONGEST_ID_BYTES: Final = 1 << 20
"""Not the present limit: what was within an earlier one is run."""


class Loading:
    """Makes messages from rows, and enters them into the tables of their shards."""

    def __init__(self, owner: Owner, *, handlers: StoredHandlers, memory: InMemory, settlement: Settlement) -> None:
        self._types = owner.types
        self._shards = owner.shards
        self._handlers = handlers
        self._memory = memory
        self._settlement = settlement
        self._strays = Strays(owner, settlement)

    def load(self, row: PendingMessage, shard: HostedShard) -> DurableMessage | None:
        """Return a message made from its row.

        `None` if it is in memory already, or being cancelled, or its handler is unknown here.
        """
        table = self._memory.table(shard)
        if row.message_id in table.messages or self._memory.is_held_back(row.message_id, shard):
            return None
        spec = self.handler_of(row)
        if spec is None:
            return None
        message = DurableMessage(self._settlement, shard, spec=spec, entity_id=row.entity_id, message_id=row.message_id)
        message.body = row.body
        message.headers = dict(row.headers) if row.headers else None
        message.key = row.key
        message.attempts = row.attempts
        if (spared := table.spared.get(row.message_id)) is not None:
            # The row may show the count of a run that did not start; this run gets the same number.
            message.attempts = min(row.attempts, spared.attempts - 1)
        message.is_stored = True
        message.waiters = table.waiting.pop(row.message_id, [])
        table.messages[row.message_id] = message
        return message

    def handler_of(self, row: PendingMessage) -> HandlerSpec | None:
        """Return the handler that a message is for; `None` if this release does not have it, so that the message waits.

        A fire time's message needs a schedule. A row that cannot be read becomes a dead letter, whatever it is for.
        """
        if problem := self._problem_of(row):
            if (shard := self._shards.get(row.shard)) is not None:
                self._settlement.bury_stray(row, shard, MalformedMessage(problem))
            return None
        spec = self._handlers.find(row.entity_type, row.handler)
        if spec is not None and not _is_unscheduled(spec, row):
            return spec
        self._strays.on_found(row)
        return None

    def _problem_of(self, row: PendingMessage) -> str:
        """Return why a row is not that of a message; empty: it is. Another language, or a hand, may write anything."""
        if row.unreadable:
            return f"the stored message cannot be read: {row.unreadable}"
        if row.message_id == 0:
            return "the stored message has the id 0, which stands for no message"
        hosted = self._types.get(row.entity_type)
        if hosted is not None:
            try:
                hosted.spec.check_id(row.entity_id, _LONGEST_ID_BYTES)
            except MalformedMessage as error:
                return f"the stored message is for nobody: {error}"
        return ""


def _is_unscheduled(spec: HandlerSpec, row: PendingMessage) -> bool:
    """Whether the message is that of a fire time, and the handler no longer has a schedule."""
    return spec.singleton and not spec.crons and row.key is not None and parse_fire_time_key(row.key) is not None
