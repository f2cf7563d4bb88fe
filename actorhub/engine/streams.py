"""Streams: handlers that are async generators.

Each step of the generator (from one `yield` to the next) is one turn of its entity; between steps, and while it waits
for credit, others get theirs. Items made within one tick of the event loop leave together.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any, Final

from actorhub.core.codec import check_size
from actorhub.core.errors import ActorhubError, EntityError, MalformedMessage, RunnerUnavailable
from actorhub.engine.cell import ACTIVE, CLOSING, DEAD, EXCLUSIVE, Cell
from actorhub.engine.message import DONE, RUNNING, Message, running
from actorhub.engine.results import Results, handler_failed, roll_back, settled
from actorhub.engine.supervision import Supervisor
from actorhub.engine.turns import Turns, run_in

_log: Final = logging.getLogger("actorhub.streams")

_CLOSE_LIMIT: Final = 5.0
"""Seconds that a generator's clean-up may take after its consumer is gone."""


class Streams:
    """Starts producers and gives them their turns."""

    def __init__(self, turns: Turns, results: Results, supervisor: Supervisor, max_message_bytes: int) -> None:
        self.turns = turns
        self.results = results
        self.max_message_bytes = max_message_bytes
        self._supervisor = supervisor

    def take_turn(self, message: Message) -> None:
        """Begin the stream of `message`, or let its producer go on."""
        producer = message.producer
        if producer is not None:
            producer.turn_granted()
            return
        producer = message.producer = Producer(self, message)
        message.task = self._supervisor.spawn(producer.run(), "stream")
        cell = message.cell
        assert cell is not None
        if cell.streams is None:
            cell.streams = set()
        cell.streams.add(message.task)


class Producer:
    """Runs one generator within the consumer's credit."""

    def __init__(self, streams: Streams, message: Message) -> None:
        self._loop = asyncio.get_running_loop()
        self._turns = streams.turns
        self._results = streams.results
        self._message = message
        self._max_bytes = streams.max_message_bytes
        self._credit = message.credit
        self._bodies: list[bytes] = []
        self._wake: asyncio.Future[None] | None = None
        self._has_turn = True
        self._since_pause = 0

    def grant(self, count: int) -> None:
        """Let `count` more items leave."""
        self._credit += max(0, count)
        if self._has_turn or self._credit > 0:
            self._wake_up()

    def turn_granted(self) -> None:
        """Go on: the entity is this stream's for one more step."""
        self._has_turn = True
        self._wake_up()

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def run(self) -> None:
        """Produce until the generator ends, fails, or the consumer is gone; then reply."""
        message = self._message
        cell = message.cell
        assert cell is not None
        error: ActorhubError | None = None
        try:
            await self._produce(cell)
        except asyncio.CancelledError:
            error = message.abandoned_for or RunnerUnavailable(
                f"{message.address}: the stream ended because its entity moved or its runner is leaving",
                possibly_executed=True,
            )
        except (EntityError, MalformedMessage) as exc:
            error = exc
        except ActorhubError as exc:
            exc.possibly_executed = True
            error = exc
        except Exception as exc:  # noqa: BLE001 - user code: whatever it raises is the reply
            _log.error("%s(%s) failed", message.what, message.entity_id, exc_info=exc)
            error = handler_failed(exc)
        self._end(cell, error)

    def _end(self, cell: Cell, error: ActorhubError | None) -> None:
        message = self._message
        self._flush()
        if cell.streams is not None and message.task is not None:
            cell.streams.discard(message.task)
        message.phase = DONE
        if error is not None and cell.record is not None and self._has_turn and cell.phase != DEAD:
            roll_back(cell, shared=cell.load != EXCLUSIVE)
        if error is None:
            message.completed(b"")
        else:
            message.failed(error)
        if self._has_turn:
            self._turns.ended(message)
        else:
            self._turns.dequeue(message)
            if cell.phase == CLOSING and cell.load == 0 and cell.nested == 0:
                self._turns.idle(cell)

    async def _produce(self, cell: Cell) -> None:
        message = self._message
        spec = message.spec
        args = message.args if message.args is not None else spec.decode_arguments(message.body)
        context = self._turns.context.copy()
        context.run(running.set, message)
        message.chunk(())
        generator: AsyncGenerator[Any, None] = spec.function(cell.instance, *args)
        try:
            while True:
                await self._may_go_on(cell)
                try:
                    item = await run_in(context, generator.__anext__())
                except StopAsyncIteration:
                    await self._save(cell)
                    return
                await self._save(cell)
                self._emit(check_size(spec.result.encode(item), self._max_bytes, f"{message.what}: item"))
        finally:
            async with asyncio.timeout(_CLOSE_LIMIT):
                await run_in(context, generator.aclose())

    def _emit(self, body: bytes) -> None:
        if not self._bodies:
            self._loop.call_soon(self._flush)
        self._bodies.append(body)
        self._credit -= 1
        self._since_pause += 1

    def _flush(self) -> None:
        bodies, self._bodies = self._bodies, []
        if bodies and self._message.phase != DONE:
            self._message.chunk(bodies)

    async def _may_go_on(self, cell: Cell) -> None:
        """Wait for credit and turn; a producer that never suspends pauses now and then, so that others run."""
        if self._credit > 0 and cell.queue is None and self._has_turn and cell.phase == ACTIVE:
            if self._since_pause >= 256:
                self._since_pause = 0
                await asyncio.sleep(0)
            return
        self._since_pause = 0
        self._give_turn_back()
        while self._credit <= 0:
            await self._sleep()
        if not self._has_turn:
            self._message.waits_for_room = True
            self._turns.enqueue(cell, self._message)
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
            self._turns.ended(self._message)
            self._message.phase = RUNNING

    async def _save(self, cell: Cell) -> None:
        """Commit what this step changed, before its item leaves."""
        codec, message = cell.hosted.spec.state, self._message
        if codec is None or cell.record is None or message.is_nested:
            return
        data = codec.encode(cell.instance.state)
        if data == cell.record.data:
            return
        if message.spec.readonly:
            raise TypeError(f"{message.what} is readonly and changed the state: remove readonly=True")
        future = self._results.commit(cell, message.epoch, data)
        cancelled = await settled(future)
        if (error := self._results.committed(cell, data, future)) is not None:
            raise error
        if cancelled:
            raise asyncio.CancelledError
