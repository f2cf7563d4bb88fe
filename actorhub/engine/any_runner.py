"""Requests that belong to no entity: any runner answers them."""

import asyncio
import itertools
import logging
from typing import Final

from actorhub.core.errors import ActorhubError, CallTimeout, NotConnected, RunnerUnavailable
from actorhub.engine.message import Message
from actorhub.engine.node import Node
from actorhub.engine.peers import Peer
from actorhub.engine.spec import HandlerSpec

_log: Final = logging.getLogger("actorhub.requests")

_PATIENCE: Final = 30.0
"""Seconds that a request may take."""
_LINK_LOOK: Final = 0.02
"""Seconds between looks for a runner to ask, while none is linked."""

_turns: Final = itertools.count()


class AnyRunnerRequest(Message):
    """A request on its way to some runner."""

    __slots__ = ("future",)

    def __init__(self, spec: HandlerSpec, kind: int, body: bytes, *, about: str = "") -> None:
        super().__init__(spec, about, kind)
        self.body = body
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def completed(self, body: bytes) -> None:
        """Take the answer."""
        if not self.future.done():
            self.future.set_result(body)

    def failed(self, error: ActorhubError) -> None:
        """Take the error."""
        if not self.future.done():
            self.future.set_exception(error)


async def ask_any(
    node: Node, spec: HandlerSpec, kind: int, body: bytes, *, about: str = "", repeat: bool = True
) -> bytes:
    """Return the answer of one of the linked runners, which take turns; wait for a link where there is none.

    Args:
        node: Of this process.
        spec: Names the request.
        kind: Of the envelope.
        body: What is asked.
        about: For error messages.
        repeat: Ask another runner where one was lost that may have carried it out: it does no harm.

    Raises:
        RunnerUnavailable: the runner was lost, and the request is not repeated.
        CallTimeout: no runner answered within 30 s.
    """
    deadline = node.clock.monotonic() + _PATIENCE
    while node.clock.monotonic() < deadline:
        if node.closed:
            raise NotConnected("the connection to the cluster is closed")
        if runners := node.peers.to_ask():
            request = AnyRunnerRequest(spec, kind, body, about=about)
            request.deadline = deadline
            try:
                return await ask(node, request, runners[next(_turns) % len(runners)])
            except RunnerUnavailable as error:
                if error.possibly_executed and not repeat:
                    raise
                _log.info("%s: asking another runner: %s", request.what, error)
        await asyncio.sleep(_LINK_LOOK)
    raise CallTimeout(f"{spec.entity_type}: no runner could be asked within {_PATIENCE:g} s")


async def ask(node: Node, request: AnyRunnerRequest, peer: Peer) -> bytes:
    """Return the answer of one runner.

    Raises:
        ActorhubError: it failed, or none came before the request's deadline.
    """
    node.deadlines.add(request)
    try:
        node.router.send_to(request, peer)
        return await request.future
    except asyncio.CancelledError:
        node.router.withdraw(request, CallTimeout(f"{request.what}: the caller was cancelled"))
        raise
    finally:
        node.deadlines.drop(request)
