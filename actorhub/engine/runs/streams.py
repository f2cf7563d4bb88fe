"""Streams: handlers that are async generators.

Each step of the generator, from one `yield` to the next, is one turn of its entity and one commit. Between steps, and
while the producer waits for credit, others get theirs. Items made within one tick of the event loop leave together.

A stream that ends while its generator is at a `yield` has a clean-up to do: its `finally` blocks and the like. That is
one more step, with a turn and a commit of its own, after the consumer was answered: nobody waits for it, so it can wait
for its turn. A step that is cut short has its clean-up within it, and is undone as a whole.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from actorhub.core.codec import check_size, copy_of
from actorhub.core.errors import ActorhubError, EntityError, MalformedMessage, RunnerUnavailable
from actorhub.core.logger import get_logger
from actorhub.core.texts import is_of, only_error_in
from actorhub.engine.model.records import (
    ACTIVE,
    CLOSING,
    DEAD,
    DONE,
    FOREVER,
    NEW,
    RUNNING,
    Cell,
    Message,
    Returning,
)
from actorhub.engine.model.run import Run, running
from actorhub.engine.runs.completion import Completion, Rebuilder, take_over_turn
from actorhub.engine.runs.driving import after_close
from actorhub.engine.runs.failures import handler_failed, log_failure, takes_outcome
from actorhub.engine.runs.interleaving import release, wait_for_turn
from actorhub.engine.runs.nesting import Nesting, end_nesting
from actorhub.engine.runs.saving import Saving
from actorhub.engine.runs.scheduler import Scheduler
from actorhub.engine.runs.stream_steps import StreamSteps
from actorhub.engine.supervision import Supervisor

_log: Final = get_logger("actorhub.streams")

STREAM_WINDOW_BYTES: Final = 4 * 1024 * 1024
"""Bytes of items that may be under way to a consumer before the producer waits."""

_CHUNK_BYTES: Final = 256 * 1024
"""Bytes of items after which they leave at once, without waiting for the end of the tick."""


class Streams:
    """Starts producers and gives them their turns."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        completion: Completion,
        saving: Saving,
        supervisor: Supervisor,
        rebuilder: Rebuilder,
        max_message_bytes: int,
        take_back: Callable[[Message], None],
    ) -> None:
        """Prepare.

        Args:
            scheduler: Gives turns, and takes them back.
            completion: Undoes what a step changed.
            saving: Commits a step.
            supervisor: Owns the producers' tasks.
            rebuilder: Ends the activation of a step that is stuck.
            max_message_bytes: Limit of an item.
            take_back: Takes a message that did not start, for the next activation to run.
        """
        self.scheduler = scheduler
        self.completion = completion
        self.saving = saving
        self.rebuilder = rebuilder
        self.max_message_bytes = max_message_bytes
        self._supervisor = supervisor
        self._take_back = take_back

    def take_turn(self, message: Message) -> None:
        """Start the stream of `message`, which has a turn; or give the turn to its producer."""
        if message.producer is not None:
            message.producer.on_turn_granted()
            return
        cell = message.cell
        assert cell is not None
        if cell.phase != ACTIVE and not (message.is_nested or self.scheduler.draining.admits(message, cell.shard)):
            # The cell closed since the message got its turn. `close` cancels streams, but does not know of one that has
            # not started: so it must not start here, where it would hold up the passivation, but at the next
            # activation.
            message.phase = NEW
            self.scheduler.end_turn(message)
            self._take_back(message)
            return
        if message.skip and not message.spec.durable:
            what = f"{message.what}: its runner was lost, and in the release of the next one it is not durable"
            error = MalformedMessage(f"{what}: it cannot go on after the items that arrived", possibly_executed=True)
            self.scheduler.refuse(message, error)
            return
        producer = message.producer = StreamProducer(self, Run(message, cell))
        producer.task = message.task = self._supervisor.spawn(producer.run(), "stream")
        producer.task.add_done_callback(producer.on_task_done)
        if cell.streams is None:
            cell.streams = set()
        cell.streams.add(producer)


