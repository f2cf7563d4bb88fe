"""Both storages keep the promises about eras."""

import asyncio
import shutil
from collections.abc import AsyncIterator

import pytest

from actorhub.conformance.eras import EraSuite
from actorhub.core.clock import SystemClock
from actorhub.storage.memory import MemoryStorage, MemoryStore
from actorhub.storage.memory.store import Backup
from actorhub.storage.postgres import PostgresStorage
from tests.support.postgres_server import PostgresServer
from tests.support.standby import Snapshot


class MemoryEras:
    """Storages on a memory store."""

    def __init__(self) -> None:
        self._store = MemoryStore(SystemClock())
        self._backup: Backup | None = None

    async def storage(self) -> MemoryStorage:
        made = MemoryStorage(self._store)
        await made.open()
        return made

    async def restart(self) -> None:
        self._store.restart()

    async def back_up(self) -> None:
        self._backup = self._store.back_up()

    async def restore(self) -> None:
        assert self._backup is not None
        self._store.restore(self._backup)


class PostgresEras:
    """Storages on a server whose files are copied and put back."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._files = server.directory / "copy"
        self._made: list[PostgresStorage] = []

    async def storage(self) -> PostgresStorage:
        made = PostgresStorage(self._server.url, clock=SystemClock())
        self._made.append(made)
        await made.open()
        return made

    async def restart(self) -> None:
        await self._server.restart("immediate")

    async def back_up(self) -> None:
        await self._server.stop("immediate")
        await asyncio.to_thread(Snapshot(self._server.data).copy, self._files)
        await self._server.start()

    async def restore(self) -> None:
        await self._server.stop("immediate")
        await asyncio.to_thread(shutil.rmtree, self._server.data)
        await asyncio.to_thread(Snapshot(self._files).copy, self._server.data)
        await self._server.start()

    async def aclose(self) -> None:
        for storage in self._made:
            await storage.aclose()


class TestMemoryEras(EraSuite):
    """Eras in memory."""

    @pytest.fixture
    def world(self) -> MemoryEras:
        """An empty store."""
        return MemoryEras()


class TestPostgresEras(EraSuite):
    """Eras on Postgres."""

    @pytest.fixture
    async def world(self, own_postgres: PostgresServer) -> AsyncIterator[PostgresEras]:
        """An empty database of a server of its own."""
        made = PostgresEras(own_postgres)
        yield made
        await made.aclose()
