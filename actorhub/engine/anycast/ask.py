"""Requests that belong to no entity, so that any runner can answer them."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Final

from actorhub.core.errors import ActorhubError, CallTimeout, NotConnected, RunnerUnavailable, UnknownEntityType
from actorhub.core.logger import get_logger
from actorhub.engine.durable.homes import HomeQuestion
from actorhub.engine.model.records import AwaitedMessage
from actorhub.engine.model.spec import HandlerSpec
from actorhub.engine.node import Node
from actorhub.engine.routing.peers import Peer

_log: Final = get_logger("actorhub.requests")

_PATIENCE: Final = 30.0
"""Seconds that a request may take by default."""
_LINK_POLL: Final = 0.02
"""Seconds between attempts to find a runner, while none is linked or the last one was lost."""

_turns: Final = itertools.count()


class AnycastRequest(AwaitedMessage):
    """A request on its way to some runner."""

    __slots__ = ()

    def __init__(
        self, spec: HandlerSpec, kind: int, body: bytes = b"", *, about: str = "", message_id: int = 0
    ) -> None:
        super().__init__(spec, about, kind)
        self.body = body
        self.message_id = message_id


async def ask_any(
    node: Node,
    spec: HandlerSpec,
    kind: int,
    body: bytes = b"",
    *,
    about: str = "",
    message_id: int = 0,
    deadline: float | None = None,
    repeat: bool = True,
) -> bytes:
    """Return the answer of one of the linked runners, which take turns. Wait for a link if there is none.

    A runner that is lost before it has answered may have carried the request out. If that does no harm, another one is
    asked.

    Args:
        node: This process.
        spec: Names the request in error messages.
        kind: Kind of the envelope.
        body: The encoded request.
        about: The id that error messages name.
        message_id: Id of the message that the request is about.
        deadline: Monotonic seconds; by default 30 seconds from now.
        repeat: Whether carrying the request out twice does no harm.

    Raises:
        RunnerUnavailable: The runner was lost, and the request must not be repeated.
        CallTimeout: No runner answered in time.
        NotConnected: This process has left the cluster.
    """
    deadline = node.clock.monotonic() + _PATIENCE if deadline is None else deadline
    while node.clock.monotonic() < deadline:
        if node.closed:
            raise NotConnected(node.why_closed)
        if runners := node.peers.to_ask():
            request = AnycastRequest(spec, kind, body, about=about, message_id=message_id)
            request.deadline = deadline
            try:
                return await ask(node, request, runners[next(_turns) % len(runners)])
            except RunnerUnavailable as error:
                if error.possibly_executed and not repeat:
                    raise
                _log.info("%s: asking another runner: %s", request.what, error)
        await asyncio.sleep(_LINK_POLL)
    raise CallTimeout(f"{spec.entity_type}: no runner could be reached in time")


async def ask(node: Node, request: AwaitedMessage, peer: Peer | None = None) -> bytes:
    """Return the answer of `peer` or, if that is `None`, of the owner of the request's entity.

    On cancellation the request is called back.

    Raises:
        ActorhubError: The request failed, or no answer came before its deadline.
    """
    node.deadlines.add(request)
    try:
        if peer is None:
            node.router.route(request)
        else:
            node.router.send_to(request, peer)
        return await request.future
    except asyncio.CancelledError:
        node.router.withdraw(request, CallTimeout(f"{request.what}: the caller was cancelled"))
        raise
    finally:
        node.deadlines.drop(request)


async def ask_home(node: Node, question: HomeQuestion, find_owners: Callable[[], None]) -> str:
    """Have the owner of a shard say whether it has an entity there; return the incarnation of that runner.

    Args:
        node: Asks.
        question: Names the shard.
        find_owners: Called if the owner is not known or linked, so that it is when the question is asked again.

    Raises:
        RunnerUnavailable: the owner is not known or linked, or could not say.
    """
    owner = node.table.owner(question.home)
    peer = None if owner is None else node.peers.by_runner(owner.runner)
    if owner is None or peer is None:
        find_owners()
        raise RunnerUnavailable(f"the owner of {question.home} is not linked")
    try:
        await ask(node, question, peer)
    except UnknownEntityType:
        question.is_kept = False  # It does not host the type at all.
    except ActorhubError as error:
        raise RunnerUnavailable(f"{owner.runner} does not say who has {question.address}: {error}") from error
    return owner.runner.incarnation
