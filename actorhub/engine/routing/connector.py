"""Opening links: there is one to every wanted runner, whichever of the two opened it."""

import asyncio
from collections.abc import Callable, Collection
from typing import Final

from actorhub.core.address import RunnerAddress
from actorhub.core.backoff import Backoff
from actorhub.core.clock import Clock
from actorhub.core.errors import ActorhubError, RunnerUnavailable
from actorhub.core.logger import get_logger
from actorhub.engine.routing.peers import Peer, PeerEvents, Peers
from actorhub.engine.routing.relays import RelayedLink, Relays
from actorhub.engine.routing.unreached import Unreached
from actorhub.engine.supervision import Supervisor, set_or_time
from actorhub.transport.ports import Link, LinkEvents, Transport

_log: Final = get_logger("actorhub.peers")

_CONNECT_DEADLINE: Final = 2.0
"""Seconds that one attempt may take."""
_BACKOFF: Final = Backoff(initial=0.1, maximum=1.0)
_WAYS_AT_ONCE: Final = 3
"""Runners that are asked in one round whether they reach a runner that this process does not reach."""


class Connector:
    """Connects to the wanted runners, reconnects when a link breaks, and takes the links that others open.

    Two runners that start together may connect to each other at the same moment, and both attempts may succeed. That
    does no harm: each process sends over the link that it learned of last, and serves what comes over either.

    While a runner cannot be reached, a link to it is opened through another one, by the one of the two that has the
    smaller incarnation, and the attempts to reach it directly go on.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        peers: Peers,
        events: PeerEvents,
        relays: Relays,
        on_refused: Callable[[RunnerAddress, ActorhubError, bool], None],
        supervisor: Supervisor,
        clock: Clock,
    ) -> None:
        """Prepare.

        Args:
            transport: Opens links.
            peers: The open links.
            events: Told of what comes over them.
            relays: Opens links through other runners.
            on_refused: Told of each failed attempt to connect, with the runner, the error, and whether it is the first
                of a series. The incarnation is empty if it is not known.
            supervisor: Owns the attempts.
            clock: Source of time and jitter.
        """
        self._transport = transport
        self._peers = peers
        self._events = events
        self._relays = relays
        self._on_refused = on_refused
        self._supervisor = supervisor
        self._clock = clock
        self._wanted: dict[str, RunnerAddress] = {}
        self._connecting: dict[str, asyncio.Task[None]] = {}
        self._way_lost = asyncio.Event()
        """Set when a link through another runner has ended, or will soon."""
        self.unreached = Unreached(clock, self._way_to)
        """The wanted runners that cannot be connected to."""

    def accept(self, link: Link) -> LinkEvents:
        """Take a link, whoever opened it."""
        via = link.via if isinstance(link, RelayedLink) else None
        peer = Peer(link, self._events, self._on_link_ended, via)
        try:
            self._events.on_linked(peer)
        except BaseException:
            # The transport refuses the link then, and nobody would ever hear that it is closed.
            self._peers.remove(peer)
            raise
        if via is None:
            self.unreached.on_reached(peer.runner.address)
        return peer

    def want(self, runners: Collection[RunnerAddress]) -> None:
        """Keep a link to each of these runners. Attempts at others end; other open links stay until they break.

        Args:
            runners: With an empty incarnation, whoever answers at the address.
        """
        self._wanted = {runner.address: runner for runner in runners}
        for address in [a for a in self._connecting if a not in self._wanted]:
            self._connecting.pop(address).cancel()
        self.unreached.keep(self._wanted)
        self._connect_missing()

    def on_leaving(self, peer: Peer) -> None:
        """Have links that go through `peer`, which is leaving, replaced."""
        self._way_lost.set()

    async def dial(self, runner: RunnerAddress) -> str:
        """Return why `runner`, which may be this process, cannot be connected to at its address; empty: it can."""
        try:
            listening = await self._transport.identify(runner.address, deadline=_CONNECT_DEADLINE)
        except RunnerUnavailable as error:
            return str(error)
        if listening is None:
            return f"nobody listens at {runner.address}"
        return "" if listening == runner.incarnation else f"another process answers at {runner.address}"

    async def is_reached_by_others(self, runner: RunnerAddress, deadline: float) -> bool:
        """Return whether a link to `runner` could be opened through another one; it is used then, like any other."""
        for via in self._relays.candidates(runner.incarnation, _WAYS_AT_ONCE):
            if await self._open_way(via, runner, deadline):
                return True
        return False

    def _on_link_ended(self) -> None:
        # Nothing watches an open link, whoever opened it, so each link calls this when it has ended.
        self._way_lost.set()
        self._connect_missing()

    def _connect_missing(self) -> None:
        linked = self._peers.direct_addresses()
        for address in self._wanted.keys() - linked - self._connecting.keys():
            self._connecting[address] = self._supervisor.spawn(self._connect(address), "connect")

    async def _connect(self, address: str) -> None:
        failures = 0
        try:
            while address in self._wanted and address not in self._peers.direct_addresses():
                runner = self._wanted[address]
                try:
                    await self._transport.connect(address, _Caller(self, runner), deadline=_CONNECT_DEADLINE)
                except RunnerUnavailable as error:
                    _log.debug("no link to %s: %s", address, error)
                    self._on_refused(runner, error, self.unreached.on_failed(runner, error))
                    self._way_lost.clear()
                    await self._go_around(runner)
                    failures += 1
                    await self._pause(runner, failures)
                else:
                    if not runner.incarnation:
                        return  # Who answered may advertise another address.
        finally:
            # If the address was dropped and wanted again meanwhile, a later attempt has its place in the table by now.
            if self._connecting.get(address) is asyncio.current_task():
                del self._connecting[address]

    async def _pause(self, runner: RunnerAddress, failures: int) -> None:
        seconds = _BACKOFF.delay(failures, self._clock.random())
        if self._needs_way(runner):
            await asyncio.sleep(seconds)
        else:
            await set_or_time(self._way_lost, seconds)

    def _way_to(self, runner: RunnerAddress) -> str:
        peer = self._peers.by_runner(runner)
        return "" if peer is None or peer.via is None else peer.via.runner.address

    def _needs_way(self, runner: RunnerAddress) -> bool:
        peer = self._peers.by_runner(runner)
        if peer is None or not isinstance(peer.link, RelayedLink):
            return peer is None
        # The other end may have lost the link that had taken the place of this one, and waits for one to be opened.
        return peer.link.via.is_leaving or peer.link.is_done_there

    async def _go_around(self, runner: RunnerAddress) -> None:
        """Open a link to a runner that cannot be reached through one that can, if there is none yet."""
        ours = self._transport.hello
        # One of two runners opens it, so that there are not two of them. A client is never opened to.
        if not runner.incarnation or (ours.address and ours.incarnation > runner.incarnation):
            return
        for via in self._relays.candidates(runner.incarnation, _WAYS_AT_ONCE):
            if not self._needs_way(runner):
                return
            _ = await self._open_way(via, runner, _CONNECT_DEADLINE)

    async def _open_way(self, via: Peer, runner: RunnerAddress, deadline: float) -> bool:
        try:
            await self._relays.connect(via, runner, deadline)
        except RunnerUnavailable as error:
            _log.debug("no way to %s: %s", runner, error)
            return False
        return True


class _Caller:
    """Takes a link that was opened to a known runner, and nobody else's."""

    def __init__(self, connector: Connector, wanted: RunnerAddress) -> None:
        self._connector = connector
        self._wanted = wanted

    def accept(self, link: Link) -> LinkEvents:
        """Take the link if it leads to the runner, or to a later start of it.

        Raises:
            RunnerUnavailable: Another process answered.
        """
        found, wanted = link.peer, self._wanted
        if wanted.incarnation and wanted.incarnation != found.incarnation and wanted.address != found.address:
            raise RunnerUnavailable(f"the runner at {found.address} answers at {wanted.address}")
        return self._connector.accept(link)
