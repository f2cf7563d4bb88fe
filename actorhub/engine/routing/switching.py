"""From one link to another one to the same process, without a call that overtakes another one (invariant G)."""

import asyncio
import itertools
from typing import Final

from actorhub.core.backoff import Backoff
from actorhub.core.errors import ActorhubError
from actorhub.core.logger import get_logger
from actorhub.engine.routing.late_replies import echo
from actorhub.engine.routing.peers import Peer, Peers
from actorhub.engine.routing.relays import RelayedLink
from actorhub.engine.routing.router import Router
from actorhub.engine.supervision import Supervisor

_log: Final = get_logger("actorhub.peers")

_PATIENCE: Final = 10.0
"""Seconds after which a link that does not answer is given up for the one that has taken its place."""
_RETRY: Final = 0.05
"""Seconds until the former link is asked again."""
_QUIET: Final = 30.0
"""Seconds without a call from the other end after which it is taken to be done."""
_CHECKS: Final = Backoff(initial=0.05, maximum=1.0)


class LinkSwitch:
    """Moves calls from a link that goes through another runner to a later link."""

    def __init__(self, peers: Peers, router: Router, supervisor: Supervisor) -> None:
        self._peers = peers
        self._router = router
        self._supervisor = supervisor
        self._flushes: dict[str, asyncio.Event] = {}
        """By incarnation, set once everything has arrived that was sent before the latest switch."""

    def is_under_way(self, peer: Peer) -> bool:
        """Whether something that was sent to the process of `peer` over an earlier link may not have arrived yet."""
        return peer.runner.incarnation in self._flushes

    def begin(self, former: Peer, later: Peer) -> None:
        """Hold what is sent over the later link until everything has arrived that was sent over the former one."""
        later.link.hold()
        incarnation = later.runner.incarnation
        earlier, flush = self._flushes.get(incarnation), asyncio.Event()
        self._flushes[incarnation] = flush
        _ = self._supervisor.spawn(self._switch(former, later, earlier, flush), "switch links")

    async def _switch(self, former: Peer, later: Peer, earlier: asyncio.Event | None, flush: asyncio.Event) -> None:
        try:
            if earlier is not None:
                # The former link may hold back what it was given, and what was held is sent over this one if it breaks.
                await earlier.wait()
            async with asyncio.timeout(_PATIENCE):
                await self._until_flushed(former)
        except TimeoutError:
            former.link.close(f"it did not answer within {_PATIENCE:g} s, and there is another link")
        finally:
            later.link.release()
            flush.set()
            if self._flushes.get(later.runner.incarnation) is flush:
                del self._flushes[later.runner.incarnation]
        await self._retire(former)

    async def _until_flushed(self, former: Peer) -> None:
        while former.link.is_open:
            try:
                await echo(self._router.send_to, former)
            except ActorhubError:
                # It is broken, or there is no room for one more call.
                await asyncio.sleep(_RETRY)
            else:
                return

    async def _retire(self, former: Peer) -> None:
        """Close the former link once neither side has a call in flight on it, or will make another one.

        It stays if calls go over it again, because the later link has broken: the next link takes its place then.
        """
        link = former.link
        if not isinstance(link, RelayedLink):
            return
        pauses = itertools.count(1)
        while link.is_open and former.pending:  # noqa: ASYNC110 - once per link
            await asyncio.sleep(_CHECKS.longest(next(pauses)))
        if self._peers.is_used(former):
            return
        former.is_retired = True
        link.say_done()
        quiet = 0.0
        # The other end says nothing if it never called over this link, because it had a direct one all the time.
        while link.is_open and not link.is_done_there and quiet < _QUIET:
            pause = _CHECKS.longest(next(pauses))
            await asyncio.sleep(pause)
            quiet = 0.0 if former.serving else quiet + pause
        link.close("another link has taken its place")
