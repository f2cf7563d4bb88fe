"""What the methods of a proxy return: lazy calls, which are sent when they are awaited or told."""

import asyncio
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

from msgspec import UNSET

from actorhub.core.codec import check_size, decode_answer
from actorhub.core.envelope import ASK, STREAM, TELL, Durable
from actorhub.core.errors import (
    ActorhubError,
    CallTimeout,
    HandlerFailed,
    MailboxFull,
    MalformedMessage,
    NotConnected,
)
from actorhub.core.idempotency import check_key, payload_hash, primary_key_of
from actorhub.engine.model.asked import AskedMessage
from actorhub.engine.model.event_loop import check_loop, elsewhere
from actorhub.engine.model.records import FOREVER, LENDS, Message
from actorhub.engine.model.run import Run, running
from actorhub.engine.model.spec import HandlerSpec
from actorhub.engine.node import Node
from actorhub.engine.routing.inbound import check_chain

MAX_CALLS: Final = 200_000
"""Calls that one process may wait for at a time."""


@dataclass(frozen=True, slots=True)
class CallTarget:
    """Where the calls of a client go, and with which options."""

    node: Node
    timeout: float | None = 30.0
    """Seconds; `None` for no limit."""
    waits_for_room: bool = False
    headers: dict[str, str] | None = None
    broadcast: bool = False
    key: str | None = None
    """Idempotency key of durable calls; `None` for the payload's own, if it has one."""


