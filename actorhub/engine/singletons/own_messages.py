"""Messages that nobody sends to a singleton but its own leader: its main loop, and its fire times."""

from datetime import datetime
from typing import Protocol

from actorhub.core.envelope import TELL, Durable
from actorhub.core.errors import ActorhubError, RunnerUnavailable, SingletonErrorReason
from actorhub.engine.model.progress import Progress
from actorhub.engine.model.records import ACTIVE, AwaitedMessage, Cell, Message, RunKind
from actorhub.engine.model.spec import HandlerSpec


class MainLoopEvents(Protocol):
    """What a leader is told about its `run`."""

    def on_main_loop_ended(self, error: ActorhubError | None, *, cut_short: bool = False) -> None:
        """`run` has returned, failed or been cut short."""
        ...

    def on_main_loop_taken_back(self) -> None:
        """`run` could not start."""
        ...

    def state_error(self, reason: SingletonErrorReason, text: str) -> None:
        """Count a failure to load, decode or store the state."""
        ...


class MainLoop(Message):
    """The call of a singleton's `run`. Nobody sent it; its leader is told how it ends."""

    __slots__ = ("leader", "progress")

    run_kind = RunKind.MAIN_LOOP

    def __init__(self, leader: MainLoopEvents, spec: HandlerSpec, cell: Cell, progress: Progress) -> None:
        super().__init__(spec, cell.entity_id)
        self.leader = leader
        self.args = ()
        self.waits_for_room = True
        self.progress = progress

    def on_not_started(self) -> bool:
        """End with the activation. The next activation starts a run of its own."""
        self.leader.on_main_loop_taken_back()
        return True

    def on_completed(self, body: bytes) -> None:
        """Tell the leader that `run` returned."""
        self.leader.on_main_loop_ended(None)

    def on_failed(self, error: ActorhubError) -> None:
        """Tell the leader that `run` failed, or was cut short because its activation ended."""
        is_over = self.cell is not None and self.cell.phase != ACTIVE
        self.leader.on_main_loop_ended(error, cut_short=is_over and isinstance(error, RunnerUnavailable))


class FireTimeTell(AwaitedMessage):
    """The message of a fire time, on its way to the singleton's own mailbox."""

    __slots__ = ()

    def __init__(self, spec: HandlerSpec, entity_id: str, *, message_id: int, at: datetime, delivery: Durable) -> None:
        super().__init__(spec, entity_id, TELL)
        self.message_id = message_id
        self.body = spec.arguments.encode((at,))
        self.delivery = delivery
