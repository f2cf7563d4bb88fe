"""Streams: handlers that are async generators.

Each step of the generator, from one `yield` to the next, is one turn of its entity and one commit. Between steps, and
while the producer waits for credit, others get theirs. Items made within one tick of the event loop leave together.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

from actorhub.core.codec import check_size
from actorhub.core.errors import ActorhubError, EntityError, RunnerUnavailable
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
)
from actorhub.engine.model.run import Run, running
from actorhub.engine.runs.completion import Completion
from actorhub.engine.runs.driving import run_in
from actorhub.engine.runs.saving import Saving
from actorhub.engine.runs.scheduler import Scheduler
from actorhub.engine.supervision import Supervisor

_log: Final = logging.getLogger("actorhub.streams")

STREAM_WINDOW_BYTES: Final = 4 * 1024 * 1024
"""Bytes of items that may be under way to a consumer before the producer waits."""

_CHUNK_BYTES: Final = 256 * 1024
"""Bytes of items after which they leave at once, without waiting for the end of the tick."""
_CLOSE_LIMIT: Final = 5.0
"""Seconds that a generator's clean-up may take."""


class Streams:
    """Starts producers and gives them their turns."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        completion: Completion,
        saving: Saving,
        supervisor: Supervisor,
        max_message_bytes: int,
        take_back: Callable[[Message], None],
    ) -> None:
        """Prepare; `take_back` takes a message that did not start, for the next activation to run."""
        self.scheduler = scheduler
        self.completion = completion
        self.saving = saving
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
        producer = message.producer = StreamProducer(self, Run(message, cell))
        message.task = self._supervisor.spawn(producer.run(), "stream")
        message.task.add_done_callback(producer.on_task_done)
        if cell.streams is None:
            cell.streams = set()
        cell.streams.add(message.task)


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
        self._message = message
        self._run = run
        self._max_bytes = streams.max_message_bytes
        self._credit = message.credit
        self._under_way: deque[int] = deque()
        """Sizes of the items that the consumer has not reported as taken, oldest first."""
        self._under_way_bytes = 0
        self._bodies: list[bytes] = []
        self._bodies_bytes = 0
        self._wake: asyncio.Future[None] | None = None
        self._has_turn = True
        self._is_over = False
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
        if self._is_over:
            # It ended, and left the queue, when its turn was on the way: in the ready list.
            self._scheduler.end_turn(self._message)
            return
        self._has_turn = True
        self._wake_up()

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def run(self) -> None:
        """Produce until the generator ends, fails or is cancelled; then reply."""
        message = self._message
        cell = message.cell
        assert cell is not None
        error: ActorhubError | None = None
        try:
            await self._produce(cell)
        except _Interrupted:
            error = self._cancellation()
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            is_cancelled = task is not None and task.cancelling() > 0
            # Else the generator raised it, and would again at the next runner.
            error = self._cancellation() if is_cancelled else self._completion.failure_of(message, exc)
        except EntityError as exc:
            error = exc
        except ActorhubError as exc:
            exc.possibly_executed = self._ran
            error = exc
        except GeneratorExit:
            raise  # The event loop was closed, and this task with it.
        except BaseException as exc:  # noqa: BLE001 - user code: whatever it raises is the reply
            error = self._completion.failure_of(message, exc)
        self._end(cell, error)

    def on_task_done(self, task: "asyncio.Task[None]") -> None:
        """End the stream of a task that was cancelled before its first step, which `run` then never saw."""
        cell = self._message.cell
        if not self._is_over and cell is not None:
            self._end(cell, self._cancellation())

    def _cancellation(self) -> ActorhubError:
        return self._message.abandoned_for or RunnerUnavailable(
            f"{self._message.address}: the stream ended because its entity moved or its runner is leaving",
            possibly_executed=True,
        )

    def _end(self, cell: Cell, error: ActorhubError | None) -> None:
        message = self._message
        self._is_over = True
        self._flush()
        if cell.streams is not None and message.task is not None:
            cell.streams.discard(message.task)
        message.phase = DONE
        self._run.is_over = True
        self._run.outbox = None
        if error is not None and cell.record is not None and self._has_turn and cell.phase != DEAD:
            self._completion.undo(cell)
        if error is None:
            message.on_completed(b"")
        else:
            message.on_failed(error)
        if self._ran and self._scheduler.observer is not None:
            self._scheduler.observer.ended(message, error)
        if self._has_turn:
            self._scheduler.end_turn(message)
        else:
            self._scheduler.dequeue(message)
            if cell.phase == CLOSING:
                self._scheduler.passivate_if_idle(cell)

    async def _produce(self, cell: Cell) -> None:
        message = self._message
        spec = message.spec
        args = message.args if message.args is not None else spec.decode_arguments(message.body)
        self._ran = True
        context = self._scheduler.context.copy()
        context.run(running.set, self._run)
        if self._scheduler.observer is not None:
            self._scheduler.observer.started(message, context)
        message.on_items(())
        message.deadline = FOREVER
        generator: AsyncGenerator[Any, None] = spec.function(cell.instance, *args)
        try:
            while True:
                await self._await_turn_and_credit(cell)
                try:
                    item = await run_in(context, generator.__anext__())
                except StopAsyncIteration:
                    await self._save(cell)
                    return
                # Before the commit: a step whose item cannot be sent has failed, and is undone.
                body = check_size(spec.result.encode(item), self._max_bytes, f"{message.what}: item")
                await self._save(cell)
                if self._to_skip > 0:
                    self._to_skip -= 1
                else:
                    self._emit(body)
        finally:
            async with asyncio.timeout(_CLOSE_LIMIT):
                await run_in(context, generator.aclose())

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
        if self._may_send and cell.queue is None and self._has_turn and cell.phase == ACTIVE:
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
        if not self._has_turn:
            # A closing cell starts nothing that is queued; with nothing running, nobody would wake this.
            is_closing = cell.phase != ACTIVE and not self._scheduler.draining.admits(self._message, cell.shard)
            if cell.phase == DEAD or (is_closing and not cell.load):
                raise _Interrupted
            self._message.waits_for_room = True
            self._scheduler.enqueue(cell, self._message)
            while not self._has_turn:
                await self._sleep()

    async def _sleep(self) -> None:
        self._wake = self._loop.create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _give_turn_back(self) -> None:
        if self._has_turn:
            self._has_turn = False
            self._scheduler.end_turn(self._message)
            self._message.is_nested = False
            self._message.phase = RUNNING

    async def _save(self, cell: Cell) -> None:
        """Commit what this step changed and told; its item leaves after that."""
        message = self._message
        data = None if cell.record is None or message.is_nested else self._completion.changed_state(cell)
        if data is not None and message.spec.readonly:
            raise TypeError(f"{message.what} is readonly and changed the state: remove readonly=True")
        if data is not None or self._run.outbox:
            await self._saving.commit_part(self._run, data)
