"""A memory cluster that is ready for the first call, as the fixture `actorhub_memory` opens it."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from actorhub.core.clock import Clock
from actorhub.core.config import Settings
from actorhub.hub import Hub
from actorhub.testing.cluster import MemoryCluster


class MemoryFactory(Protocol):
    """Opens memory clusters: the type of the fixture `actorhub_memory`."""

    def __call__(
        self, hub: Hub, *, settings: Settings | None = None, clock: Clock | None = None
    ) -> AbstractAsyncContextManager[MemoryCluster]:
        """Return a block that has a cluster with one runner and one client, and ends both."""
        ...


@asynccontextmanager
async def open_memory(
    hub: Hub, *, settings: Settings | None = None, clock: Clock | None = None
) -> AsyncGenerator[MemoryCluster, None]:
    """Have a cluster with one runner and one client in the block; leaving it ends both.

    Args:
        hub: What the runner hosts and the client calls.
        settings: As for `MemoryCluster`.
        clock: As for `MemoryCluster`.
    """
    async with MemoryCluster(hub, settings=settings, clock=clock) as memory:
        await memory.start_runner()
        await memory.client()
        yield memory
