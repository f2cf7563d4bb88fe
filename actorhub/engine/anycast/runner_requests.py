"""Requests that any runner answers about itself, and outcomes of deferred values."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from actorhub.core.address import RunnerAddress, ShardOwner
from actorhub.core.codec import decode_answer
from actorhub.core.envelope import COMPLETE, COMPLETED, DIAL, ECHO, HEALTH, LET_GO, POLL_STORAGE
from actorhub.core.errors import ActorhubError, MalformedMessage, RunnerNotRegistered
from actorhub.core.logger import get_logger
from actorhub.engine.anycast.ask import AnycastRequest, ask, ask_any
from actorhub.engine.host import Host
from actorhub.engine.model.records import SENT, Message
from actorhub.engine.model.spec import operation_spec
from actorhub.engine.node import Node
from actorhub.engine.routing.inbound import RemoteMessage
from actorhub.engine.routing.peers import Peer
from actorhub.engine.runs.deferred import completion
from actorhub.engine.singletons.health import RunnerHealth, UnreachedRunner
from actorhub.engine.singletons.leader import LOSS_LIMIT
from actorhub.storage.checkpoint_ports import CheckpointStore, CompletionKind

COMPLETE_SPEC: Final = operation_spec("deferred value", "complete")
HEALTH_SPEC: Final = operation_spec("runner", "health")
_COMPLETED_SPEC: Final = operation_spec("deferred value", "completed")

_log: Final = get_logger("actorhub.requests")

_HEALTH_PATIENCE: Final = 1.0
"""Seconds that a runner has to report its health."""

encode: Final = msgspec.msgpack.Encoder().encode


class DeferredOutcome(msgspec.Struct, frozen=True, array_like=True):
    """The outcome of a deferred value, as it is sent between processes. A wire format: append fields only."""

    token: str
    kind: CompletionKind
    data: bytes


_outcome: Final = msgspec.msgpack.Decoder(DeferredOutcome).decode
_tenures: Final = msgspec.msgpack.Decoder(list[ShardOwner]).decode


class CompletionNotice(Message):
    """Tells a runner that a deferred value was completed.

    Nobody waits for the answer. A runner that the notice does not reach finds the outcome when it next polls the store.
    """

    __slots__ = ()

    def __init__(self, token_hash: bytes) -> None:
        super().__init__(_COMPLETED_SPEC, "", COMPLETED)
        self.body = token_hash

    def on_completed(self, body: bytes) -> None:
        """Do nothing: the runner knows."""

    def on_failed(self, error: ActorhubError) -> None:
        """Log that the runner was not reached."""
        _log.debug("a runner was not told that a deferred value was completed: %s", error)


class RunnerRequests:
    """Answers them on a runner."""

    def __init__(
        self,
        *,
        node: Node,
        store: CheckpointStore,
        host: Host,
        health: Callable[[], RunnerHealth],
        let_go: Callable[[Sequence[ShardOwner], str], Awaitable[bool]],
        is_member: Callable[[RunnerAddress], bool],
    ) -> None:
        self._node = node
        self._is_member = is_member
        self._store = store
        self._host = host
        self._health = health
        self._let_go = let_go

    def serve(self, caller: Message) -> None:
        """Answer the request in the caller's body."""
        caller.phase = SENT
        if caller.kind == HEALTH:
            caller.complete_waiting(encode(self._health()))
        elif caller.kind == ECHO:
            caller.complete_waiting(b"")
        elif caller.kind == DIAL:
            _ = self._node.supervisor.spawn(self._serve_dial(caller), "connect to a runner that asks for it")
        elif caller.kind == POLL_STORAGE:
            self._host.poll()
            caller.complete_waiting(b"")
        elif caller.kind == COMPLETED:
            self._host.deferrals.on_completed([caller.body])
            caller.complete_waiting(b"")
        elif caller.kind == LET_GO:
            _ = self._node.supervisor.spawn(self._serve_let_go(caller), "let go of shards")
        else:
            _ = self._node.supervisor.spawn(self._serve_completion(caller), "complete a deferred value")

    async def complete(self, outcome: DeferredOutcome) -> bool:
        """Store an outcome unless there is one already; return whether the stored outcome is this one.

        The outcome is stored before any runner is told, so that a run that is woken finds it. All runners are told,
        because the run that waits may be on any of them, and may move.

        Raises:
            MalformedMessage: This cluster did not make the token.
            PersistenceError: The store failed. Repeating the call is harmless.
        """
        made = completion(outcome.token, self._host.deferrals.secret, outcome.kind, outcome.data)
        is_first = await self._store.complete(made)
        self._host.deferrals.on_completed([made.token_hash])
        for peer in self._node.peers.runners():
            self._node.router.send_to(CompletionNotice(made.token_hash), peer)
        return is_first

    async def _complete(self, body: bytes) -> bool:
        try:
            outcome = _outcome(body)
        except msgspec.MsgspecError as exc:
            raise MalformedMessage(f"outcome of a deferred value: {exc}") from exc
        return await self.complete(outcome)

    async def _serve_let_go(self, caller: Message) -> None:
        """Let go of tenures, and answer once the hooks of singletons that were led here have run.

        The peer begins when it has the answer: its `on_become_leader` comes after our `on_lose_leadership`.
        """
        assert isinstance(caller, RemoteMessage)
        if not caller.caller.is_runner:
            caller.fail_waiting(MalformedMessage("only a runner takes shards over"))
            return
        try:
            tenures = _tenures(caller.body)
        except msgspec.MsgspecError as exc:
            caller.fail_waiting(MalformedMessage(f"tenures to let go of: {exc}"))
            return
        has_let_go = await self._let_go(tenures, caller.caller.runner.incarnation)
        if has_let_go:
            await self._host.singletons.until_ended([tenure.shard for tenure in tenures], LOSS_LIMIT)
        caller.complete_waiting(encode(has_let_go))

    async def _serve_dial(self, caller: Message) -> None:
        assert isinstance(caller, RemoteMessage)
        runner = caller.caller.runner
        if self._is_member(runner):
            caller.complete_waiting((await self._node.connector.dial(runner)).encode())
        else:
            # Nobody has this process connect to wherever it likes.
            caller.fail_waiting(RunnerNotRegistered(f"the runner at {runner.address} is not in the runner table yet"))

    async def _serve_completion(self, caller: Message) -> None:
        try:
            body = encode(await self._complete(caller.body))
        except ActorhubError as error:
            caller.fail_waiting(error)
        else:
            caller.complete_waiting(body)


