"""The owners as the store has them, for what waits because an announcement was missed."""

import asyncio
from typing import Final

from actorhub.core.errors import PersistenceError
from actorhub.core.logger import get_logger
from actorhub.engine.node import Node
from actorhub.storage.ports import Storage

_log: Final = get_logger("actorhub.runner")

_INTERVAL: Final = 0.5
"""Seconds between reads while calls wait."""


class OwnerReader:
    """Reads the owners from the store every now and then, while calls wait for one."""

    def __init__(self, node: Node, storage: Storage) -> None:
        self._node = node
        self._storage = storage
        self._reading: asyncio.Task[None] | None = None
        self._is_wanted = False
        """Whether the owners are to be read although no call waits."""

    def begin(self) -> None:
        """Read until no call waits for an owner."""
        if self._reading is None or self._reading.done():
            self._reading = self._node.supervisor.spawn(self._read(), "refresh owners")

    def read_soon(self) -> None:
        """Read, and go on as long as calls wait."""
        self._is_wanted = True
        self.begin()

    async def _read(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL)
            if not self._is_wanted and not self._node.router.parked_shards():
                return
            self._is_wanted = False
            try:
                rows = await self._storage.shards()
            except PersistenceError as error:
                _log.warning("the owners of the shards could not be read from the store: %s", error)
                continue
            owners = [row.owner for row in rows if row.owner]
            own = self._node.itself.incarnation
            others = [owner for owner in owners if owner.runner.incarnation != own]
            changed = self._node.table.learn(others, self._node.clock.monotonic())
            self._node.router.on_owners_changed(changed)
            self._node.router.reconsider()
