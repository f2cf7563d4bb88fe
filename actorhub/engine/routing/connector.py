"""Opening links: there is one to every wanted runner, whichever of the two opened it."""

import asyncio
from collections.abc import Callable, Collection
from typing import Final

from actorhub.core.backoff import Backoff
from actorhub.core.clock import Clock
from actorhub.core.errors import ActorhubError, RunnerUnavailable
from actorhub.core.logger import get_logger
from actorhub.engine.routing.peers import Peer, PeerEvents, Peers
from actorhub.engine.supervision import Supervisor
from actorhub.transport.ports import Link, LinkEvents, Transport

_log: Final = get_logger("actorhub.peers")

_CONNECT_DEADLINE: Final = 2.0
"""Seconds that one attempt may take."""
_BACKOFF: Final = Backoff(initial=0.1, maximum=1.0)


class Connector:
    """Connects to the wanted addresses, reconnects when a link breaks, and takes the links that others open.

    Two runners that start together may connect to each other at the same moment, and both attempts may succeed. That
    does no harm: each process sends over the link that it learned of last, and serves what comes over either.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        peers: Peers,
        events: PeerEvents,
        on_refused: Callable[[str, ActorhubError], None],
        supervisor: Supervisor,
        clock: Clock,
    ) -> None:
        """Prepare.

        Args:
            transport: Opens links.
            peers: The open links.
            events: Told of what comes over them.
            on_refused: Told of each failed attempt to connect, with address and error.
            supervisor: Owns the attempts.
            clock: Source of jitter.
        """
        self._transport = transport
        self._peers = peers
        self._events = events
        self._on_refused = on_refused
        self._supervisor = supervisor
        self._clock = clock
        self._wanted: set[str] = set()
        self._connecting: dict[str, asyncio.Task[None]] = {}

    def accept(self, link: Link) -> LinkEvents:
        """Take a link, whoever opened it."""
        peer = Peer(link, self._events, self._connect_missing)
        try:
            self._events.on_linked(peer)
        except BaseException:
            # The transport refuses the link then, and nobody would ever hear that it is closed.
            self._peers.remove(peer)
            raise
        return peer

    def want(self, addresses: Collection[str]) -> None:
        """Keep a link to each of these addresses. Attempts at others end; other open links stay until they break."""
        self._wanted = set(addresses)
        for address in [a for a in self._connecting if a not in self._wanted]:
            self._connecting.pop(address).cancel()
        self._connect_missing()

    def _connect_missing(self) -> None:
        # Nothing watches an open link, whoever opened it, so each link calls this when it has ended.
        linked = {peer.runner.address for peer in self._peers.linked.values()}
        for address in self._wanted - linked - self._connecting.keys():
            self._connecting[address] = self._supervisor.spawn(self._connect(address), "connect")

    async def _connect(self, address: str) -> None:
        failures = 0
        try:
            while address in self._wanted and not self._is_linked(address):
                try:
                    await self._transport.connect(address, self, deadline=_CONNECT_DEADLINE)
                except RunnerUnavailable as error:
                    _log.debug("no link to %s: %s", address, error)
                    self._on_refused(address, error)
                    failures += 1
                    await asyncio.sleep(_BACKOFF.delay(failures, self._clock.random()))
        finally:
            # If the address was dropped and wanted again meanwhile, a later attempt has its place in the table by now.
            if self._connecting.get(address) is asyncio.current_task():
                del self._connecting[address]

    def _is_linked(self, address: str) -> bool:
        return any(peer.runner.address == address for peer in self._peers.linked.values())