async def ask_to_complete(node: Node, outcome: DeferredOutcome) -> bool:
    """Have some runner store an outcome; return whether the stored outcome is this one."""
    body = await ask_any(node, COMPLETE_SPEC, COMPLETE, encode(outcome))
    return decode_answer(body, bool)


async def ask_health(node: Node) -> list[RunnerHealth]:
    """Return the health of each linked runner that answers within a second, and of those that cannot be reached."""
    requests = [(AnycastRequest(HEALTH_SPEC, HEALTH, b""), peer) for peer in node.peers.runners()]
    for request, _ in requests:
        request.deadline = node.clock.monotonic() + _HEALTH_PATIENCE
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(_answer(node, request, peer)) for request, peer in requests]
    missing = [unreached for unreached in node.connector.unreached.reported() if not unreached.via]
    return [health for task in asked if (health := task.result()) is not None] + list(map(_not_reached, missing))


def _not_reached(runner: UnreachedRunner) -> RunnerHealth:
    since = datetime.fromtimestamp(runner.since, UTC).isoformat(" ", "seconds")
    return RunnerHealth(
        serving=False,
        reason=f"this client has not reached it since {since}, directly or through another runner: {runner.reason}",
        runner=runner.address,
        incarnation=runner.incarnation,
        version="",
        shards_owned=0,
        live_runners=0,
    )


async def _answer(node: Node, request: AnycastRequest, peer: Peer) -> RunnerHealth | None:
    try:
        health = decode_answer(await ask(node, request, peer), RunnerHealth)
    except ActorhubError as error:
        _log.info("the runner at %s did not report its health: %s", peer.runner.address, error)
        return None
    return health if peer.via is None else msgspec.structs.replace(health, via=peer.via.runner.address)
