"""What a host needs from its runner, and what it counts."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.clock import Clock
from actorhub.engine.durable.homes import HomeQuestion
from actorhub.engine.durable.server_clock import ServerClock
from actorhub.engine.model.lease import Lease
from actorhub.engine.model.limits import Limits
from actorhub.engine.model.records import HostedType, Message
from actorhub.engine.model.sharding import Sharding
from actorhub.engine.runs.completion import CompletionStatistics
from actorhub.engine.supervision import Supervisor
from actorhub.storage.ports import Storage


class HostStatistics(msgspec.Struct, frozen=True):
    """What is hosted now, and counts since the start of this process."""

    shards: int
    resident: int
    queued: int
    started: int
    activated: int
    passivated: int
    failed_activations: int
    results: CompletionStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a host needs from its runner."""

    address: str
    incarnation: str
    types: Mapping[str, HostedType]
    limits: Limits
    sharding: Sharding
    storage: Storage
    clock: Clock
    lease: Lease
    supervisor: Supervisor
    route: Callable[[Message], None]
    """Routes a message that a handler told."""
    reroute: Callable[[Message], None]
    """Takes back a message that did not start here and whose shard is, or will be, another runner's."""
    hosted_elsewhere: Callable[[str], bool]
    """Returns whether another live runner hosts an entity type that this one does not host."""
    mistrust: Callable[[ShardId], None]
    """Told of a shard for which the store refused a commit, so that its ownership is checked."""
    new_id: Callable[[], int]
    """Returns the id of a new message."""
    server: ServerClock
    """The store's clock."""
    hosted_groups: Callable[[], Collection[str]]
    """Returns the shard groups that living runners host."""
    ask_home: Callable[[HomeQuestion], Awaitable[str]]
    """Has the owner of a shard say whether it has an entity there; returns its incarnation."""
    wake: Callable[[Message, ShardId], None]
    """Tells a shard's owner that something like the message was stored for it."""
