"""What runners and clients have in common: links, routing, ids."""

import asyncio
import contextlib
import os
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from actorhub.core.address import RunnerAddress, ShardId
from actorhub.core.clock import Clock
from actorhub.core.errors import ActorhubError, RunnerUnavailable, ShuttingDown
from actorhub.core.logger import get_logger
from actorhub.engine.host import Host
from actorhub.engine.ids import ProcessIds
from actorhub.engine.model.lease import Lease
from actorhub.engine.model.limits import Limits
from actorhub.engine.model.records import PARKED, SENT, Message
from actorhub.engine.model.sharding import Sharding
from actorhub.engine.routing.connector import Connector
from actorhub.engine.routing.exchange import Exchange, NodeEvents
from actorhub.engine.routing.inbound import Inbound
from actorhub.engine.routing.late_replies import echo
from actorhub.engine.routing.peers import Peer, Peers
from actorhub.engine.routing.relays import Relays
from actorhub.engine.routing.router import Router
from actorhub.engine.routing.switching import LinkSwitch
from actorhub.engine.runs.observing import CallTracing
from actorhub.engine.supervision import Supervisor
from actorhub.storage.message_ports import MessageStore
from actorhub.transport.ports import Link, LinkEvents, Transport

_log: Final = get_logger("actorhub.node")

_HEARING: Final = 1.0
"""Seconds that peers have to say that they know. Those of an earlier release may not answer."""
_FORWARDING_POLL: Final = 0.005
"""Seconds between checks of whether the next owners have accepted everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What a runner or client makes before its node."""

    incarnation: str
    clock: Clock
    limits: Limits
    supervisor: Supervisor
    ids: ProcessIds
    transport: Transport
    sharding: Sharding
    store: MessageStore | None
    """Where to store and find durable messages directly; `None` if a runner must be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What a runner needs to serve others."""

    host: Host
    lease: Lease
    is_coming: Callable[[ShardId], bool]
    """Returns whether this process is about to own a shard."""
    serve: Callable[[Message], None]
    """Serves requests that any runner can answer."""


