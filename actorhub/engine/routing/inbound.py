"""Calls that come from other processes, and their replies."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec

from actorhub.core.address import RunnerAddress, ShardId, ShardOwner
from actorhub.core.arguments import check_message_id
from actorhub.core.clock import Clock
from actorhub.core.codec import encode_error
from actorhub.core.envelope import (
    ABOUT_MESSAGES,
    ANY_RUNNER,
    ASK,
    BROADCAST,
    HOME,
    STREAM,
    TELL,
    Cancel,
    Chunk,
    Credit,
    Durable,
    Failure,
    NotOwner,
    Reply,
    Request,
)
from actorhub.core.errors import (
    ActorhubError,
    CallCycle,
    CallTimeout,
    MailboxFull,
    MalformedMessage,
    MessageTooLarge,
    RunnerUnavailable,
    UnknownEntityType,
)
from actorhub.core.idempotency import payload_hash, primary_key_of
from actorhub.core.logger import get_logger
from actorhub.core.texts import summary_of
from actorhub.engine.host import Host
from actorhub.engine.model.lease import Lease
from actorhub.engine.model.limits import Limits
from actorhub.engine.model.records import DONE, FOREVER, LENDS, NEW, PARKED, Message
from actorhub.engine.model.spec import HandlerSpec, operation_spec
from actorhub.engine.routing.deadlocks import deadlock_of
from actorhub.engine.routing.peers import MAX_IN_FLIGHT, Peer
from actorhub.engine.routing.router import MAX_HOPS, Router

_log: Final = get_logger("actorhub.inbound")

_LATEST_DUE: Final = 1e12
"""Seconds; beyond every time that callers of any release can give, and within those of a database."""
_SERVED: Final = operation_spec("runner", "request")


class RemoteMessage(Message):
    """A call whose reply goes back over a link.

    `serving` of the caller's link holds the call until it is answered. Whoever removes it from there may answer, so
    that a call gets at most one answer, and none after the caller cancelled it.
    """

    __slots__ = ("_inbound", "caller", "caller_id", "named", "skip")

    def __init__(self, inbound: "Inbound", peer: Peer, request: Request, spec: HandlerSpec) -> None:
        Message.__init__(self, spec, request.entity_id, request.kind)
        self._inbound = inbound
        self.caller = peer
        self.caller_id = request.id
        self.body = request.body
        self.chain = request.chain
        self.headers = request.headers
        self.message_id = request.message_id
        self.hops = request.hops
        self.credit = request.credit
        self.waits_for_room = request.waits_for_room
        self.delivery = request.durable
        self.skip = request.skip
        self.named = request.shard
        """The shard for whose owner the sender takes this runner."""

    @property
    def _reply_epoch(self) -> int:
        """The epoch of the run, where the sender can compare it; 0: it has the entity in another shard, or may have."""
        cell = self.cell
        return self.epoch if cell is None or cell.shard.id == self.named else 0

    @property
    def _may_reply(self) -> bool:
        """Whether what is replied counts: another runner says it, or this one can prove its ownership right now."""
        return self.peer is not None or self._inbound.may_reply()

    def on_accepted(self) -> None:
        """Tell the sender of a tell that the message is in a mailbox. From now on it has no deadline."""
        self.deadline = FOREVER
        if self.caller.serving.pop(self.caller_id, None) is self:
            self.caller.link.send(Reply(self.caller_id, self._reply_epoch, b""))

    def on_completed(self, body: bytes) -> None:
        """Send the result, if this process is still sure that it owns the shard.

        The lease may have run out while the handler ran. Then another runner may own the shard, and a result of a
        volatile handler, which no commit has confirmed, could be stale. What was committed durably stands whoever owns
        the shard, and requests that any runner may answer do not depend on ownership at all.
        """
        if self.caller.serving.pop(self.caller_id, None) is self:
            if self.delivery is not None or self.kind in ANY_RUNNER or self._may_reply:
                self.caller.link.send(Reply(self.caller_id, self._reply_epoch, body))
            else:
                self._inbound.fail(self.caller, self.caller_id, self._reply_epoch, _stale(self))

    def on_failed(self, error: ActorhubError) -> None:
        """Send the error. If it is a tell that was accepted before, nobody waits for it: count it instead."""
        if self.caller.serving.pop(self.caller_id, None) is self:
            self._inbound.fail(self.caller, self.caller_id, self._reply_epoch, error)
        elif self.kind == TELL:
            self._inbound.on_dropped(self, error)

    def on_items(self, bodies: Sequence[bytes]) -> None:
        """Send items of a stream, as long as this process is sure that it owns the shard."""
        if self._may_reply:
            self.caller.link.send(Chunk(self.caller_id, self._reply_epoch, list(bodies)))


class Inbound:
    """Turns the requests of peers into messages for the host."""

    def __init__(
        self,
        *,
        host: Host,
        router: Router,
        lease: Lease,
        clock: Clock,
        limits: Limits,
        is_coming: Callable[[ShardId], bool],
        serve: Callable[[Message], None],
        on_dropped: Callable[[Message, ActorhubError], None],
    ) -> None:
        """Prepare.

        Args:
            host: Runs the messages.
            router: Routes messages whose shard this process does not own.
            lease: Volatile results are sent only while it lasts.
            clock: Deadlines are in its monotonic seconds.
            limits: Of messages.
            is_coming: Returns whether this process is about to own a shard.
            serve: Serves requests that any runner can answer.
            on_dropped: Told of a tell that failed after it was accepted.
        """
        self._host = host
        self._router = router
        self._lease = lease
        self._monotonic = clock.monotonic
        self._limits = limits
        self._is_coming = is_coming
        self._serve = serve
        self.on_dropped = on_dropped

    def may_reply(self) -> bool:
        """Whether this process can prove its ownership right now, so that its replies count."""
        return self._lease.is_fresh()

    def on_request(self, peer: Peer, request: Request) -> None:
        """Start a call, queue it, give it back or refuse it."""
        if request.kind > BROADCAST:
            self._on_other(peer, request)
            return
        try:
            spec = self._check(peer, request)
        except ActorhubError as error:
            if request.kind == ASK and request.durable is not None and request.durable.is_stored:
                self._on_about_message(peer, request)  # It waits for a reply, whichever release has the handler.
            else:
                self.fail(peer, request.id, 0, error)
            return
        if request.kind == BROADCAST:
            self._on_broadcast(peer, request, spec)
            return
        message = RemoteMessage(self, peer, request, spec)
        if request.timeout_ms:
            message.deadline = self._monotonic() + request.timeout_ms / 1000
        # In each branch the call is in `serving` before it is handed on, because it may be answered before that
        # returns.
        cell = self._host.types[spec.entity_type].cells.get(request.entity_id)
        if cell is not None and message.delivery is None:
            peer.serving[request.id] = message
            self._host.scheduler.enqueue(cell, message)
            return
        try:
            self._host.types[spec.entity_type].spec.check_id(request.entity_id, self._limits.max_entity_id_bytes)
            if message.delivery is not None:
                _check_storable(message, message.delivery)
        except MalformedMessage as error:
            self.fail(peer, request.id, 0, error)
        else:
            self._take(peer, message)

    def _take(self, peer: Peer, message: RemoteMessage) -> None:
        """Take a message for an entity that is not resident, or one that is or will be stored."""
        is_wake = message.delivery is not None and message.delivery.is_wake
        if is_wake:
            message.shard_id = message.named  # What it is about is there, wherever this release has the entity.
        try:
            shard_id = self._router.sharding.shard_of_target(message)
        except ActorhubError as error:
            self.fail(peer, message.caller_id, 0, error)
            return
        peer.serving[message.caller_id] = message
        shard = self._host.shards.get(shard_id)
        if shard is None and message.named is not None and peer.is_runner and not message.spec.singleton:
            # Another release has the entity in another shard, and this runner owns that: somebody must serve it.
            shard = self._host.shards.get(message.named)
            message.shard_id = shard_id if shard is None else shard.id
        if message.delivery is not None and message.delivery.is_deposit and not is_wake:
            self._router.deposits.deposit(message)
        elif shard is None and message.named != shard_id and message.hops < MAX_HOPS:
            # The caller has the entity in another shard, or may have, and would only send it here again.
            message.hops += 1
            self._router.route(message)
        elif shard is None:
            # The caller's routing table is out of date, or this process has let go of the shard a moment ago.
            self.give_back(message)
        elif message.delivery is not None:
            self._host.delivery.accept(message, shard)
        else:
            self._host.submit(message, shard)

    def give_back(self, message: Message) -> None:
        """Pass on a message that did not run here and whose shard this process does not own.

        A peer's call goes back to the peer, which knows better whom to ask next. It is kept if this process is about to
        own the shard: the peer was probably told so by the former owner, and would only send it here again.
        """
        if isinstance(message, RemoteMessage) and message.caller.serving.get(message.caller_id) is message:
            shard = self._router.sharding.shard_of_target(message)
            if self._is_coming(shard):
                self._router.route(message)
                return
            del message.caller.serving[message.caller_id]
            message.phase = DONE
            message.caller.link.send(NotOwner(message.caller_id, self._hint(shard)))
        elif self.may_reply():
            self._router.route(message)
        else:
            # The lease has run out and the watchdog has not fenced this process yet, so the host still has the shard. A
            # message that was routed now would go to its cell, be refused there and come back here, without ever
            # letting the event loop reach the watchdog.
            self._router.wait_for_owner(message)

    def on_control(self, peer: Peer, envelope: Credit | Cancel) -> None:
        """Handle a caller that takes more items of a stream, or that no longer waits."""
        if isinstance(envelope, Cancel):
            self._on_cancel(peer, envelope)
            return
        message = peer.serving.get(envelope.id)
        if message is not None and message.producer is not None:
            message.producer.grant(envelope.count)

    def _on_cancel(self, peer: Peer, cancel: Cancel) -> None:
        message = peer.serving.get(cancel.id)
        if message is None:
            return
        # A caller whose deadline has passed waits a moment longer, to learn whether the handler started. One that went
        # away gets no answer.
        if not cancel.timed_out:
            del peer.serving[cancel.id]
        # A message that waits in the router has no run whose end would answer the caller, so it is answered here.
        waited = message.phase in (NEW, PARKED)
        text = f"{message.what}: the caller {'ran out of time' if cancel.timed_out else 'went away'}"
        if cancel.timed_out:
            text += deadlock_of(message, self._host.types)
        error = CallTimeout(text, possibly_executed=message.was_sent_before)
        self._router.withdraw(message, error)
        if waited:
            message.on_failed(error)

    def on_link_lost(self, peer: Peer) -> None:
        """Cancel what the peer asked for, because nobody can be answered. What it told goes on.

        The table is replaced first: cancelling answers some of the calls, and those answers must find nothing there.
        """
        serving, peer.serving = peer.serving, {}
        for message in serving.values():
            if message.kind != TELL:
                self._router.withdraw(message, CallTimeout(f"{message.what}: the caller's link broke"))

    def fail(self, peer: Peer, request_id: int, epoch: int, error: ActorhubError) -> None:
        """Answer a request with an error."""
        peer.link.send(Failure(request_id, epoch, encode_error(error, self._limits.max_message_bytes)))

    def _unknown_type(self, name: str) -> UnknownEntityType:
        known = ", ".join(sorted(self._host.types)) or "none"
        return UnknownEntityType(f"this runner does not host entity type {name!r}: it hosts {known}")

    def _check(self, peer: Peer, request: Request) -> HandlerSpec:
        hosted = self._host.types.get(request.entity_type)
        if hosted is None:
            raise self._unknown_type(request.entity_type)
        spec = hosted.spec.handler(request.handler)
        if spec.stream != (request.kind == STREAM):
            text = "is a stream: consume it" if spec.stream else "is not a stream: ask or tell it"
            raise MalformedMessage(f"{request.entity_type}.{request.handler} {text}")
        if len(request.body) > self._limits.max_message_bytes:
            raise MessageTooLarge(
                f"{request.entity_type}.{request.handler}: arguments of {len(request.body)} bytes, "
                f"the limit is {self._limits.max_message_bytes}"
            )
        if len(peer.serving) >= MAX_IN_FLIGHT:
            raise _too_many(peer)
        if spec.durable != (request.durable is not None):
            spec = self._as_declared_here(request, spec)
        if request.chain:
            check_chain(request.chain, f"{request.entity_type}/{request.entity_id}", spec, self._limits.max_call_depth)
        return spec

    def _as_declared_here(self, request: Request, spec: HandlerSpec) -> HandlerSpec:
        """Have a call of another release served as this one declares its handler; return what it runs as.

        What its caller wants stored may be stored already, so it is run as a stored message although the handler is no
        longer durable. A call of a handler that has become durable is stored, under the key that its arguments bring.

        Raises:
            MalformedMessage: it cannot be stored, because it is a broadcast, or its arguments do not fit.
        """
        what = f"{request.entity_type}.{request.handler}"
        if request.durable is not None:
            return self._host.delivery.handlers.find(request.entity_type, request.handler) or spec
        if spec.stream:
            return spec
        if request.kind == BROADCAST:
            raise MalformedMessage(
                f"{what} is durable in the release of this runner, and a broadcast is not stored: tell each entity"
            )
        request.durable = _durable(spec, request.body)
        request.message_id = request.message_id or self._host.new_id()
        return spec

    def _on_other(self, peer: Peer, request: Request) -> None:
        """Serve a request that calls no handler."""
        if request.kind in ABOUT_MESSAGES:
            self._on_about_message(peer, request)
        elif request.kind not in ANY_RUNNER:
            text = f"this runner knows no request of kind {request.kind}: run the same release on both sides"
            self.fail(peer, request.id, 0, MalformedMessage(text))
        elif len(peer.serving) >= MAX_IN_FLIGHT:
            self.fail(peer, request.id, 0, _too_many(peer))
        else:
            message = RemoteMessage(self, peer, request, _SERVED)
            peer.serving[request.id] = message
            self._serve(message)

    def _on_about_message(self, peer: Peer, request: Request) -> None:
        """Take a request about a stored message. This release need not have its handler, nor its entity type."""
        if len(peer.serving) >= MAX_IN_FLIGHT:
            self.fail(peer, request.id, 0, _too_many(peer))
            return
        known = self._host.delivery.handlers.find(request.entity_type, request.handler)
        message = RemoteMessage(self, peer, request, known or operation_spec(request.entity_type, request.handler))
        if HOME in request.headers and peer.is_runner:
            peer.serving[request.id] = message
            self._host.homes.on_question(message, partial(self._is_elsewhere, message))
            return
        if request.timeout_ms:
            message.deadline = self._monotonic() + request.timeout_ms / 1000
        try:
            check_message_id(request.message_id)
            message.shard_id = shard_in(request.body)
            if message.shard_id is None and request.entity_type not in self._host.types:
                raise self._unknown_type(request.entity_type)
        except ActorhubError as error:
            self.fail(peer, request.id, 0, error)
        else:
            self._take(peer, message)

    def _is_elsewhere(self, message: RemoteMessage, place: ShardId) -> None:
        """Answer a question about an entity's home: this runner has the entity in that shard."""
        if message.caller.serving.pop(message.caller_id, None) is message:
            message.caller.link.send(NotOwner(message.caller_id, self._hint(place)))

    def _hint(self, shard: ShardId) -> ShardOwner:
        """Return who owns a shard, as far as is known here. The caller may have sent the message to another shard."""
        return self._router.table.owner(shard) or ShardOwner(shard, RunnerAddress("", ""), 0)

    def _on_broadcast(self, peer: Peer, request: Request, spec: HandlerSpec) -> None:
        count = self.broadcast_here(spec, request.body, request.message_id)
        peer.link.send(Reply(request.id, 0, msgspec.msgpack.encode(count)))

    def broadcast_here(self, spec: HandlerSpec, body: bytes, message_id: int) -> int:
        """Tell every resident entity of the type; return how many there are."""
        cells = list(self._host.types[spec.entity_type].cells.values())
        for cell in cells:
            message = Detached(spec, cell.entity_id, self)
            message.body = body
            message.message_id = message_id
            self._host.scheduler.enqueue(cell, message)
        return len(cells)