class Call(Message):
    """One lazy call: await it to ask, or hand it to `tell`. It can be used once, and warns if it is dropped unused.

    To its users it is a coroutine, so `TaskGroup.create_task` and the like take it.
    """

    __slots__ = ("__weakref__", "_asked", "_copy", "_future", "_steps", "_target", "_trace", "_used")

    def __init__(self, target: CallTarget, spec: HandlerSpec, entity_id: str, args: tuple[Any, ...]) -> None:
        Message.__init__(self, spec, entity_id, ASK)
        self._target = target
        self._used = False
        self._trace: Any = None
        """What the tracing of calls keeps about it."""
        self.args = args
        self._future: asyncio.Future[bytes] | None = None
        """Its outcome, once it has been sent."""
        self._asked: AskedMessage | None = None
        """Its account, if it is durable, and a run sends it that may be repeated."""
        self._copy: Any = UNSET
        """The result, if it needs no decoding."""
        self._steps: Generator[Any, Any, Any] | None = None
        """Its steps, if a task runs it as a coroutine; `await` makes its own."""

    def __await__(self) -> Generator[Any, None, Any]:
        if self._target.broadcast:
            raise TypeError(f"{self.what} of active(): a broadcast has no reply: use `await cluster.tell(...)`")
        node = self._target.node
        # A future of whichever loop runs, whose loop is compared: asking for the running loop first would cost more.
        try:
            future: asyncio.Future[bytes] | None = asyncio.Future()
        except RuntimeError:
            future = None  # no event loop runs in this thread
        if future is None or future.get_loop() is not node.loop:
            self._used = True
            raise elsewhere(self.what)
        self.prepare()
        self._future = future
        if node.tracing is not None:
            self._trace = node.tracing.call_started(self)
        node.deadlines.add(self)
        try:
            node.router.route(self)
            body = yield from future
        except asyncio.CancelledError:
            node.router.withdraw(self, CallTimeout(f"{self.what}: the caller was cancelled"))
            self._give_up()
            raise
        finally:
            node.deadlines.drop(self)
            if self._trace is not None:
                self.trace_ended(_error_of(future))
        return decode_result(self.spec, body) if self._copy is UNSET else self._copy

    def send(self, value: Any) -> Any:
        """Run one step, as a task does."""
        if self._steps is None:
            self._steps = self.__await__()
        return self._steps.send(value)

    def throw(self, *error: Any) -> Any:
        """Raise `error` where it waits, as a task does. If it has not started, nothing is sent."""
        if self._steps is None:
            self._used = True
            self._steps = _not_started()
        return self._steps.throw(*error)

    def close(self) -> None:
        """End it. If it has not started, nothing is sent."""
        self._used = True
        if self._steps is not None:
            self._steps.close()

    def check_loop(self) -> None:
        """Raise `NotConnected`, and mark it as used, unless this is the event loop of the connection."""
        try:
            check_loop(self._target.node.loop, self.what)
        except NotConnected:
            self._used = True
            raise

    def __del__(self) -> None:
        if not self._used:
            warnings.warn(f"call of {self.what} was never awaited or told", RuntimeWarning, stacklevel=2)

    def __repr__(self) -> str:
        return f"<call of {self.what}({self.entity_id!r})>"

    @property
    def target(self) -> CallTarget:
        """Where it goes."""
        return self._target

    async def tell(self, delivery: Durable | None = None) -> int:
        """Send it as a tell; return its message id once it is in a mailbox or, if durable, stored.

        If its key was used before, that is the id of the earlier message.

        Raises:
            ActorhubError: It was not accepted. `possibly_executed` tells whether it may run nevertheless.
        """
        node = self._target.node
        self.begin_tell(delivery, leaves_now=True)
        future = self._future = asyncio.get_running_loop().create_future()
        node.deadlines.add(self)
        try:
            node.router.route(self)
            body = await future
        except asyncio.CancelledError:
            # If it was accepted just before, it goes its way, as if it had been told a moment earlier.
            if future.cancelled():
                node.router.withdraw(self, CallTimeout(f"{self.what}: the teller was cancelled"))
                self._give_up()
            raise
        finally:
            node.deadlines.drop(self)
            if self._trace is not None:
                self.trace_ended(_error_of(future))
        return self.message_id if self.delivery is None else decode_answer(body, int)

    def begin_tell(self, delivery: Durable | None = None, *, leaves_now: bool = False) -> None:
        """Make it a tell, with an id. Since nobody waits for its run, it cannot be part of a cycle of calls."""
        self.kind = TELL
        self.prepare(delivery, leaves_now=leaves_now)
        if self.message_id == 0:
            self.message_id = self._target.node.ids.new_id()
        self.trace_started()
        self.chain = ()

    def prepare(self, delivery: Durable | None = None, *, leaves_now: bool = True) -> None:
        """Encode it, and let it inherit deadline and chain from the handler that makes it.

        Args:
            delivery: Key and due time of a durable tell.
            leaves_now: It does not wait for the commit of the run that makes it.

        Raises:
            ActorhubError: The call cannot be sent. No handler ran.
            RuntimeError: It was used before.
        """
        if self._used:
            raise RuntimeError(f"{self!r} was used before: make a new one for each await or tell")
        self._used = True
        target, spec = self._target, self.spec
        node = target.node
        if node.closed:
            raise NotConnected(f"{self.what}: {node.why_closed}")
        if node.deadlines.size >= MAX_CALLS:
            raise MailboxFull(f"{self.what}: this process already waits for {MAX_CALLS} calls")
        if target.timeout is not None:
            self.deadline = node.clock.monotonic() + target.timeout
        run = running.get()
        if run is not None and run.is_running:
            self._inherit(run.message)
        assert self.args is not None
        if spec.durable and self.kind != STREAM:
            self._make_durable(self.args, delivery or Durable(), run if leaves_now else None)
        elif delivery is not None or target.key is not None:
            self._used = True
            why = "a stream" if self.kind == STREAM else "not durable: mark it @handler(durable=True)"
            raise TypeError(f"{self.what} takes neither a key nor a due time, because it is {why}")
        body = self.body = spec.arguments.encode(self.args)
        if len(body) > node.limits.max_message_bytes:
            check_size(body, node.limits.max_message_bytes, spec.arguments.what)
        self.args = None
        self.headers = target.headers
        self.waits_for_room = target.waits_for_room

    def _inherit(self, parent: Message) -> None:
        """Take deadline and chain from the message whose handler makes this call."""
        # An interleaved run lends its entity's turn while it waits, so calls that come back to the entity can run.
        self.chain = (*parent.chain, f"{LENDS}{parent.address}" if parent.spec.interleaved else parent.address)
        if self.kind != TELL:
            if not self._target.broadcast:
                check_chain(self.chain, self.address, self.spec, self._target.node.limits.max_call_depth)
            self.deadline = min(self.deadline, parent.deadline)

    def trace_started(self) -> None:
        """Begin the call's span, if traces are wanted."""
        tracing = self._target.node.tracing
        if tracing is not None:
            self._trace = tracing.call_started(self)

    def trace_ended(self, error: BaseException | None) -> None:
        """End the call's span, if it has one, because its outcome is known or nobody waits for it."""
        trace, self._trace = self._trace, None
        if trace is not None:
            assert self._target.node.tracing is not None
            self._target.node.tracing.call_ended(trace, error)

    def _make_durable(self, args: tuple[Any, ...], durable: Durable, run: Run | None) -> None:
        self.message_id = self._target.node.ids.new_id()
        if durable.key is None:
            durable.key = self._target.key if self._target.key is not None else primary_key_of(args)
        if durable.key is not None:
            durable.key = check_key(durable.key)
            durable.payload_hash = payload_hash(args)
        elif run is not None and run.is_running:
            self._send_once(args, durable, run)
        self.delivery = durable

    def _send_once(self, args: tuple[Any, ...], durable: Durable, run: Run) -> None:
        """Have each repetition of the run that sends this send the same message (see `model.asked`)."""
        meaning = self.spec.meaning_of(args)
        self._asked = run.send_once(self, meaning)
        if self._asked is not None:
            durable.key, durable.payload_hash = self._asked.key.key, meaning

    def _give_up(self) -> None:
        """Its sender no longer waits, and does not know how it ends."""
        if self._asked is not None:
            self._asked.give_back()

    def on_accepted(self) -> None:
        """Wake the sender of a tell. From now on the message has no deadline."""
        self._target.node.deadlines.drop(self)
        self.deadline = FOREVER
        self.on_completed(b"")

    def on_completed(self, body: bytes) -> None:
        """Wake the caller."""
        future = self._future
        assert future is not None
        if not future.done():
            future.set_result(body)

    def on_returned(self, body: bytes, copy: Any) -> None:
        """Wake the caller."""
        future = self._future
        assert future is not None
        if not future.done():
            self._copy = copy
            future.set_result(b"")

    def on_failed(self, error: ActorhubError) -> None:
        """Wake the caller with the error, if it still waits. Count a tell that fails after it was accepted."""
        assert self._future is not None
        if not self._future.done():
            if self._asked is not None:
                self._asked.on_failed(error)
            self._future.set_exception(error)
        elif self.kind == TELL:
            self._target.node.on_tell_failed(self, error)


