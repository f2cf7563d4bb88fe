"""The lock session of the memory store."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from actorhub.core.address import RunnerInfo, ShardId
from actorhub.storage.memory.store import MemoryStore, ServerSession
from actorhub.storage.ports import LiveRunner, SessionLost

OPERATION_LIMIT: Final = timedelta(seconds=2)


class MemoryLockSession:
    """A `LockSession` on a `MemoryStore`."""

    def __init__(self, store: MemoryStore, server: ServerSession) -> None:
        self._store = store
        self._server = server
        self._lost = False
        self._turn = asyncio.Lock()

    @property
    def lost(self) -> bool:
        """Whether the session is known to be gone."""
        # A stopped process has not read yet that the server hung up.
        self._lost = self._lost or (self._server.ended and not self._server.frozen)
        return self._lost

    async def heartbeat(self, info: RunnerInfo) -> Sequence[LiveRunner]:
        """Prove the session alive, write `info`'s row (again, if it was deleted), return all registered runners."""
        async with self._turn:
            await self._reach_server()
            self._store.register(info)
            return self._store.runners()

    async def try_lock(self, shards: Sequence[ShardId]) -> Sequence[ShardId]:
        """Return those of `shards` whose lock this session now holds; asking again for a held one returns it, once."""
        async with self._turn:
            await self._reach_server()
            return self._store.try_lock(self._server, shards)

    async def unlock(self, shards: Sequence[ShardId]) -> None:
        """Free the locks of `shards`; those not held are ignored."""
        async with self._turn:
            await self._reach_server()
            self._store.unlock(self._server, shards)

    async def aclose(self) -> None:
        """End the session, which frees its locks. Bounded in time, never raises `SessionLost`, can be called twice."""
        self._lost = True
        if not self._server.frozen:
            self._store.end_session(self._server)

    async def _reach_server(self) -> None:
        if self.lost:
            raise SessionLost("the lock session is gone")
        try:
            async with asyncio.timeout(OPERATION_LIMIT.total_seconds()):
                await asyncio.sleep(0)
                if self._server.frozen:
                    await self._server.thawed.wait()
        except TimeoutError as exc:
            self._lost = True
            raise SessionLost("the lock session did not answer in time") from exc
        except asyncio.CancelledError:
            self._lost = True
            self._store.end_session(self._server)
            raise
        self._store.end_silent_sessions()
        if self.lost or not self._store.available:
            self._lost = True
            self._store.end_session(self._server)
            raise SessionLost("the lock session is gone")
        self._store.hear(self._server)
