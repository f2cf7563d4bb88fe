"""What bounds ownership in time: the watchdog of the lease, and a lock session on which no operation can hang.

A lock session never reconnects. Its locks vanish with it, so after a silent reconnect this runner would go on believing
in locks that somebody else may hold. Any failure ends the session for good, and with it the claim to every shard.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from actorhub.core.address import RunnerInfo, ShardId
from actorhub.core.clock import Clock
from actorhub.core.errors import PersistenceError, ShuttingDown
from actorhub.engine.model.lease import NEVER
from actorhub.engine.supervision import Supervisor, store_call
from actorhub.storage.ports import LiveRunner, LockSession, SessionLost, Storage, TableSlice

T = TypeVar("T")

OPERATION_DEADLINE: Final = 1.4
"""Seconds for one operation on the lock session. Together with the heartbeat interval this is less than the lease."""
OPEN_DEADLINE: Final = 3.0
CLOSE_DEADLINE: Final = 1.0


class Watchdog:
    """Calls `on_expired` once, when the deadline passes without having been moved.

    It is a timer of the event loop and not a task, because it must work when every task hangs: a task that waits for
    the store cannot report that the store does not answer. If the process was stopped and continued, the timer is due
    in the first iteration of the event loop. Tasks that were ready before the stop may run in that very iteration,
    which is why each start and each commit also compares the lease with the clock (see `Lease`).

    Moving the deadline costs one assignment: a timer that is due before the deadline sets itself again.
    """

    def __init__(self, clock: Clock, on_expired: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._on_expired = on_expired
        self._deadline = NEVER
        self._timer: asyncio.TimerHandle | None = None

    def arm(self, deadline: float) -> None:
        """Replace the deadline by a later one, in monotonic seconds."""
        self._deadline = deadline
        if self._timer is None:
            self._set_timer()

    def disarm(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        self._timer = self._loop.call_later(max(0.001, self._deadline - self._clock.monotonic()), self._on_due)

    def _on_due(self) -> None:
        self._timer = None
        if self._clock.monotonic() < self._deadline:
            self._set_timer()
        else:
            self._on_expired()


class GuardedSession:
    """A lock session that runs one operation at a time, and that is given up when an operation misses its deadline.

    The *wait* is bounded, not only the operation: if the operation's own clean-up hangs, because the network is gone,
    the caller goes on nevertheless.

    `on_lost` is called synchronously and at most once, before the operation that noticed the loss raises `SessionLost`.
    So shards are revoked before anybody can act on the error.
    """

    def __init__(
        self,
        session: LockSession,
        *,
        supervisor: Supervisor,
        clock: Clock,
        on_lost: Callable[["GuardedSession", str], None],
    ) -> None:
        self._session = session
        self._supervisor = supervisor
        self._clock = clock
        self._on_lost = on_lost
        self._turn = asyncio.Lock()
        self._gone = False
        self._closing: asyncio.Task[None] | None = None

    @property
    def lost(self) -> bool:
        """Whether the session is known to be gone, or was given up."""
        return self._gone or self._session.lost

    @property
    def outlives_process(self) -> bool:
        """Whether such a session, of any runner, goes on for a while when its process dies."""
        return self._session.outlives_process

    def check(self) -> None:
        """Raise if the session is gone, even if no operation has noticed yet.

        Raises:
            SessionLost: the session is gone.
        """
        if self.lost:
            raise self._lose("the connection of the lock session broke")

    async def heartbeat(self, info: RunnerInfo, only: TableSlice | None) -> tuple[float, Sequence[LiveRunner]]:
        """Return when the heartbeat was sent, in monotonic seconds, and the registered runners, or `only` some.

        The lease counts from the sending. Peers count this runner's silence from when the store received the heartbeat,
        which is later, so this runner's lease always ends before they act on its silence.
        """
        sent = NEVER

        async def beat() -> Sequence[LiveRunner]:
            nonlocal sent
            # Taken here and not by the caller, who may wait for another operation of the session first.
            sent = self._clock.monotonic()
            return await self._session.heartbeat(info, only)

        rows = await self._run(beat, "lock session: heartbeat")
        return sent, rows

    async def try_lock(self, shards: Sequence[ShardId]) -> Sequence[ShardId]:
        """Return those of `shards` whose lock this session holds now. If this fails, it may hold some of them."""
        return await self._run(lambda: self._session.try_lock(shards), "lock session: lock")

    async def unlock(self, shards: Sequence[ShardId]) -> None:
        """Free the locks of `shards`. If that fails, the session is given up, so that no lock is left behind.

        A lock that is held by nobody's will keeps its shard from every other runner for as long as the session lives.

        Raises:
            SessionLost: The session is gone, and the server frees its locks.
        """
        if not shards:
            return
        try:
            await self._run(lambda: self._session.unlock(shards), "lock session: unlock")
        except SessionLost:
            raise
        except PersistenceError as error:
            raise self._lose(f"its locks could not be freed: {error}") from error

    def abandon(self) -> None:
        """Give the session up and end it in the background."""
        self._gone = True
        if self._closing is not None:
            return
        with contextlib.suppress(ShuttingDown):  # The server ends the session after some seconds of silence.
            self._closing = self._supervisor.spawn(self._session.aclose(), "lock session: close")

    async def aclose(self) -> None:
        """End the session, which frees its locks. Returns within a second even if the connection hangs."""
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
                # The operation may still be running at the server. A second one on the same connection would wait
                # behind it, or fail, and whether locks were taken or freed is unknown.
                self._lose(f"{name} was cancelled")
                raise
            except (SessionLost, TimeoutError) as error:
                raise self._lose(str(error)) from error

    def _lose(self, reason: str) -> SessionLost:
        if not self._gone:
            self.abandon()
            self._on_lost(self, reason)
        return SessionLost(reason)


async def open_session(storage: Storage, incarnation: str, *, supervisor: Supervisor, again: bool) -> LockSession:
    """Return a new lock session. If it is not the first, earlier sessions of this incarnation are ended before.

    A session that was given up may live on at the server, behind a connection that hangs, and hold the very locks that
    the new one needs.

    Raises:
        PersistenceError: the store failed or did not answer in time.
    """
    if again:
        await store_call(supervisor, storage.terminate_sessions(incarnation), "end former lock sessions", OPEN_DEADLINE)
    return await store_call(supervisor, storage.open_lock_session(incarnation), "open lock session", OPEN_DEADLINE)
