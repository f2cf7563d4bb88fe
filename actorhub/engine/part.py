"""What a connected program asks of its own process, be it a runner or a client."""

from collections.abc import Sequence
from typing import Protocol

from actorhub.core.address import RunnerAddress, ShardId
from actorhub.engine.anycast.runner_requests import DeferredOutcome
from actorhub.engine.model.spec import HandlerSpec
from actorhub.engine.node import Node
from actorhub.engine.singletons.health import RunnerHealth
from actorhub.storage.key_value_ports import KeyValues


class Part(Protocol):
    """This process's part in the cluster: `Runner` or `ClientNode`."""

    @property
    def node(self) -> Node:
        """Its links and routing."""
        ...

    @property
    def address(self) -> RunnerAddress | None:
        """This process as a runner; `None` for a client."""
        ...

    @property
    def key_values(self) -> KeyValues:
        """The key-value store, or the way to it."""
        ...

    def owns(self, shard: ShardId) -> bool:
        """Whether this very process owns the shard."""
        ...

    def poll(self) -> None:
        """Scan the store for messages and schedules that this process was not told of."""
        ...

    def broadcast_here(self, spec: HandlerSpec, body: bytes) -> int:
        """Tell every entity of the type that is resident in this process; return how many."""
        ...

    async def complete(self, outcome: DeferredOutcome) -> bool:
        """Store the outcome of a deferred value unless there is one; return whether it is this one."""
        ...

    async def runner_healths(self) -> Sequence[RunnerHealth]:
        """Return how this runner is; of a client: how each runner is that it is linked to and that answers."""
        ...

    async def leave(self, grace: float) -> None:
        """Hand over what is here, and end, within about `grace` seconds."""
        ...
