"""Messages for which this release has no handler: they wait for a release that has it, but not without a limit.

In a rolling deploy the older runners are sent messages of handlers that only the newer release has, and the newer ones
find messages of handlers that it no longer has. Neither is lost: a message waits in the store, blocks nobody, and runs
as soon as its shard is with a runner that has the handler. What no release will run again becomes a dead letter, with
its arguments: it can be looked at, retried, cancelled and purged, and its key is free.
"""

from collections.abc import Callable, Mapping
from typing import Final

from actorhub.core.address import ShardId
from actorhub.core.errors import ActorhubError, UnknownEntityType, UnknownHandler
from actorhub.core.logger import get_logger
from actorhub.core.snowflake import Snowflake
from actorhub.engine.durable.owner import Owner
from actorhub.engine.durable.settlement import Settlement
from actorhub.engine.model.records import HostedShard, HostedType
from actorhub.storage.message_ports import PendingMessage

_log: Final = get_logger("actorhub.backlog")

PATIENCE: Final = 600.0
"""Seconds that a message waits for its handler: from when it was due, and from when this process first met such a one.

Longer than most deploys take. In one that takes longer, its dead letters are retried when it is over.
"""


class Strays:
    """Decides how long each message waits. Every method is synchronous, and may be told of the same message again."""

    def __init__(self, owner: Owner, settlement: Settlement) -> None:
        self._types: Mapping[str, HostedType] = owner.types
        self._shards: Mapping[ShardId, HostedShard] = owner.shards
        self._hosted_elsewhere: Callable[[str], bool] = owner.hosted_elsewhere
        self._server = owner.server
        self._settlement = settlement
        self._since: dict[tuple[str, str], float] = {}
        """Since when this process has known that it lacks a handler, by type and name, by the store's clock."""

    def on_found(self, row: PendingMessage) -> None:
        """Leave a message in the store that has no handler here; bury it once it has waited for long enough."""
        now, name = self._server.now(), (row.entity_type, row.handler)
        if name not in self._since:
            self._since[name] = now
            _log.warning("messages for %.200s.%.200s wait: this release has no such handler", *name)
        if row.entity_type not in self._types and self._hosted_elsewhere(row.entity_type):
            # Another release, or another program, whose runners may get the shard some time.
            self._since[name] = now
            return
        sent = Snowflake(row.message_id).parts().timestamp.timestamp()
        shard = self._shards.get(row.shard)
        if now - max(self._since[name], sent, row.deliver_at) >= PATIENCE and shard is not None:
            self._settlement.bury_stray(row, shard, self._error(row))

    def _error(self, row: PendingMessage) -> ActorhubError:
        if row.entity_type not in self._types:
            return UnknownEntityType(f"no live runner has hosted entity type {row.entity_type!r} for {PATIENCE:g} s")
        text = f"{row.entity_type} has had no handler {row.handler!r} that could run it for {PATIENCE:g} s"
        return UnknownHandler(text)
