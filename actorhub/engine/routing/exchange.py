"""What goes on over the links: replies find their calls, requests find the host, news finds the routing table."""

import logging
from collections.abc import Sequence
from typing import Final, Protocol

from actorhub.core.clock import Clock
from actorhub.core.codec import decode_error
from actorhub.core.envelope import (
    Cancel,
    Chunk,
    Credit,
    Envelope,
    Failure,
    Leaving,
    Members,
    NotOwner,
    Owners,
    Reply,
    Request,
)
from actorhub.core.errors import ActorhubError
from actorhub.engine.model.records import DONE, SENT, Message
from actorhub.engine.routing.inbound import Inbound
from actorhub.engine.routing.peers import Peer, Peers
from actorhub.engine.routing.router import Router

_log: Final = logging.getLogger("actorhub.exchange")


class News(Protocol):
    """What a process does with news that are not messages."""

    def on_linked(self, peer: Peer) -> None:
        """A link is up."""
        ...

    def on_lost(self, peer: Peer) -> None:
        """A link is gone; its calls are settled."""
        ...

    def on_owners(self, peer: Peer, news: Owners) -> None:
        """A runner says what it owns; the routing table knows already."""
        ...

    def on_members(self, peer: Peer, news: Members) -> None:
        """A runner says who is in the cluster."""
        ...

    def on_refused(self, address: str, error: ActorhubError) -> None:
        """An attempt to connect failed."""
        ...

    def on_stranded(self) -> None:
        """A message starts to wait for an owner."""
        ...


class Exchange:
    """Handles everything that links bring. A client's exchange has no inbound side and refuses requests."""

    def __init__(self, *, peers: Peers, router: Router, inbound: Inbound | None, clock: Clock, news: News) -> None:
        self._peers = peers
        self._router = router
        self._inbound = inbound
        self._monotonic = clock.monotonic
        self._news = news
        self.unexpected = 0
        """Envelopes that made no sense from that peer; dropped."""

    def linked(self, peer: Peer) -> None:
        """Note the link, and let go what waited for it."""
        self._peers.add(peer)
        self._news.on_linked(peer)
        if peer.is_runner:
            self._router.release(self._router.table.of_runner(peer.runner))

    def unlinked(self, peer: Peer, reason: str, unsent: Sequence[Envelope]) -> None:
        """Settle what was in flight on the link."""
        _log.info("link to %s closed: %s", peer.runner, reason)
        self._peers.remove(peer)
        if self._inbound is not None:
            self._inbound.abandoned(peer)
        self._router.link_lost(peer, [e.id for e in unsent if type(e) is Request], reason)
        self._news.on_lost(peer)

    def received(self, peer: Peer, envelopes: Sequence[Envelope]) -> None:
        """Handle one frame."""
        inbound = self._inbound
        for envelope in envelopes:
            if isinstance(envelope, Reply):
                message = self._answered(peer, envelope)
                if message is not None:
                    message.on_completed(envelope.body)
            elif isinstance(envelope, Request) and inbound is not None:
                inbound.request(peer, envelope)
            else:
                self._control(peer, envelope)

    def _answered(self, peer: Peer, envelope: Reply | Failure) -> Message | None:
        """Return the call that this answers, now done; `None` for one that nobody waits for."""
        message = peer.pending.pop(envelope.id, None)
        if message is None or message.phase != SENT:
            return None
        shard = message.shard_id
        if (
            shard is not None
            and 0 < envelope.epoch < self._router.table.newest.get(shard, 0)
            and self._router.table.is_superseded(shard, envelope.epoch, self._monotonic())
        ):
            self._router.refused_replies += 1
            self._router.lost(message, peer, "it no longer owns the shard")
            return None
        message.phase = DONE
        return message

    def _control(self, peer: Peer, envelope: Envelope) -> None:
        match envelope:
            case Failure():
                message = self._answered(peer, envelope)
                if message is not None:
                    message.on_failed(decode_error(envelope.body))
            case NotOwner():
                self._router.not_owner(peer, envelope.id, envelope.hint)
            case Chunk():
                message = peer.pending.get(envelope.id)
                if message is not None and message.phase == SENT:
                    message.on_items(envelope.bodies)
            case Credit() | Cancel() if self._inbound is not None:
                self._inbound.control(peer, envelope)
            case Owners():
                self._learn(peer, envelope)
            case Members():
                self._news.on_members(peer, envelope)
            case Leaving():
                peer.is_leaving = True
                _log.info("%s is leaving: %s", peer.runner, envelope.reason)
            case _:
                self.unexpected += 1

    def _learn(self, peer: Peer, news: Owners) -> None:
        table = self._router.table
        if news.complete:
            still = {owner.shard for owner in news.owned}
            for shard in table.of_runner(peer.runner):
                if shard not in still:
                    table.forget(shard, peer.runner)
        for shard in news.released:
            table.forget(shard, peer.runner)
        changed = table.learn(news.owned, self._monotonic())
        self._news.on_owners(peer, news)
        self._router.owners_changed(changed)
