"""Deferred values: a run waits until somebody completes one, by its token, even if runners come and go meanwhile.

Any runner may store the outcome; the store's insert decides whose counts. That runner then tells all the others, and
who waits reads the store. A notice can get lost, so who waits reads it now and then anyway.
"""

import asyncio
from collections.abc import Collection
from typing import Final

from actorhub.core.codec import decode_error
from actorhub.core.errors import PersistenceError
from actorhub.core.logger import get_logger
from actorhub.core.tokens import Deferral, make_token, read_token, token_hash
from actorhub.engine.model.progress import Progress
from actorhub.engine.model.run import Run
from actorhub.engine.runs.waits import DurableWaits
from actorhub.engine.supervision import set_or_time
from actorhub.storage.checkpoint_ports import CheckpointStore, Completion, CompletionKind, Scope

_log: Final = get_logger("actorhub.deferred")

_SCAN_INTERVAL: Final = 10.0
"""Seconds between reads of the store without a notice."""


class Deferrals:
    """The deferred values that runs of this process wait for."""

    def __init__(self, store: CheckpointStore, waits: DurableWaits) -> None:
        self._store = store
        self._waits = waits
        self.secret = b""
        """The cluster's secret; known once the runner has started."""
        self._waiting: dict[bytes, set[asyncio.Event]] = {}

    def __len__(self) -> int:
        return sum(len(events) for events in self._waiting.values())

    def on_completed(self, token_hashes: Collection[bytes]) -> None:
        """Have whoever waits for one of these read the store."""
        for hashed in token_hashes:
            for event in self._waiting.get(hashed, ()):
                event.set()

    def token(self, deferral: Deferral) -> str:
        """Return the token of a deferred value of a run."""
        return make_token(deferral, self.secret)

    async def wait(self, run: Run, progress: Progress, deferral: Deferral) -> bytes:
        """Return the encoded value once somebody completed it.

        Raises:
            ActorhubError: the error that it was completed with.
        """
        hashed = token_hash(deferral, self.secret)
        event = asyncio.Event()
        # Registered before the store is read: a completion after that read sets the event.
        self._waiting.setdefault(hashed, set()).add(event)
        try:
            found = await self._find(hashed)
            if found is None:
                async with self._waits.waiting(run, progress):
                    found = await self._wait_for_completion(hashed, event)
        finally:
            self._waiting[hashed].discard(event)
            if not self._waiting[hashed]:
                del self._waiting[hashed]
        if found.kind is CompletionKind.FAILED:
            raise decode_error(found.data)
        return found.data

    async def _wait_for_completion(self, hashed: bytes, event: asyncio.Event) -> Completion:
        while True:
            event.clear()  # Before the read, for the same reason.
            try:
                if (found := await self._find(hashed)) is not None:
                    return found
            except PersistenceError as error:
                # A wait of days must outlast a store that is away for a minute.
                _log.warning("cannot read whether a deferred value is completed, will try again: %s", error)
            await set_or_time(event, _SCAN_INTERVAL)

    async def _find(self, hashed: bytes) -> Completion | None:
        return (await self._store.completions([hashed])).get(hashed)


def deferral_of(progress: Progress, name: str) -> Deferral:
    """Return what identifies a deferred value of a run in its present generation."""
    scope = progress.scope
    return Deferral(scope.entity_type, scope.entity_id, scope.message_id, progress.generation, name)


def completion(token: str, secret: bytes, kind: CompletionKind, data: bytes) -> Completion:
    """Return an outcome for the deferred value that `token` names.

    Raises:
        MalformedMessage: this cluster did not make the token.
    """
    deferral, hashed = read_token(token, secret)
    scope = Scope(deferral.entity_type, deferral.entity_id, deferral.message_id)
    return Completion(token_hash=hashed, scope=scope, kind=kind, data=data)
