"""What the parts of this folder need of the runner that owns the shards."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from actorhub.core.address import ShardId
from actorhub.core.clock import Clock
from actorhub.engine.durable.server_clock import ServerClock
from actorhub.engine.model.lease import Lease
from actorhub.engine.model.limits import Limits
from actorhub.engine.model.records import HostedShard, HostedType, Message
from actorhub.engine.runs.scheduler import Scheduler
from actorhub.engine.supervision import Supervisor
from actorhub.storage.message_ports import MessageStore
from actorhub.storage.ports import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The runner, for the parts of this folder. Each takes what it uses when it is made."""

    incarnation: str
    types: Mapping[str, HostedType]
    shards: Mapping[ShardId, HostedShard]
    """The shards that are owned now."""
    lease: Lease
    limits: Limits
    storage: Storage
    store: MessageStore
    """The messages of `storage`."""
    server: ServerClock
    clock: Clock
    scheduler: Scheduler
    supervisor: Supervisor
    hosted_elsewhere: Callable[[str], bool]
    """Whether another live runner hosts an entity type."""
    open_draining: Callable[[HostedShard, tuple[str, str]], None]
    """Makes an entity of a shard that drains resident, with what is held of it."""
    reroute: Callable[[Message], None]
    """Takes a message whose shard another runner owns, or will own."""
    forward: Callable[[Message, ShardId], None]
    """Sends a message that has not started to the shard where its entity is at home."""
    mistrust: Callable[[ShardId], None]
    """Told of a shard for which the store refused something: ownership must be checked."""