class ToldCall(Message):
    """A tell from inside a handler. It is sent when the handler's run is committed, and nobody waits for it."""

    __slots__ = ("_node", "_under_way")

    def __init__(self, call: Call) -> None:
        super().__init__(call.spec, call.entity_id, TELL)
        self._node = call.target.node
        self.body = call.body
        self.headers = call.headers
        self.message_id = call.message_id
        self.waits_for_room = call.waits_for_room
        self.delivery = call.delivery
        call.trace_ended(None)
        self._under_way: set[Message] | None = None

    def track_in(self, under_way: set[Message]) -> None:
        """Stay in `under_way` until the receiver knows of this tell."""
        self._under_way = under_way
        under_way.add(self)

    def on_completed(self, body: bytes) -> None:
        """Take note that the receiver knows."""
        if self._under_way is not None:
            self._under_way.discard(self)

    def on_failed(self, error: ActorhubError) -> None:
        """Log and count the error, unless the tell is stored: then the owner of its shard will find it."""
        if self._under_way is not None:
            self._under_way.discard(self)
        if self.delivery is None or not self.delivery.is_stored:
            self._node.on_tell_failed(self, error)


def _not_started() -> Generator[Any, Any, Any]:
    return
    yield


def _error_of(outcome: "asyncio.Future[bytes]") -> BaseException | None:
    if outcome.cancelled():
        return asyncio.CancelledError()
    return outcome.exception() if outcome.done() else None


def decode_result(spec: HandlerSpec, body: bytes) -> Any:
    """Return the handler's value. If it does not fit the annotation, the handler has failed."""
    try:
        return spec.result.decode(body)
    except MalformedMessage as exc:
        raise HandlerFailed("TypeError", f"the handler returned something other than it declares: {exc}") from exc
