"""What bounds ownership in time: the watchdog of the lease, and a lock session on which no operation can hang."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from actorhub.core.address import RunnerInfo, ShardId
from actorhub.core.clock import Clock
from actorhub.core.errors import PersistenceError, ShuttingDown
from actorhub.engine.model.lease import NEVER
from actorhub.engine.supervision import Supervisor
from actorhub.storage.ports import LiveRunner, LockSession, SessionLost, Storage

T = TypeVar("T")

OPERATION_DEADLINE: Final = 1.4
"""Seconds for one operation on the lock session: with the heartbeat interval it stays below the lease."""
OPEN_DEADLINE: Final = 3.0
CLOSE_DEADLINE: Final = 1.0


async def store_call(supervisor: Supervisor, work: Coroutine[Any, Any, T], name: str, seconds: float) -> T:
    """Return the result of one call of the store, or give up the wait after `seconds`.

    Raises:
        PersistenceError: the store failed it, or gave no answer in time: then the outcome is unknown.
    """
    try:
        return await supervisor.bounded(work, name, seconds)
    except TimeoutError as error:
        raise PersistenceError(f"the store does not answer: {error}") from error


class Watchdog:
    """Calls `expired` once when the deadline passes without having been moved, whatever else hangs.

    Moving the deadline costs an assignment: the timer that is set re-arms itself when it finds a later one. After the
    process was stopped and continued, the timer is due in the first round of the event loop.
    """

    def __init__(self, clock: Clock, expired: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._expired = expired
        self._deadline = NEVER
        self._timer: asyncio.TimerHandle | None = None

    def arm(self, deadline: float) -> None:
        """Watch for `deadline`, in monotonic seconds, instead of an earlier one."""
        self._deadline = deadline
        if self._timer is None:
            self._set_timer()

    def disarm(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        self._timer = self._loop.call_later(max(0.001, self._deadline - self._clock.monotonic()), self._due)

    def _due(self) -> None:
        self._timer = None
        if self._clock.monotonic() < self._deadline:
            self._set_timer()
        else:
            self._expired()


class GuardedSession:
    """A lock session that runs one operation at a time and is given up when one misses its deadline.

    The wait is bounded, not only the operation: a clean-up that hangs holds nobody. `lost` is called synchronously, at
    most once, when the loss is seen and before the operation that saw it raises `SessionLost`.
    """

    def __init__(
        self,
        session: LockSession,
        *,
        supervisor: Supervisor,
        clock: Clock,
        lost: Callable[["GuardedSession", str], None],
    ) -> None:
        self._session = session
        self._supervisor = supervisor
        self._clock = clock
        self._lost = lost
        self._turn = asyncio.Lock()
        self._gone = False
        self._closing: asyncio.Task[None] | None = None

    @property
    def lost(self) -> bool:
        """Whether the session is known to be gone, or was given up."""
        return self._gone or self._session.lost

    def check(self) -> None:
        """Report a loss that no operation has run into yet.

        Raises:
            SessionLost: the session is gone.
        """
        if self.lost:
            raise self._lose("the connection of the lock session broke")

    async def heartbeat(self, info: RunnerInfo) -> tuple[float, Sequence[LiveRunner]]:
        """Return when the heartbeat was sent, in monotonic seconds, and the registered runners."""
        sent = NEVER

        async def beat() -> Sequence[LiveRunner]:
            nonlocal sent
            sent = self._clock.monotonic()
            return await self._session.heartbeat(info)

        rows = await self._run(beat, "lock session: heartbeat")
        return sent, rows

    async def try_lock(self, shards: Sequence[ShardId]) -> Sequence[ShardId]:
        """Return those of `shards` whose lock is held now. Failed or cancelled on the way: some may be held."""
        return await self._run(lambda: self._session.try_lock(shards), "lock session: lock")

    async def unlock(self, shards: Sequence[ShardId]) -> None:
        """Free the locks of `shards`; when that fails the whole session is given up, so that none stays stuck.

        Raises:
            SessionLost: the locks are (about to be) gone with the session.
        """
        if not shards:
            return
        try:
            await self._run(lambda: self._session.unlock(shards), "lock session: unlock")
        except SessionLost:
            raise
        except PersistenceError as error:
            raise self._lose(f"its locks cannot be freed: {error}") from error

    def abandon(self) -> None:
        """Give the session up and end it in the background."""
        self._gone = True
        if self._closing is not None:
            return
        with contextlib.suppress(ShuttingDown):  # Then the server ends the silent session itself.
            self._closing = self._supervisor.spawn(self._session.aclose(), "lock session: close")

    async def aclose(self) -> None:
        """End the session, which frees its locks; returns within a second even if the connection hangs."""
        self.abandon()
        if self._closing is not None:
            await asyncio.wait((self._closing,), timeout=CLOSE_DEADLINE)

    async def _run(self, operation: Callable[[], Coroutine[Any, Any, T]], name: str) -> T:
        async with self._turn:
            if self.lost:
                raise self._lose("the connection of the lock session broke")
            try:
                return await self._supervisor.bounded(operation(), name, OPERATION_DEADLINE)
            except asyncio.CancelledError:
                # Nobody knows whether the operation still runs: another one must not be sent behind it.
                self._lose(f"{name} was cancelled")
                raise
            except (SessionLost, TimeoutError) as error:
                raise self._lose(str(error)) from error

    def _lose(self, reason: str) -> SessionLost:
        if not self._gone:
            self.abandon()
            self._lost(self, reason)
        return SessionLost(reason)


async def open_session(storage: Storage, incarnation: str, *, supervisor: Supervisor, again: bool) -> LockSession:
    """Return a new lock session; when it is opened `again`, former ones of this incarnation are ended first.

    A session that was given up may live on at the server and hold the locks that the new one needs.

    Raises:
        PersistenceError: the store failed or did not answer in time.
    """
    if again:
        await store_call(supervisor, storage.terminate_sessions(incarnation), "end former lock sessions", OPEN_DEADLINE)
    return await store_call(supervisor, storage.open_lock_session(incarnation), "open lock session", OPEN_DEADLINE)
