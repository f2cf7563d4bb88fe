"""What runners and clients share: links, routing, deadlines."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from actorhub.core.clock import Clock
from actorhub.core.errors import (
    ActorhubError,
    ShuttingDown,
    UnknownEntityType,
)
from actorhub.engine.durable.requests import Deposits
from actorhub.engine.model.limits import Limits
from actorhub.engine.model.message import Message
from actorhub.engine.model.spec import EntitySpec
from actorhub.engine.routing.deadlines import Deadlines
from actorhub.engine.routing.exchange import Exchange, News
from actorhub.engine.routing.peers import Peers
from actorhub.engine.routing.router import Router
from actorhub.engine.routing.table import RoutingTable
from actorhub.engine.runs.observing import CallTracing
from actorhub.engine.supervision import Supervisor
from actorhub.storage.message_ports import MessageStore
from actorhub.transport.ports import Transport

_log: Final = logging.getLogger("actorhub.node")

_FORWARDING_LOOK: Final = 0.005


class Node:
    """What runners and clients share: links, routing, deadlines."""

    def __init__(
        self,
        *,
        specs: Mapping[str, EntitySpec],
        transport: Transport,
        clock: Clock,
        incarnation: str,
        limits: Limits,
        news: News,
        store: MessageStore | None = None,
    ) -> None:
        self.clock = clock
        self.limits = limits
        self.incarnation = incarnation
        self.transport = transport
        self.supervisor = Supervisor(clock)
        self.exchange = Exchange(clock=clock, news=news)
        self.peers = Peers(transport, self.exchange, self.supervisor, clock)
        self.table = RoutingTable()
        self.router = Router(
            specs=specs, table=self.table, peers=self.peers, host=None, clock=clock, deposits=Deposits(store)
        )
        self.store = store
        """Where durable messages can be stored and looked up directly; `None`: a runner must be asked."""
        self.new_id: Callable[[], int]
        """Returns a new message id."""
        self.loop = asyncio.get_running_loop()
        self.deadlines: Deadlines[Message] = Deadlines(self.loop, clock, self.router.expire)
        self.router.watch = self.deadlines.add
        self.exchange.peers = self.peers
        self.exchange.router = self.router
        self.router.undeliverable = self._undeliverable
        self.tracing: CallTracing | None = None
        """Told of calls, where traces are wanted."""
        self.closed = False
        self.failed_tells = 0
        """Tells that were accepted and ended in an error, or never left."""
        self.known_types: frozenset[str] = frozenset()
        """Entity types that live runners host; empty until somebody said."""

    def tell_failed(self, message: Message, error: ActorhubError) -> None:
        """Log and count a tell whose error nobody waits for."""
        self.failed_tells += 1
        _log.warning("tell of %s(%s) failed: %s: %s", message.what, message.entity_id, type(error).__name__, error)

    def _undeliverable(self, message: Message) -> ActorhubError | None:
        name = message.spec.entity_type
        if not self.known_types or name in self.known_types:
            return None
        return UnknownEntityType(
            f"no live runner hosts entity type {name!r}: they host {', '.join(sorted(self.known_types))}"
        )

    async def forward(self, limit: float) -> None:
        """Wait until what was queued here is with its next owners, if there are any, for at most `limit` seconds."""
        try:
            async with asyncio.timeout(limit):
                while self.peers.runners() and self.router.has_undelivered_tells():  # noqa: ASYNC110 - once per life
                    await asyncio.sleep(_FORWARDING_LOOK)
        except TimeoutError:
            _log.warning("messages that waited here could not be handed over within %.1f s", limit)

    async def aclose(self, grace: float) -> None:
        """End every link and task; what still waits fails with `ShuttingDown`."""
        self.closed = True
        self.router.close(ShuttingDown("this process is leaving the cluster"))
        self.deadlines.close()
        self.peers.want(())
        await self.transport.aclose(grace)
        await self.supervisor.aclose(1.0)
