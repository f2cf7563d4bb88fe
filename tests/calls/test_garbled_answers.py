"""Runners that answer what nobody can read: the calls that they answer fail with a typed error, and no others."""

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import pytest

from actorhub import Cluster, HandlerFailed, RunnerUnavailable, current
from actorhub.core.envelope import Envelope, Reply
from actorhub.testing import MemoryCluster
from actorhub.transport.link import QueuedLink
from tests.calls.odd_values import outcome, transports
from tests.calls.tills import Clerk, Till, acts, hub

__all__ = ["hub"]

GARBLED: Final = (b"", b"\xc1", b"\xa1", b"\xa1x", b"\xc0", b"\x91" * 5_000, b"\xcb" + b"\xff" * 8)
"""Nothing, no msgpack, half of a text, texts, nil, a deep nest, and not a number."""
_tokens: Final[list[str]] = []
ASKED: Final[dict[str, Callable[[Cluster], Awaitable[object]]]] = {
    "ask": lambda c: c.client(Till)("a").add(1),
    "durable ask": lambda c: c.client(Till)("a").book(1),
    "tell": lambda c: c.tell(c.client(Till)("a").book(1)),
    "broadcast": lambda c: c.tell(c.client(Till).active().add(1)),
    "singleton": lambda c: c.singleton(Clerk).greet(),
    "cancel": lambda c: c.cancel(7),
    "retry": lambda c: c.retry(7),
    "complete": lambda c: c.complete(_tokens[0], 1),
    "get": lambda c: c.kv.get("a"),
    "delete": lambda c: c.kv.delete("a"),
    "modify": lambda c: c.kv.modify("a", lambda _: 1),
    "count": lambda c: c.kv.size(),
    "clear": lambda c: c.kv.clear(),
}

READABLE: Final = {("singleton", b"\xa1x"): ("x",)}
"""What can be read nevertheless, besides that there is nothing."""


@pytest.mark.parametrize("what", ASKED)
async def test_an_answer_that_cannot_be_read_fails_its_call(
    memory: MemoryCluster, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an error of actorhub's that does not claim that nothing was done; the link is still there afterwards."""
    await memory.start_runner()
    await memory.settled()
    client = await memory.client()
    await _hand_out_a_token(client)
    before = transports(client)
    send = QueuedLink.send
    for body in GARBLED:

        def garbled(link: QueuedLink, envelope: Envelope, body: bytes = body) -> None:
            send(link, msgspec.structs.replace(envelope, body=body) if isinstance(envelope, Reply) else envelope)

        with monkeypatch.context() as patch:
            patch.setattr(QueuedLink, "send", garbled)
            came = await outcome(ASKED[what], client)
        if isinstance(came, Exception):
            assert isinstance(came, HandlerFailed | RunnerUnavailable), (body, came)
            assert came.possibly_executed
        else:
            assert came in READABLE.get((what, body), (None, False)), (body, came)
    assert transports(client) == before
    assert await client.client(Till)("b").add(1) == 1


async def _hand_out_a_token(client: Cluster) -> None:
    async def act() -> None:
        _tokens[:] = [current().deferred("value", int).token]

    acts[:] = [act]
    await client.client(Till)("a").act(0)
