"""Removing from the store what has expired, in small steps, so that nobody has to wait for long."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from actorhub.core.clock import Clock
from actorhub.engine.supervision import Supervisor
from actorhub.storage.ports import Storage

_STEP: Final = 1000
"""Rows that are removed at a time."""
_PAUSE: Final = 0.02
"""Seconds between removals while there is more to remove."""
_POLL: Final = 10.0
"""Seconds between searches for rows to remove: messages whose retention is over, expired values and the like."""
_ORPHAN_AGE: Final = 3600.0
"""Seconds after which the checkpoints of a message that has ended are removed."""


class Retention:
    """Removes replies, checkpoints, values and states of singletons of which nobody needs to know any longer."""

    def __init__(self, storage: Storage, supervisor: Supervisor, clock: Clock) -> None:
        self._storage = storage
        self._supervisor = supervisor
        self._clock = clock

    def start(self, *, with_singletons: bool) -> None:
        """Begin; the supervisor ends it."""
        storage = self._storage
        self._keep_removing("retention", storage.messages.remove_expired)
        self._keep_removing("checkpoint retention", partial(storage.checkpoints.remove_orphans, _ORPHAN_AGE))
        if with_singletons:
            self._keep_removing("singleton retention", self._remove_abandoned_singletons)
        self._keep_removing("value expiry", storage.key_values.remove_expired)

    def _keep_removing(self, name: str, remove_expired: Callable[[int], Awaitable[int]]) -> None:
        _ = self._supervisor.loop(name, partial(self._run, remove_expired))

    async def _run(self, remove_expired: Callable[[int], Awaitable[int]]) -> None:
        while True:
            removed = await remove_expired(_STEP)
            # All runners do this without agreeing on who does. The one that finds a full step goes on; the others,
            # which find little, come back rarely.
            full = removed >= _STEP
            await asyncio.sleep(_PAUSE if full else _POLL * (0.5 + self._clock.random()))

    async def _remove_abandoned_singletons(self, limit: int) -> int:
        return await self._storage.singletons.remove_abandoned()
