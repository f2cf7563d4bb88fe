"""What other processes tell about the former owner of a shard, for whoever wants to take it."""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from actorhub.core.address import RunnerAddress, ShardOwner
from actorhub.core.envelope import LET_GO
from actorhub.core.errors import ActorhubError, RunnerUnavailable
from actorhub.core.logger import get_logger
from actorhub.engine.anycast.ask import AnycastRequest, ask
from actorhub.engine.model.spec import operation_spec
from actorhub.engine.node import Node
from actorhub.engine.routing.peers import Peer

_log: Final = get_logger("actorhub.ownership")

_IDENTIFY_SECONDS: Final = 0.5
"""Seconds that a process has to say who it is. A dead one is known at once."""
_SPEC: Final = operation_spec("runner", "let go")

_encode: Final = msgspec.msgpack.Encoder().encode


class FormerOwnerRequests:
    """Asks a former owner to let go or, where there is no link to it, whoever listens at its address who it is."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._misleading: set[str] = set()
        """Incarnations that were alive while somebody else, or nobody, listened at their address."""

    async def has_let_go(self, owner: RunnerAddress, tenures: Sequence[ShardOwner], seconds: float) -> bool:
        """Return whether `owner` is known to act for none of `tenures`, or to be dead."""
        peer = self._node.peers.by_runner(owner)
        try:
            async with asyncio.timeout(seconds):
                if peer is None:
                    return await self.is_dead(owner)
                request = AnycastRequest(_SPEC, LET_GO, _encode(tenures), about=owner.address)
                request.deadline = self._node.clock.monotonic() + seconds
                return msgspec.msgpack.decode(await ask(self._node, request, peer), type=bool)
        except (ActorhubError, msgspec.MsgspecError, TimeoutError) as error:
            _log.info("whether runner %s still acts for its shards is not known: %s", owner, error)
            return False

    async def is_dead(self, runner: RunnerAddress) -> bool:
        """Return whether `runner` is known to be dead, whatever its lock session tells.

        There is no link to it, and nobody listens at its address, or another incarnation does. A firewall may refuse
        connections on behalf of one that is alive, so other runners are asked for a way to it as well.
        """
        node = self._node
        try:
            if node.peers.by_runner(runner) is not None or runner.incarnation in self._misleading:
                return False
            if await node.transport.identify(runner.address, deadline=_IDENTIFY_SECONDS) == runner.incarnation:
                return False
        except RunnerUnavailable as error:
            _log.info("whether runner %s is dead is not known: %s", runner, error)
            return False
        return not await node.connector.is_reached_by_others(runner, _IDENTIFY_SECONDS)

    async def check_address(self, peer: Peer) -> None:
        """Learn whether a peer's address leads to it. If it does not, that nobody listens there proves nothing later.

        The peer may have opened the link, so that nobody here has ever used its address.
        """
        try:
            listening = await self._node.transport.identify(peer.runner.address, deadline=_IDENTIFY_SECONDS)
        except RunnerUnavailable as error:
            _log.info("whether the address of runner %s leads to it is not known: %s", peer.runner, error)
            return
        if listening != peer.runner.incarnation and peer.link.is_open:
            self._misleading.add(peer.runner.incarnation)
            _log.warning(
                "runner %s is linked, but at the address that it advertises %s: correct its --advertise",
                *(peer.runner, "nobody listens" if listening is None else "another one listens"),
            )

    def forget_others(self, incarnations: Sequence[str]) -> None:
        """Forget what is known about other incarnations than these."""
        self._misleading.intersection_update(incarnations)
