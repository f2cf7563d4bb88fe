"""Whether others can connect to this runner at the address that it advertises.

A runner opens links to all others when it starts, so a wrong address may stay unnoticed among runners for a long time,
while clients, which can only be connected from, do not reach it.
"""

import asyncio
from typing import Final

from actorhub.core.envelope import DIAL
from actorhub.core.errors import ActorhubError
from actorhub.core.logger import get_logger
from actorhub.engine.anycast.ask import AnycastRequest, ask
from actorhub.engine.model.spec import operation_spec
from actorhub.engine.node import Node
from actorhub.engine.routing.peers import Peer

_SPEC: Final = operation_spec("runner", "dial")
_ASKED: Final = 3
"""Peers that are asked at a time to connect to this runner."""
_PATIENCE: Final = 5.0
_SECOND_CHECK: Final = 3.0
"""Seconds after the first check, by when peers are linked."""
_WHILE_WRONG: Final = 10.0
"""Seconds between checks while nobody can connect."""

_log: Final = get_logger("actorhub.peers")


class OwnAddress:
    """Checks the address at start, and again while it is wrong."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.problem = ""
        """Why nobody can connect to it; empty: somebody can, or it is not known yet."""
        self._checking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Check until it has been right twice: alone, and with the peers of which there are some by then."""
        self._checking = self._node.supervisor.loop("own address", self._run)

    def stop(self) -> None:
        """Check no longer: a process that ends cannot be connected to."""
        if self._checking is not None:
            self._node.supervisor.end(self._checking)

    async def _run(self) -> None:
        await self._check()
        await asyncio.sleep(_SECOND_CHECK)
        while True:
            await self._check()
            if not self.problem:
                return
            await asyncio.sleep(_WHILE_WRONG)

    async def _check(self) -> None:
        problem = await self._find_problem()
        if problem and not self.problem:
            _log.error(
                "%s: set --advertise to an address of this runner that other machines can connect to, or open the way",
                problem,
            )
        elif self.problem and not problem:
            _log.warning("this runner is reached now at the address that it advertises")
        self.problem = problem

    async def _find_problem(self) -> str:
        hello = self._node.transport.hello
        failures: dict[str, str] = {}
        for peer in self._node.peers.runners()[:_ASKED]:
            answer = await self._ask(peer)
            if answer == "":
                return ""
            if answer is not None:
                failures[peer.runner.address] = answer
        if failures:
            told = "; ".join(f"{address} says: {answer}" for address, answer in failures.items())
            return f"no other runner reaches this one at {hello.address}, the address that it advertises: {told}"
        # Not every network lets a process connect to its own address from outside. So peers are believed before that.
        alone = await self._node.connector.dial(self._node.itself)
        if alone:
            return f"this runner cannot be reached at {hello.address}, the address that it advertises: {alone}"
        return ""

    async def _ask(self, peer: Peer) -> str | None:
        """Return why the peer cannot connect to this runner; `None` if it does not say."""
        request = AnycastRequest(_SPEC, DIAL)
        request.deadline = self._node.clock.monotonic() + _PATIENCE
        try:
            return (await ask(self._node, request, peer)).decode(errors="replace")
        except ActorhubError as error:
            # A runner of an earlier release does not know the request.
            _log.debug("the runner at %s did not say whether it reaches this one: %s", peer.runner.address, error)
            return None
