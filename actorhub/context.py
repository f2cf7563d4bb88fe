"""`current()`: what a running handler knows about itself, in downstream code too."""

from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from actorhub.client import Client
from actorhub.cluster import as_call, cluster_of_handler
from actorhub.core.address import RunnerAddress, ShardId
from actorhub.core.errors import NotConnected
from actorhub.engine.cell import DEAD, Cell
from actorhub.engine.durable_message import DurableMessage
from actorhub.engine.message import FOREVER, RUNNING, Message, running
from actorhub.engine.run_commits import transaction_of
from actorhub.entity import Entity

if TYPE_CHECKING:
    from asyncpg import Record
    from asyncpg.pool import PoolConnectionProxy

E = TypeVar("E", bound=Entity[Any])


class Current:
    """The running handler's view of itself. Get it anew by `current()`; do not keep it beyond the run."""

    __slots__ = ("_cell", "_message")

    def __init__(self, message: Message, cell: Cell) -> None:
        self._message = message
        self._cell = cell

    @property
    def entity_type(self) -> str:
        """Name of the entity's type."""
        return self._message.spec.entity_type

    @property
    def entity_id(self) -> str:
        """The entity's id."""
        return self._message.entity_id

    @property
    def shard_id(self) -> ShardId:
        """The shard that the entity is in."""
        return self._cell.shard.id

    @property
    def runner(self) -> RunnerAddress:
        """The runner that this runs on."""
        runner = cluster_of_handler().runner
        assert runner is not None
        return runner

    @property
    def incarnation(self) -> str:
        """The random id of that runner's start."""
        return self.runner.incarnation

    @property
    def epoch(self) -> int:
        """The shard's epoch when this run started: the fencing token for systems outside."""
        return self._message.epoch

    @property
    def is_leader(self) -> bool:
        """Whether this runner still owns the shard, as far as it can prove."""
        host = self._cell.shard.host
        return self._cell.phase != DEAD and host.lease_is_fresh()

    @property
    def message_id(self) -> int:
        """The message's id; 0 for a volatile ask, which nobody can refer to later."""
        return self._message.message_id

    @property
    def key(self) -> str | None:
        """The durable message's idempotency key, if its sender gave one."""
        message = self._message
        return message.key if isinstance(message, DurableMessage) else None

    @property
    def attempt(self) -> int:
        """The number of this run of a durable message, from 1; a volatile one is run once."""
        message = self._message
        return message.attempts if isinstance(message, DurableMessage) else 1

    @property
    def deadline(self) -> datetime | None:
        """When the caller stops waiting; `None` if it never does."""
        deadline = self._message.deadline
        if deadline == FOREVER:
            return None
        clock = cluster_of_handler().part.node.clock
        return datetime.fromtimestamp(clock.time() + deadline - clock.monotonic(), UTC)

    @property
    def headers(self) -> Mapping[str, str]:
        """What the caller sent along."""
        return self._message.headers or {}

    @property
    def trace(self) -> str | None:
        """The caller's trace context, as its W3C `traceparent` header says; `None` if it sent none."""
        return self.headers.get("traceparent")

    @property
    def chain(self) -> tuple[str, ...]:
        """`type/id` of the entities that wait for this call, outermost first."""
        return self._message.chain

    def client(self, entity: type[E]) -> Client[E]:
        """Return a typed client, as `cluster.client` does; its calls inherit this run's deadline and chain."""
        return cluster_of_handler().client(entity)

    async def tell(
        self,
        call: Awaitable[Any],
        *,
        deliver_at: datetime | None = None,
        delay: timedelta | None = None,
        key: str | None = None,
    ) -> int:
        """Send a call when this run commits, and not at all if the handler raises; return its message id now.

        A tell of a durable handler is stored by the same commit. Arguments are those of `cluster.tell`; a key that was
        used before with another payload makes the run fail: a durable message's dead letter names `DuplicateKey`.

        Raises:
            RuntimeError: the run is over, for example in a task that outlives its handler.
        """
        if self._message.phase != RUNNING:
            as_call(call).close()
            raise RuntimeError(f"{self._message.what}: its run is over, so nothing can be sent with its commit")
        outbox = self._message.outbox
        if outbox is None:
            outbox = self._message.outbox = []
        return cluster_of_handler().tell_later(call, outbox, deliver_at=deliver_at, delay=delay, key=key)

    @asynccontextmanager
    async def transaction(self) -> "AsyncGenerator[PoolConnectionProxy[Record], None]":
        """Give the handler's own SQL a connection, in the transaction that this run commits with.

        What is written through it is committed together with state, reply and tells, or not at all. A block that raises
        undoes what was done in it. Several blocks of one run share the transaction; it holds its row locks until the
        run ends, and the server ends one that is idle for 15 seconds.

        Raises:
            RuntimeError: the handler is readonly, a stream, or its run is over.
            ConfigurationError: the store is no Postgres.
            PersistenceError: the database cannot be reached, or has no connection free.
        """
        transaction = await transaction_of(self._message, self._cell)
        async with transaction.block():
            yield transaction.connection

    def keep_alive(self, enabled: bool = True) -> None:
        """Keep this activation in memory when idle, until called with `False`; a move to another runner ends it."""
        self._cell.kept = enabled


def current() -> Current:
    """Return the context of the handler that runs here.

    Raises:
        NotConnected: no handler runs here.
    """
    message = running.get()
    if message is None or message.cell is None:
        raise NotConnected("current() works inside handlers only")
    return Current(message, message.cell)
