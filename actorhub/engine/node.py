"""What runners and clients share: links, routing, ids."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from actorhub.core.address import ShardId
from actorhub.core.clock import Clock
from actorhub.core.errors import ActorhubError, ShuttingDown
from actorhub.engine.host import Host
from actorhub.engine.ids import ProcessIds
from actorhub.engine.model.lease import Lease
from actorhub.engine.model.limits import Limits
from actorhub.engine.model.records import Message
from actorhub.engine.model.sharding import Sharding
from actorhub.engine.routing.connector import Connector
from actorhub.engine.routing.exchange import Exchange, NodeEvents
from actorhub.engine.routing.inbound import Inbound
from actorhub.engine.routing.peers import Peers
from actorhub.engine.routing.router import Router
from actorhub.engine.runs.observing import CallTracing
from actorhub.engine.supervision import Supervisor
from actorhub.storage.message_ports import MessageStore
from actorhub.transport.ports import Transport

_log: Final = logging.getLogger("actorhub.node")

_FORWARDING_POLL: Final = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What a runner or client has before its node is made."""

    incarnation: str
    clock: Clock
    limits: Limits
    supervisor: Supervisor
    ids: ProcessIds
    transport: Transport
    sharding: Sharding
    store: MessageStore | None
    """Where durable messages can be stored and looked up directly; `None`: a runner must be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What a runner serves to others."""

    host: Host
    lease: Lease
    is_coming: Callable[[ShardId], bool]
    """Whether this process is about to own a shard."""
    serve: Callable[[Message], None]
    """Serves requests that belong to no entity."""


class Node:
    """One process in the cluster, as its peers see it."""

    def __init__(self, process: Process, *, events: NodeEvents, serving: Serving | None = None) -> None:
        """Prepare.

        Args:
            process: What is there already.
            events: Told of links, owners and members.
            serving: What is served to others; `None` for a client.
        """
        self.incarnation = process.incarnation
        self.clock = clock = process.clock
        self.limits = process.limits
        self.supervisor = process.supervisor
        self.ids = process.ids
        self.transport = process.transport
        self.store = process.store
        self.loop = asyncio.get_running_loop()
        self.peers = Peers()
        self.router = Router(
            sharding=process.sharding,
            peers=self.peers,
            host=None if serving is None else serving.host,
            clock=clock,
            store=process.store,
            on_stranded=events.on_stranded,
        )
        self.table = self.router.table
        self.deadlines = self.router.deadlines
        self.inbound = (
            None
            if serving is None
            else Inbound(
                host=serving.host,
                router=self.router,
                lease=serving.lease,
                clock=clock,
                limits=process.limits,
                is_coming=serving.is_coming,
                serve=serving.serve,
                on_dropped=self.on_tell_failed,
            )
        )
        self.exchange = Exchange(peers=self.peers, router=self.router, inbound=self.inbound, clock=clock, events=events)
        self.connector = Connector(
            transport=process.transport,
            peers=self.peers,
            events=self.exchange,
            on_refused=events.on_refused,
            supervisor=process.supervisor,
            clock=clock,
        )
        self.tracing: CallTracing | None = None
        """Told of calls, where traces are wanted."""
        self.closed = False
        self.failed_tells = 0
        """Tells that were accepted and ended in an error, or never left."""

    def on_tell_failed(self, message: Message, error: ActorhubError) -> None:
        """Log and count a tell whose error nobody waits for."""
        self.failed_tells += 1
        _log.warning("tell of %s(%s) failed: %s: %s", message.what, message.entity_id, type(error).__name__, error)

    async def forward(self, limit: float) -> None:
        """Wait until what was queued here is with its next owners, if there are any, for at most `limit` seconds."""
        try:
            async with asyncio.timeout(limit):
                while self.peers.runners() and self.router.has_undelivered_tells():  # noqa: ASYNC110 - once per life
                    await asyncio.sleep(_FORWARDING_POLL)
        except TimeoutError:
            _log.warning("messages that waited here could not be handed over within %.1f s", limit)

    async def aclose(self, grace: float) -> None:
        """End every link and task; what still waits fails with `ShuttingDown`."""
        self.closed = True
        self.router.close(ShuttingDown("this process is leaving the cluster"))
        self.connector.want(())
        await self.transport.aclose(grace)
        await self.supervisor.aclose(1.0)
