"""What operators do with durable messages: list, show, retry, purge, cancel. Any runner does it for the cluster."""

import re
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

import msgspec

from actorhub.core.errors import ActorhubError, MalformedMessage, UnknownMessage
from actorhub.core.logger import get_logger
from actorhub.ops.cluster_view import ClusterView
from actorhub.ops.local import LocalRunner
from actorhub.ops.message_rows import filter_of, listed_message, state_number, whole_message
from actorhub.storage.message_ports import SMALLEST_ID, MessageFilter, MessageRow, MessageState
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb

LONGEST_PAGE: Final = 1000
"""Keeps a reply well within the smallest frame limit, however long ids and keys are."""
_STEP: Final = 1000
"""Messages that one statement changes, or one request names."""
_TOKEN: Final = re.compile(r"-?[0-9]{1,19}")
_DEAD: Final = frozenset({MessageState.DEAD})

_log: Final = get_logger("actorhub.ops")


class MessageAdmin:
    """Answers of one runner for the whole cluster. Every method raises `PersistenceError` when the store fails."""

    def __init__(self, runner: LocalRunner, view: ClusterView) -> None:
        self._runner = runner
        self._view = view
        self._store = runner.storage.messages
        self._cluster = runner.cluster

    async def page(self, request: pb.ListMessagesRequest) -> pb.ListMessagesReply:
        """Return a page of messages, by id.

        Raises:
            MalformedMessage: the filter or the page token makes no sense.
        """
        return await self._page(request, filter_of(request.filter))

    async def dead_letters(self, request: pb.ListMessagesRequest) -> pb.ListMessagesReply:
        """Return a page of dead letters, by id.

        Raises:
            MalformedMessage: the filter or the page token makes no sense.
        """
        return await self._page(request, _dead_letters(request.filter))

    async def message(self, message_id: int) -> pb.Message:
        """Return all that is known about a message.

        Raises:
            UnknownMessage: nothing is known.
        """
        message = whole_message(await self._found(message_id), self._runner.specs)
        await self._add_runs([message], whole=True)
        return message

    async def retry(self, request: pb.RetryRequest) -> pb.RetryReply:
        """Make messages run again: those that are named, or all dead letters that match a filter.

        Raises:
            MalformedMessage: neither or both are given, or too many ids.
        """
        ids = check_ids(list(dict.fromkeys(request.message_ids)))
        if bool(ids) == request.HasField("filter"):
            raise MalformedMessage("retry takes message_ids, or a filter for dead letters (an empty one matches all)")
        if ids:
            reply = await self._retry_named(ids)
        else:
            reply = pb.RetryReply(retried=await self._retry_all(_dead_letters(request.filter)))
        _log.info("%d messages were retried", reply.retried)
        return reply

    async def purge(self, request: pb.PurgeRequest) -> int:
        """Delete the dead letters that match the filter, or only count them; return how many.

        Raises:
            MalformedMessage: the filter makes no sense.
        """
        wanted = msgspec.structs.replace(_dead_letters(request.filter), limit=_STEP)
        count = 0
        if request.only_count:
            async for rows in self._pages(wanted):
                count += len(rows)
            return count
        while True:
            deleted = await self._store.purge(wanted)
            count += deleted
            if deleted < _STEP:
                break
        _log.info("%d dead letters were purged", count)
        return count

    async def cancel(self, message_id: int, *, terminate: bool) -> pb.CancelMessageReply:
        """Cancel a message, and end its run if one is under way.

        Raises:
            UnknownMessage: nothing is known about it.
            CallTimeout: whether it ends as cancelled was not decided in time.
        """
        # The message may end between these steps. So the first only finds out whether it ever existed, and the state
        # that is reported is read after the attempt.
        await self._found(message_id)
        cancelled = await self._cluster.cancel(message_id, terminate=terminate)
        row = await self._store.find(message_id)
        state = row.state if row is not None else MessageState.CANCELLED
        if cancelled:
            _log.info("message %d was %s", message_id, "terminated" if terminate else "cancelled")
        return pb.CancelMessageReply(cancelled=cancelled, state=state_number(state))

    async def _page(self, request: pb.ListMessagesRequest, wanted: MessageFilter) -> pb.ListMessagesReply:
        limit = min(request.page_size or LONGEST_PAGE, LONGEST_PAGE)
        wanted = msgspec.structs.replace(wanted, after_id=_after(request.page_token), limit=limit + 1)
        rows = await self._store.messages(wanted)
        page = [listed_message(await self._with_error(row), self._runner.specs) for row in rows[:limit]]
        await self._add_runs(page, whole=False)
        token = str(page[-1].message_id) if len(rows) > limit else ""
        return pb.ListMessagesReply(messages=page, next_page_token=token, now=self._runner.time())

    async def _add_runs(self, messages: Iterable[pb.Message], *, whole: bool) -> None:
        """Tell of messages that run what only their runners know."""
        pending = {message.message_id: message for message in messages if message.state == pb.MESSAGE_STATE_PENDING}
        if pending:
            for message_id, run in (await self._view.message_runs(pending, whole=whole)).items():
                pending[message_id].run.CopyFrom(run)

    async def _with_error(self, row: MessageRow) -> MessageRow:
        """Return a dead letter with its history, which the store's lists leave out."""
        if row.state is not MessageState.DEAD or row.history:
            return row
        return await self._store.find(row.message_id) or row

    async def _retry_named(self, ids: Sequence[int]) -> pb.RetryReply:
        reply = pb.RetryReply()
        for message_id in ids:
            reason = await self._retry_one(message_id)
            if reason:
                reply.refused.add(message_id=message_id, reason=reason)
            else:
                reply.retried += 1
        return reply

    async def _retry_all(self, wanted: MessageFilter) -> int:
        """Make dead letters run again; return how many.

        No runner has a dead letter in memory, so the store is told first and the runners afterwards. In between they
        may find some of the messages by themselves, which is as good.
        """
        count = 0
        async for rows in self._pages(wanted):
            count += len(await self._store.retry([row.message_id for row in rows]))
        if count:
            await self._cluster.poll_storage()
        return count

    async def _retry_one(self, message_id: int) -> str:
        """Make one message run again; return why it does not, or an empty text."""
        try:
            if await self._cluster.reset(message_id):
                return ""
        except ActorhubError as error:
            return str(error)
        row = await self._store.find(message_id)
        return _NOT_RETRIED[row.state] if row is not None else _UNKNOWN

    async def _pages(self, wanted: MessageFilter) -> AsyncIterator[Sequence[MessageRow]]:
        """Yield what matches the filter, by id, so that a message that dies again meanwhile is not met twice."""
        after = wanted.after_id
        while True:
            rows = await self._store.messages(msgspec.structs.replace(wanted, after_id=after, limit=_STEP))
            if rows:
                yield rows
            if len(rows) < _STEP:
                return
            after = rows[-1].message_id

    async def _found(self, message_id: int) -> MessageRow:
        row = await self._store.find(message_id)
        if row is None:
            raise UnknownMessage(f"there is no durable message {message_id}: {_UNKNOWN}")
        return row