class Detached(Message):
    """A tell whose sender waits for nothing. Its error is logged and counted."""

    __slots__ = ("_inbound",)

    def __init__(self, spec: HandlerSpec, entity_id: str, inbound: Inbound) -> None:
        super().__init__(spec, entity_id, TELL)
        self._inbound = inbound

    def on_completed(self, body: bytes) -> None:
        """Nobody waits for it."""

    def on_failed(self, error: ActorhubError) -> None:
        """Log and count the error."""
        self._inbound.on_dropped(self, error)


def check_chain(chain: Sequence[str], address: str, spec: HandlerSpec, max_depth: int) -> None:
    """Refuse a call that would wait for itself.

    Args:
        chain: `type/id` of the entities that wait for the call, outermost first.
        address: `type/id` of the entity that is called.
        spec: The handler that is called.
        max_depth: How long the chain may be.

    Raises:
        CallCycle: The entity is in the chain and the handler is not reentrant, or the chain is too long.
    """
    if address in chain and not spec.reentrant:
        raise CallCycle(_path(chain, address))
    if len(chain) > max_depth:
        path = _path(chain, address)
        raise CallCycle(path, f"the call chain is deeper than {max_depth}: {' -> '.join(path)}")


def shard_in(body: bytes) -> ShardId | None:
    """Return the shard that a request about a stored message names; `None` if its sender's release does not name it.

    Raises:
        ActorhubError: it names something else.
    """
    return ShardId.parse(body.decode(errors="replace")) if body else None


