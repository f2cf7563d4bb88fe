"""Deferred values: a run waits until somebody completes one, by its token, even if runners come and go meanwhile.

Any runner may store the outcome; the store's insert decides whose counts. That runner then tells all the others, which
look for it if somebody waits for it there. A notice can get lost, so the store is polled now and then anyway.

A wait with a limit stores its end, by the store's clock. Whoever finds it reached completes the value as timed out. So
of that and somebody else's value one counts, for every later run of the message, too.
"""

import asyncio
from collections.abc import Collection
from typing import Final

from actorhub.core.codec import decode_error, encode_error
from actorhub.core.errors import CallTimeout, PersistenceError
from actorhub.core.logger import get_logger
from actorhub.core.tokens import Deferral, make_token, read_token, token_hash
from actorhub.engine.model.progress import Progress
from actorhub.engine.model.run import Run
from actorhub.engine.runs.lookout import Lookout
from actorhub.engine.runs.waits import DurableWaits
from actorhub.storage.checkpoint_ports import CheckpointStore, Completion, CompletionKind, Scope

_log: Final = get_logger("actorhub.deferred")

_RETRY: Final = 1.0
"""Seconds until a time-out is stored again after that failed."""
_LONGEST_ERROR: Final = 65_536
_TIMEOUT: Final = "timeout\t"
"""Begins the names of the ends of waits. Names of steps have no control characters, so they never clash."""


class Deferrals:
    """The deferred values that runs of this process wait for."""

    def __init__(self, store: CheckpointStore, waits: DurableWaits, lookout: Lookout) -> None:
        self._store = store
        self._waits = waits
        self._lookout = lookout
        self.secret = b""
        """The cluster's secret; known once the runner has started."""

    def __len__(self) -> int:
        return len(self._lookout)

    def on_completed(self, token_hashes: Collection[bytes]) -> None:
        """Have the store asked for those of these that somebody waits for here."""
        self._lookout.look_for(token_hashes)

    def token(self, deferral: Deferral) -> str:
        """Return the token of a deferred value of a run."""
        return make_token(deferral, self.secret)

    async def wait(self, run: Run, progress: Progress, deferral: Deferral, timeout: float | None) -> bytes:
        """Return the encoded value once somebody completed it.

        Args:
            run: The run that waits.
            progress: Its checkpoints.
            deferral: The value.
            timeout: How many seconds after the first run of the message got here the wait is over; `None`: never.

        Raises:
            CallTimeout: the time was over first.
            ActorhubError: the error that it was completed with.
        """
        due = None
        if timeout is not None:
            due = await self._waits.end_of(run, f"{_TIMEOUT}{deferral.name}", timeout)
        hashed = token_hash(deferral, self.secret)
        # Begun before the store is asked: a completion after that has it asked again.
        wait = self._lookout.begin(run, hashed)
        try:
            await wait.looked
            if not wait.outcome.done():
                async with self._waits.waiting(run, progress, name=deferral.name, until=due, deferral=deferral):
                    if due is not None and not await self._is_in_time(wait.outcome, due):
                        await self._time_out(run, progress, deferral, hashed)
                    await wait.outcome
            found = wait.outcome.result()
        finally:
            self._lookout.end(wait, hashed)
        if found.kind is CompletionKind.FAILED:
            raise decode_error(found.data)
        return found.data

    async def _is_in_time(self, outcome: "asyncio.Future[Completion]", due: float) -> bool:
        """Return whether there is an outcome before the time is over."""
        alarm = self._lookout.alarm(due)
        try:
            await asyncio.wait((alarm, outcome), return_when=asyncio.FIRST_COMPLETED)
        finally:
            alarm.cancel()
        return outcome.done()

    async def _time_out(self, run: Run, progress: Progress, deferral: Deferral, hashed: bytes) -> None:
        """Complete the value as timed out, unless somebody has completed it; then have the store asked."""
        text = f"{run.what}({run.message.entity_id}): deferred value {deferral.name!r} was not completed in time"
        data = encode_error(CallTimeout(text, possibly_executed=True), _LONGEST_ERROR)
        outcome = Completion(token_hash=hashed, scope=progress.scope, kind=CompletionKind.FAILED, data=data)
        while True:
            try:
                _ = await self._store.complete(outcome)
                break
            except PersistenceError as error:
                _log.warning("%s: its time-out could not be stored, will try again: %s", run.message.address, error)
                await asyncio.sleep(_RETRY)
        self._lookout.look_for((hashed,))


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
