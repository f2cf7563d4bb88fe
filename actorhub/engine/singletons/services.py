"""What the leaders of singletons need from their runner."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from actorhub.core.address import ShardId
from actorhub.core.clock import Clock
from actorhub.engine.durable.server_clock import ServerClock
from actorhub.engine.model.records import Cell, HostedShard, HostedType, Message
from actorhub.engine.runs.checkpoints import Checkpoints
from actorhub.engine.runs.hooks import Hooks
from actorhub.engine.runs.scheduler import Scheduler
from actorhub.engine.supervision import Supervisor
from actorhub.storage.message_ports import MessageStore
from actorhub.storage.singleton_ports import Leadership, SingletonStore


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderServices:
    """The parts of a runner that a leader uses."""

    address: str
    incarnation: str
    shards: Mapping[ShardId, HostedShard]
    """The shards that are owned now."""
    store: SingletonStore
    checkpoints: Checkpoints
    messages: MessageStore
    server: ServerClock
    clock: Clock
    supervisor: Supervisor
    scheduler: Scheduler
    hooks: Hooks
    open: Callable[[HostedType, HostedShard], Cell]
    """Returns the singleton's activation, and begins to make one if there is none."""
    led_elsewhere: Callable[[Leadership], Awaitable[ShardId | None]]
    """Returns the shard in which another release leads the singleton; `None`: it does not, or no longer."""
    accept: Callable[[Message, HostedShard], None]
    """Takes in a durable message of an owned shard."""
    mistrust: Callable[[ShardId], None]
    """Told of a shard for which the store refused a write, so that its ownership is checked."""
    new_id: Callable[[], int]
    """Returns the id of a new message."""
