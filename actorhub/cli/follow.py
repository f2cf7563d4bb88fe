"""`actorhub messages --follow`: durable messages as they come and change, by polling once a second."""

import asyncio
import os
import select
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Final

import click
import grpc
import grpc.aio
import msgspec

from actorhub.cli.message_rows import message_line, message_row, state_name
from actorhub.cli.remote import ANSWER_SECONDS, ask
from actorhub.core.config import Settings
from actorhub.core.snowflake import EPOCH
from actorhub.ops.channels import Metadata, status_text
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb
from actorhub.transport.grpc._pb import admin_v1_pb2_grpc as pb_grpc

_POLL_SECONDS: Final = 1.0
_OVERLAP: Final = 10.0
"""Seconds of ids that each poll reads again: clocks differ, and a message may be stored late."""
_PAGE: Final = 1000
_PAGES: Final = 20
"""Pages of new messages that one poll reads; the next one continues from there."""
_TIME_SHIFT: Final = 22
"""Where the milliseconds stand in an id."""
_OPEN: Final = (pb.MESSAGE_STATE_PENDING, pb.MESSAGE_STATE_SCHEDULED)
_TRANSIENT: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

_Fingerprint = tuple[str, int, float, float, str, tuple[str, ...]]


class Follower:
    """Knows which messages were reported, and finds those that are new or have changed.

    A poll reads the newest messages and the first `limit` that have not ended, however many others are stored.
    """

    def __init__(self, wanted: pb.MessageFilter, limit: int) -> None:
        self._states = frozenset(wanted.states)
        self._wanted = pb.MessageFilter()
        self._wanted.CopyFrom(wanted)
        del self._wanted.states[:]
        self._open = pb.MessageFilter(states=_OPEN)
        self._open.MergeFrom(self._wanted)
        self._limit = limit
        self._seen: dict[int, _Fingerprint] = {}
        self._watched: set[int] = set()
        """Those that had not ended at the last poll."""
        self._next_id = 0
        """Where the next poll continues, if the last one did not reach the end of the new messages."""
        self.is_complete = True
        """Whether the last poll read everything."""
        self.now = 0.0
        """When the last answer was given, by the runner's clock."""

    async def poll(self, stub: pb_grpc.AdminStub, metadata: Metadata) -> list[pb.Message]:
        """Return what is new or has changed since the last poll, by id.

        Raises:
            grpc.aio.AioRpcError: the runner did not answer.
        """
        found: dict[int, pb.Message] = {}
        is_all_open, covered = True, 0
        async for reply in self._pages(stub, metadata, self._open, 0):
            found |= {message.message_id: message for message in reply.messages}
            covered = reply.messages[-1].message_id if reply.messages else covered
            if len(found) >= self._limit and reply.next_page_token:
                is_all_open = False
                break
        self.is_complete = is_all_open
        floor = max(_first_id(self.now - _OVERLAP), self._next_id)
        pages = self._next_id = 0
        async for reply in self._pages(stub, metadata, self._wanted, floor):
            found |= {message.message_id: message for message in reply.messages}
            pages += 1
            if pages == _PAGES and reply.next_page_token:
                self.is_complete, self._next_id = False, int(reply.next_page_token)
                break
        # What was open at the last poll and is in neither answer has ended, and is too old to be among the newest. If
        # not all open ones were read, that follows only for ids up to the last one that was.
        for message_id in self._watched - found.keys():
            if is_all_open or message_id <= covered:
                ended = await self._found(stub, metadata, message_id)
                if ended is not None:
                    found[message_id] = ended
        changed = [message for _, message in sorted(found.items()) if self._note(message)]
        self._watched = {number for number, message in found.items() if message.state in _OPEN}
        self._seen = {n: seen for n, seen in self._seen.items() if n > floor or n in self._watched}
        return [message for message in changed if not self._states or message.state in self._states]

    def _note(self, message: pb.Message) -> bool:
        """Remember the message as it is now; return whether that is new."""
        # Not the times of the run: they are this process's reckoning of a moment, and differ a little each time.
        waits = tuple(wait.name for wait in message.run.waits)
        fingerprint = (
            *(state_name(message), message.attempts, message.deliver_at, message.finished_at),
            *(message.run.incarnation, waits),
        )
        known = self._seen.get(message.message_id)
        self._seen[message.message_id] = fingerprint
        return known != fingerprint

    async def _pages(
        self, stub: pb_grpc.AdminStub, metadata: Metadata, wanted: pb.MessageFilter, after: int
    ) -> AsyncIterator[pb.ListMessagesReply]:
        token = str(after)
        while token:
            request = pb.ListMessagesRequest(filter=wanted, page_size=min(self._limit, _PAGE), page_token=token)
            reply = await stub.ListMessages(request, timeout=ANSWER_SECONDS, metadata=metadata)
            self.now = reply.now
            yield reply
            token = reply.next_page_token

    async def _found(self, stub: pb_grpc.AdminStub, metadata: Metadata, message_id: int) -> pb.Message | None:
        try:
            request = pb.GetMessageRequest(message_id=message_id)
            return await stub.GetMessage(request, timeout=ANSWER_SECONDS, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise


def follow(settings: Settings, follower: Follower, *, as_json: bool) -> None:
    """Print what the follower finds until Ctrl-C or SIGTERM, or until the reader of a pipe has gone.

    Raises:
        CommandFailed: the runner did not answer the first time. Later, it is asked again until it does.
    """

    async def question(channel: grpc.aio.Channel, metadata: Metadata) -> None:
        _cancel_on_signals()
        stub = pb_grpc.AdminStub(channel)
        news: Sequence[pb.Message] = await follower.poll(stub, metadata)
        is_silent = is_told = False
        while not _reader_is_gone():
            if not (is_told or follower.is_complete):
                click.echo("there are too many messages to show each change: raise --limit, or use filters", err=True)
                is_told = True
            for message in news:
                _print(message, follower.now, as_json=as_json)
            await asyncio.sleep(_POLL_SECONDS)
            try:
                news, is_silent = await follower.poll(stub, metadata), False
            except grpc.aio.AioRpcError as error:
                if error.code() not in _TRANSIENT:
                    raise
                if not is_silent:
                    click.echo(f"the runner does not answer and will be asked again: {status_text(error)}", err=True)
                news, is_silent = (), True

    try:
        ask(settings, question)
    except asyncio.CancelledError:
        return
    except BrokenPipeError:
        # What is still buffered would fail again when the interpreter flushes it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _cancel_on_signals() -> None:
    """Make a signal cancel the running task."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe whose reader has ended."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _print(message: pb.Message, now: float, *, as_json: bool) -> None:
    click.echo(msgspec.json.encode(message_row(message)) if as_json else message_line(message, now))


def _first_id(seconds: float) -> int:
    """Return the smallest id that could have been made at that time, in seconds since the Unix epoch."""
    return max(0, int((seconds - EPOCH.timestamp()) * 1000)) << _TIME_SHIFT
