"""What a connected program uses of its own process, which is a runner or a client."""

from collections.abc import Sequence
from typing import Protocol

from actorhub.core.address import RunnerAddress, ShardId
from actorhub.engine.anycast.runner_requests import DeferredOutcome
from actorhub.engine.model.spec import HandlerSpec
from actorhub.engine.node import Node
from actorhub.engine.singletons.health import RunnerHealth
from actorhub.storage.key_value_ports import KeyValues


class Part(Protocol):
    """This process's part in the cluster: a `Runner` or a `ClientNode`."""

    @property
    def node(self) -> Node:
        """The links and the routing of this process."""
        ...

    @property
    def address(self) -> RunnerAddress | None:
        """This process as a runner; `None` for a client."""
        ...

    @property
    def key_values(self) -> KeyValues:
        """The key-value store, reached directly or through a runner."""
        ...

    def owns(self, shard: ShardId) -> bool:
        """Whether this process owns the shard."""
        ...

    def poll(self) -> None:
        """Scan the store for messages and changes of schedules that this process was not told of."""
        ...

    def broadcast_here(self, spec: HandlerSpec, body: bytes) -> int:
        """Tell every entity of the type that is resident in this process; return how many there are."""
        ...

    async def complete(self, outcome: DeferredOutcome) -> bool:
        """Store an outcome of a deferred value unless there is one; return whether the stored outcome is this one."""
        ...

    async def runner_healths(self) -> Sequence[RunnerHealth]:
        """Return the health of this runner, or of each runner that this client is linked to and that answers."""
        ...

    async def leave(self, grace: float) -> None:
        """Hand over what is hosted here and leave the cluster, within about `grace` seconds."""
        ...