def _check_storable(message: Message, delivery: Durable) -> None:
    """Check what a peer wants to have stored, which nothing in its encoding limits.

    Raises:
        MalformedMessage: no message can have this.
    """
    if check_message_id(message.message_id) == 0:
        raise MalformedMessage(f"{message.what}: a durable message needs an id other than 0")
    if not (0 <= delivery.deliver_at < _LATEST_DUE and 0 <= delivery.delay < _LATEST_DUE):
        raise MalformedMessage(
            f"{message.what}: deliver_at={delivery.deliver_at} or delay={delivery.delay} is not a time in seconds"
        )
    if delivery.key is not None and "\0" in delivery.key:
        raise MalformedMessage(f"{message.what}: its key contains a NUL, which cannot be stored: remove it")


def _durable(spec: HandlerSpec, body: bytes) -> Durable:
    """Return what a caller of this release would have sent with these arguments.

    Raises:
        MalformedMessage: they do not fit, or their key is not valid.
    """
    args = spec.decode_arguments(body)
    try:
        key = primary_key_of(args)
    except (SystemExit, KeyboardInterrupt, asyncio.CancelledError) as exc:
        # From code of the user, and an order to whoever runs it: here that would be the link.
        raise MalformedMessage(f"{spec.entity_type}.{spec.name}: primary_key() raised {summary_of(exc)}") from exc
    return Durable() if key is None else Durable(key=key, payload_hash=payload_hash(args))


def _path(chain: Sequence[str], address: str) -> tuple[str, ...]:
    return (*(link.removeprefix(LENDS) for link in chain), address)


def _too_many(peer: Peer) -> MailboxFull:
    return MailboxFull(f"{len(peer.serving)} calls of this caller are in progress: wait for some of them")


def _stale(message: Message) -> RunnerUnavailable:
    return RunnerUnavailable(
        f"{message.address}: its runner could not prove its ownership when the reply was ready",
        possibly_executed=True,
    )