class _CleanUp(Message):
    """What stands where the call was while the generator is closed: that is answered, or runs again elsewhere."""

    __slots__ = ()

    def __init__(self, call: Message) -> None:
        super().__init__(call.spec, call.entity_id, call.kind)
        self.phase = RUNNING
        self.cell, self.epoch, self.producer = call.cell, call.epoch, call.producer
        self.message_id, self.headers = call.message_id, call.headers
        # Nobody waits for it, so its `chain` is empty.


class _Interrupted(Exception):
    """The activation ends, so that the stream cannot go on."""


class StreamProducer:
    """Runs one generator, as far as the consumer's credit goes."""

    def __init__(self, streams: Streams, run: Run) -> None:
        message = run.message
        self._loop = asyncio.get_running_loop()
        self._scheduler = streams.scheduler
        self._completion = streams.completion
        self._saving = streams.saving
        self._rebuilder = streams.rebuilder
        self._message = message
        """The call; from its end on, what stands for it."""
        self._run = run
        self._cell = run.cell
        self._max_bytes = streams.max_message_bytes
        self.task: asyncio.Task[None] | None = None
        self._steps: StreamSteps | None = None
        self._credit = message.credit
        self._under_way: deque[int] = deque()
        """Sizes of the items that the consumer has not reported as taken, oldest first."""
        self._under_way_bytes = 0
        self._bodies: list[bytes] = []
        self._bodies_bytes = 0
        self._wake: asyncio.Future[None] | None = None
        self._returning: set[Returning] = set()
        """That the clean-up waits for its turn."""
        self.has_turn = True
        self._is_stopped = False
        self._is_answered = False
        self._has_left = False
        self._ran = False
        self._since_pause = 0
        self._to_skip = message.skip
        """Items that the consumer has from an earlier run."""

    def grant(self, count: int) -> None:
        """Let `count` more items leave, because the consumer took as many."""
        self._credit += max(0, count)
        for _ in range(min(count, len(self._under_way))):
            self._under_way_bytes -= self._under_way.popleft()
        if self._may_send:
            self._wake_up()

    @property
    def _may_send(self) -> bool:
        return self._credit > 0 and self._under_way_bytes < STREAM_WINDOW_BYTES

    def on_turn_granted(self) -> None:
        """Go on: the entity is this stream's for one more step."""
        self.has_turn = True
        self._wake_up()

    def stop(self) -> None:
        """The activation ends, or has ended: cut the stream short, and wait for no turn that a dead cell cannot give.

        A clean-up goes on, and is not cancelled a second time.
        """
        if self._is_answered:
            if self._cell.phase == DEAD:
                release(self._cell, self._returning)
        elif self.task is not None and not self.task.cancelling() and self.task is not asyncio.current_task():
            # If it is this stream that led to the end of the activation, its task ends with the error.
            self._is_stopped = True
            self.task.cancel()
            self.expect_end(self._cancellation())

    def expect_end(self, error: ActorhubError) -> None:
        """Give a step up that goes on although it was cancelled."""
        if self._steps is not None and not self._is_answered:
            self._steps.expect_end(error)

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def run(self) -> None:
        """Produce until the generator ends, fails or is cancelled; then reply, and clean up."""
        try:
            self._end(await self._outcome())
            if self._steps is not None and self._steps.is_at_yield:
                await self._clean_up(self._steps)
        except GeneratorExit:
            after_close(self._loop, self._on_closed)
            raise

    async def _outcome(self) -> ActorhubError | None:
        """Produce, and return the error that ended the stream."""
        try:
            await self._produce()
        except _Interrupted:
            return self._cancellation()
        except GeneratorExit:
            raise  # dealt with in `run`
        except BaseException as exc:  # noqa: BLE001 - user code: whatever it raises is the reply
            return self._as_reply(exc)
        return None

    def _as_reply(self, error: BaseException) -> ActorhubError:
        message, only = self._message, only_error_in(error)
        is_cut = message.abandoned_for is not None or self._is_stopped or self._cell.phase == DEAD
        if is_of(only, asyncio.CancelledError) and is_cut:
            # Else the generator raised it, or cancelled its own task, and would again at the next runner.
            return self._cancellation()
        if is_of(only, EntityError):
            return copy_of(only, self._max_bytes)
        if is_of(only, ActorhubError) and takes_outcome(only, ran=self._ran):
            return only
        return message.abandoned_for or self._completion.failure_of(message, error)

    def on_task_done(self, task: "asyncio.Task[None]") -> None:
        """End the stream of a task that was cancelled before its first step, which `run` then never saw."""
        self._end(self._cancellation())

    def _cancellation(self) -> ActorhubError:
        if (error := self._message.abandoned_for) is not None:
            error.possibly_executed = error.possibly_executed or self._ran
            return error
        return RunnerUnavailable(
            f"{self._message.address}: the stream ended because its entity moved or its runner is leaving",
            possibly_executed=True,
        )

    def _end(self, error: ActorhubError | None) -> None:
        """Answer the consumer. The turn of a generator that is to be closed is kept for that."""
        if self._is_answered:
            return
        self._is_answered = True
        message = self._message
        self._flush()
        if error is not None:
            self._take_back()
        # All of this comes before the reply: a durable stream that goes on elsewhere is the same message.
        message.phase = DONE
        if not self.has_turn:
            self._withdraw()
        if self._steps is None or not self._steps.is_at_yield:
            self._leave()
        else:
            if self.has_turn and (message.is_nested or self._cell.phase == DEAD):
                # A turn within another's is none of its own. It can wait for one now, since nobody waits for it.
                self.has_turn = False
                self._scheduler.end_turn(message)
            # To those who kept `current()` it is the same run, and not over yet.
            self._message = self._run.message = _CleanUp(message)
        if error is None:
            message.on_completed(b"")
        else:
            message.on_failed(error)
        if self._ran and self._scheduler.observer is not None:
            self._scheduler.observer.ended(message, error)

    def _withdraw(self) -> None:
        """Leave the mailbox, or give back the turn that is on the way."""
        self._scheduler.dequeue(self._message)
        if self._message in self._scheduler.ready:
            self._scheduler.ready.remove(self._message)
            self._scheduler.end_turn(self._message)

    def _leave(self) -> None:
        """Be over: whatever the generator still does does not count."""
        if self._has_left:
            return
        self._has_left = True
        cell = self._cell
        self._run.is_over = True
        self._run.outbox = None
        if cell.streams is not None:
            cell.streams.discard(self)
        if self.has_turn:
            self.has_turn = False
            self._scheduler.end_turn(self._message)
        elif cell.phase == CLOSING:
            self._scheduler.passivate_if_idle(cell)

    async def _clean_up(self, steps: StreamSteps) -> None:
        """Close the generator: a run of its own, with a turn. In a dead cell there are no turns, and no commits."""
        task = asyncio.current_task()
        assert task is not None
        while task.cancelling():
            # What cut the stream short is over: a TaskGroup or a timeout in the clean-up must not take it for its own.
            task.uncancel()
        try:
            if not self.has_turn and self._cell.phase != DEAD:
                # A cancellation comes here only when the process leaves, with whoever has the turn.
                self.has_turn, _ = await wait_for_turn(self._cell, self._message.spec, self._returning)
            await self._with_turn(steps.close())
            if self.has_turn and self._cell.phase != DEAD:
                await self._save()
        except GeneratorExit:
            raise  # dealt with in `run`
        except BaseException as exc:  # noqa: BLE001 - user code: nobody waits for it, so it is logged
            if not (is_of(exc, asyncio.CancelledError) and task.cancelling()):
                what = f"{self._message.what}({self._message.entity_id}): the clean-up failed, and is not committed"
                log_failure(_log, what, exc, handler_failed(exc))
            self._take_back()
        self._leave()

    def _on_stuck(self, error: ActorhubError) -> None:
        """Go on without a step that does not end: a new activation serves the entity."""
        self._rebuilder.discard(self._cell)
        self._end(error)
        self._leave()

    def _on_closed(self) -> None:
        """Go on without a task whose coroutine somebody has closed."""
        closed = RuntimeError("somebody closed the coroutine of the stream's task")
        self._on_stuck(self._completion.failure_of(self._message, closed))
        assert self.task is not None
        self.task.cancel()

    def _take_back(self) -> None:
        if self.has_turn:
            self._completion.take_back(self._run)
        self._run.outbox = None
        end_nesting(self._run)

    async def _produce(self) -> None:
        message, cell = self._message, self._cell
        spec = message.spec
        args = message.args if message.args is not None else spec.decode_arguments(message.body)
        self._ran = True
        context = self._scheduler.context.copy()
        context.run(running.set, self._run)
        if self._scheduler.observer is not None:
            self._scheduler.observer.started(message, context)
        message.on_items(())
        message.deadline = FOREVER
        steps = self._steps = StreamSteps(spec.function(cell.instance, *args), context, message, self._on_stuck)
        while True:
            await self._await_turn_and_credit(cell)
            try:
                item = await self._with_turn(steps.advance())
            except StopAsyncIteration:
                await self._save()
                return
            # Before the commit: a step whose item cannot be sent has failed, and is undone.
            body, _ = spec.result.encode_fitting(item)
            check_size(body, self._max_bytes, f"{message.what}: item")
            await self._save()
            if self._to_skip > 0:
                self._to_skip -= 1
            else:
                self._emit(body)

    async def _with_turn(self, step: Coroutine[Any, Any, Any]) -> Any:
        """Run a step, within which those can run who call back; it ends after them."""
        run, message = self._run, self._message
        if message.is_nested:
            run.nesting = Nesting(message, self._cell, self._scheduler.holders.get(self._cell))
        self._scheduler.hold(run)
        try:
            return await step
        finally:
            if run.parts and self._cell.phase != DEAD:
                run.quiet = self._loop.create_future()
                await run.quiet
            self._scheduler.release(run)

    def _emit(self, body: bytes) -> None:
        size = len(body)
        if not self._bodies:
            self._loop.call_soon(self._flush)
        elif self._bodies_bytes + size > _CHUNK_BYTES:
            self._flush()
            self._loop.call_soon(self._flush)
        self._bodies.append(body)
        self._bodies_bytes += size
        self._under_way.append(size)
        self._under_way_bytes += size
        self._credit -= 1
        self._since_pause += 1

    def _flush(self) -> None:
        bodies, self._bodies = self._bodies, []
        self._bodies_bytes = 0
        if bodies and self._message.phase != DONE:
            self._message.on_items(bodies)

    async def _await_turn_and_credit(self, cell: Cell) -> None:
        """Wait for credit and then for a turn; a producer that needs to wait for neither pauses now and then."""
        is_wanted = cell.queue is not None or cell.returning is not None
        if self._may_send and not is_wanted and self.has_turn and cell.phase == ACTIVE:
            if self._since_pause >= 256:
                self._since_pause = 0
                await asyncio.sleep(0)
            return
        self._since_pause = 0
        # The turn is given back before the wait for credit, so that a slow consumer does not hold up the entity; also
        # when somebody is queued, so that a stream that never waits does not starve the mailbox.
        self._give_turn_back()
        while not self._may_send:
            await self._sleep()
        if not self.has_turn:
            # A closing cell starts nothing that is queued; with nothing running, nobody would wake this.
            is_closing = cell.phase != ACTIVE and not self._scheduler.draining.admits(self._message, cell.shard)
            if cell.phase == DEAD or (is_closing and not cell.load):
                raise _Interrupted
            self._message.waits_for_room = True
            self._scheduler.enqueue(cell, self._message)
            while not self.has_turn:
                await self._sleep()

    async def _sleep(self) -> None:
        self._wake = self._loop.create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _give_turn_back(self) -> None:
        if self.has_turn:
            self.has_turn = False
            self._scheduler.end_turn(self._message)
            self._message.is_nested = False
            self._message.phase = RUNNING

    async def _save(self) -> None:
        """Commit what this step changed and told; its item leaves after that."""
        message, cell = self._message, self._cell
        take_over_turn(message, cell)
        data = None if cell.record is None or message.is_nested else self._completion.changed_state(cell)
        if data is not None and message.spec.readonly:
            raise TypeError(f"{message.what} is readonly and changed the state: remove readonly=True")
        nesting = self._run.nesting
        if nesting is not None and message.is_nested and nesting.outer is not None:
            nesting.join(self._run)
        elif data is not None or self._run.outbox:
            await self._saving.commit_part(self._run, data)
        end_nesting(self._run)