_UNKNOWN: Final = "no durable message has this id, or its retention is over"
_NOT_RETRIED: Final = {
    MessageState.PENDING: "it is already pending",
    MessageState.SCHEDULED: "it is not due yet",
    MessageState.DONE: "it is done",
    MessageState.FAILED: "its handler raised a domain error, which is its reply",
    MessageState.CANCELLED: "it was cancelled",
    MessageState.DEAD: "it became a dead letter again",
}


def check_ids(ids: Sequence[int]) -> Sequence[int]:
    """Return the ids that a request names.

    Raises:
        MalformedMessage: they are too many.
    """
    if len(ids) > _STEP:
        raise MalformedMessage(f"give at most {_STEP} message_ids at once, not {len(ids)}")
    return ids


def _dead_letters(wanted: pb.MessageFilter) -> MessageFilter:
    if wanted.states:
        raise MalformedMessage("filter.states makes no sense for dead letters: leave it empty")
    return msgspec.structs.replace(filter_of(wanted), states=_DEAD)


def _after(token: str) -> int:
    if not token:
        return SMALLEST_ID - 1
    if not (_TOKEN.fullmatch(token) and SMALLEST_ID <= int(token) < 1 << 63):
        raise MalformedMessage(f"page_token {token[:100]!r} was not made by this service")
    return int(token)
