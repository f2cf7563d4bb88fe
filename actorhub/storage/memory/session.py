"""The lock session of the memory store."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from typing_extensions import override

from actorhub.core.address import RunnerInfo, ShardId
from actorhub.storage.memory.store import MemoryStore, ServerSession
from actorhub.storage.ports import LiveRunner, LockSession, SessionLost, TableSlice

OPERATION_LIMIT: Final = timedelta(seconds=2)


class MemoryLockSession(LockSession):
    """A `LockSession` on a `MemoryStore`."""

    def __init__(self, store: MemoryStore, server: ServerSession) -> None:
        self._store = store
        self._server = server
        self._lost = False
        self._turn = asyncio.Lock()

    @property
    @override
    def lost(self) -> bool:
        # A stopped process has not read yet that the server hung up.
        self._lost = self._lost or (self._server.ended and not self._server.frozen)
        return self._lost

    @property
    @override
    def outlives_process(self) -> bool:
        return False

    @override
    async def heartbeat(self, info: RunnerInfo, only: TableSlice | None = None) -> Sequence[LiveRunner]:
        async with self._turn:
            await self._reach_server()
            self._store.register(info)
            return self._store.runners() if only is None else self._store.some_runners(only, info.runner.incarnation)

    @override
    async def try_lock(self, shards: Sequence[ShardId]) -> Sequence[ShardId]:
        async with self._turn:
            await self._reach_server()
            return self._store.try_lock(self._server, shards)

    @override
    async def unlock(self, shards: Sequence[ShardId]) -> None:
        async with self._turn:
            await self._reach_server()
            self._store.unlock(self._server, shards)

    @override
    async def aclose(self) -> None:
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