class Node:
    """One process in the cluster, as its peers see it."""

    def __init__(self, process: Process, *, events: NodeEvents, serving: Serving | None = None) -> None:
        """Prepare.

        Args:
            process: The parts that exist already.
            events: Told of links, owners and members.
            serving: What is needed to serve others; `None` for a client.
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
            supervisor=process.supervisor,
            on_stranded=events.on_stranded,
            unreached=self._unreached,
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
        self.relays = Relays(
            transport=process.transport,
            peers=self.peers,
            acceptor=self,
            clock=clock,
            max_message_bytes=process.limits.max_message_bytes,
        )
        self.exchange = self._make_exchange(events)
        self.connector = self._make_connector(events)
        self.tracing: CallTracing | None = None
        """Told of calls, if traces are wanted."""
        self.closed = False
        self.why_closed = "the connection to the cluster is closed"
        self.on_aborted: list[Callable[[str], None]] = []
        """Told, with the reason, that this process gives up."""
        self.supervisor.on_loop_cancelled = self._abort
        self.failed_tells = 0
        """How many tells failed after they were accepted, or were never sent."""
        _nodes.add(self)

    def _make_exchange(self, events: NodeEvents) -> Exchange:
        return Exchange(
            peers=self.peers,
            router=self.router,
            relays=self.relays,
            switch=LinkSwitch(self.peers, self.router, self.supervisor),
            inbound=self.inbound,
            clock=self.clock,
            events=events,
        )

    def _make_connector(self, events: NodeEvents) -> Connector:
        return Connector(
            transport=self.transport,
            peers=self.peers,
            events=self.exchange,
            relays=self.relays,
            on_refused=events.on_refused,
            supervisor=self.supervisor,
            clock=self.clock,
        )

    @property
    def itself(self) -> RunnerAddress:
        """This process; a client's address is empty."""
        return RunnerAddress(self.transport.hello.address, self.incarnation)

    def accept(self, link: Link) -> LinkEvents:
        """Take a link, whoever opened it.

        Raises:
            ActorhubError: The link is refused.
        """
        if self.closed:
            raise RunnerUnavailable(self.why_closed)
        return self.connector.accept(link)

    def enter_era(self, cluster: str, era: str, reason: str) -> None:
        """Forget who owns what, and end every link: what is heard over a link is meant in the era in which it began.

        Peers connect again as soon as both sides are in the same era.
        """
        self.transport.enter(cluster, era)
        self.forget_era(reason)

    def forget_era(self, reason: str, keep: Peer | None = None) -> None:
        """Forget who owns what, and end every link but one."""
        self.table.clear()
        for peer in self.peers.every():
            if peer is not keep:
                peer.link.close(reason)

    def on_tell_failed(self, message: Message, error: ActorhubError) -> None:
        """Log and count a failed tell, because nobody waits for its error."""
        self.failed_tells += 1
        _log.warning("tell of %s(%s) failed: %s: %s", message.what, message.entity_id, type(error).__name__, error)

    async def forward(self, limit: float) -> None:
        """Wait, for at most `limit` seconds, until the next owners have accepted the tells that were accepted here.

        The sender of a tell was told that it is in a mailbox, so a runner that leaves hands its mailboxes on first.
        Does not wait if there is no other runner.
        """
        try:
            async with asyncio.timeout(limit):
                while self.peers.runners() and self.router.has_undelivered_tells():  # noqa: ASYNC110 - once per life
                    await asyncio.sleep(_FORWARDING_POLL)
        except TimeoutError:
            _log.warning("some messages could not be handed over to their next owners within %.1f s", limit)

    async def until_answered(self, limit: float) -> None:
        """Wait, for at most `limit` seconds, until the asks that other processes run or hold by now are answered.

        Those that are made meanwhile are not waited for: a program that goes on calling would hold its runner up.
        """
        asks = self.router.asks_elsewhere()
        try:
            async with asyncio.timeout(limit):
                while asks := [ask for ask in asks if ask.phase in (PARKED, SENT)]:  # noqa: ASYNC110 - once per life
                    await asyncio.sleep(_FORWARDING_POLL)
        except TimeoutError:
            _log.warning("asks that were not answered within the grace time: %d; %s is one", len(asks), asks[0].what)

    async def until_heard(self, limit: float) -> None:
        """Wait, for at most `limit` seconds or one, until nothing is on its way from a peer to here, or back.

        What a peer sent before it heard that this process owns nothing is sent back by then, so its callers need not
        take it for executed when their link ends. The second answer says that this has arrived, too.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(limit, _HEARING)):
                for _ in range(2):
                    for answer in [echo(self.router.send_to, peer) for peer in self.peers.every()]:
                        with contextlib.suppress(ActorhubError):
                            await answer

    @asynccontextmanager
    async def within_block(self) -> AsyncGenerator[None, None]:
        """Cancel the block if this process gives up, and raise the reason from it, as a task group does.

        Raises:
            ShuttingDown: This process has given up.
        """
        if self.closed:
            raise ShuttingDown(self.why_closed)
        scope = asyncio.timeout(None)

        def end(_: str) -> None:
            scope.reschedule(0.0)

        try:
            async with scope:
                self.on_aborted.append(end)
                try:
                    yield
                finally:
                    self.on_aborted.remove(end)
        except TimeoutError:
            if not scope.expired():
                raise
        if scope.expired():
            raise ShuttingDown(self.why_closed)

    def _abort(self, loop: str) -> None:
        """Give everything up at once, so that other runners take over: without its loops, nothing here goes on."""
        if self.closed:
            return
        self.closed = True
        self.why_closed = (
            f"a task of the program cancelled actorhub's own tasks, {loop!r} for one: "
            f"this {'client' if self.inbound is None else 'runner'} has ended"
        )
        _log.critical("%s", self.why_closed)
        for on_aborted in self.on_aborted:
            on_aborted(self.why_closed)
        self.supervisor.end_loops()
        self.router.close(ShuttingDown(self.why_closed))
        self.connector.want(())
        self.forget_era(self.why_closed)

    def _unreached(self, owner: RunnerAddress | None) -> str:
        return self.connector.unreached.text(owner)

    async def aclose(self, grace: float) -> None:
        """End every link and task. What still waits fails with `ShuttingDown`.

        The router is closed first: calls that fail when their links end are routed again, and must not be parked.
        """
        self.closed = True
        self.router.close(ShuttingDown("this process is leaving the cluster"))
        self.connector.want(())
        await self.relays.aclose(grace)
        await self.transport.aclose(grace)
        await self.supervisor.aclose(1.0)


def _on_fork() -> None:
    for node in _nodes:
        node.closed = True
        node.why_closed = "it was made before this process was forked: connect in a process that is spawned"


# A forked child has copies of the connections, and neither the threads of gRPC nor a right to the sockets. If the
# coroutine that forked goes on in the child, even the event loop looks like the right one, and a call would wait for an
# answer that never comes.
_nodes: Final = weakref.WeakSet[Node]()
os.register_at_fork(after_in_child=_on_fork)
