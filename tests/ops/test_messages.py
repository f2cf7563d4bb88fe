"""Durable messages in `actorhub.admin.v1`: list, look, retry, purge, cancel, on any runner for the whole cluster."""

import asyncio
from datetime import timedelta

import grpc
import grpc.aio
import msgspec
import pytest

from actorhub.ops import messages
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb
from tests.ops.conftest import Port, Ports
from tests.ops.durable_shop import Accounts, Booking, release

PENDING, SCHEDULED, DEAD = pb.MESSAGE_STATE_PENDING, pb.MESSAGE_STATE_SCHEDULED, pb.MESSAGE_STATE_DEAD
DONE, FAILED, CANCELLED = pb.MESSAGE_STATE_DONE, pb.MESSAGE_STATE_FAILED, pb.MESSAGE_STATE_CANCELLED
HOUR = 3600


def _hours(number: int) -> timedelta:
    return timedelta(hours=number)


async def _get(port: Port, message_id: int) -> pb.Message:
    return await port.admin.GetMessage(pb.GetMessageRequest(message_id=message_id))


async def _until(port: Port, message_id: int, state: int) -> pb.Message:
    async with asyncio.timeout(20):
        while (message := await _get(port, message_id)).state != state:
            await asyncio.sleep(0.02)
    return message


async def _list(port: Port, **wanted: object) -> list[int]:
    request = pb.ListMessagesRequest(filter=pb.MessageFilter(**wanted))  # type: ignore[arg-type]
    return [message.message_id for message in (await port.admin.ListMessages(request)).messages]


async def _dead_letters(port: Port, *names: str) -> list[int]:
    """Make one dead letter for each entity."""
    accounts = port.cluster.client(Accounts)
    ids = [await port.cluster.tell(accounts(name).fragile(f"of {name}", 2)) for name in names]
    for message_id in ids:
        await _until(port, message_id, DEAD)
    return ids


async def _refused(question: object, status: grpc.StatusCode, text: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await question  # type: ignore[misc]
    assert refused.value.code() is status
    assert text in (refused.value.details() or "")


async def test_every_state_is_listed_and_chosen_by_filters(durable_ports: Ports) -> None:
    """Each filter lets through what it names, whichever runner is asked, and pages hold each message once."""
    first, second = await durable_ports.open_two()
    cluster = first.cluster
    accounts = cluster.client(Accounts)
    done = await cluster.tell(accounts("ada").book(Booking(5)), key="b-1")
    failed = await cluster.tell(accounts("bob").book(Booking(-5)))
    later = await cluster.tell(accounts("ada").book(Booking(7)), delay=_hours(1))
    held = await cluster.tell(accounts("eve").hold())
    (dead,) = await _dead_letters(first, "dan")
    cancelled = await cluster.tell(accounts("ada").book(Booking(9)), delay=_hours(2))
    assert await cluster.cancel(cancelled)
    for message_id, state in ((done, DONE), (failed, FAILED), (cancelled, CANCELLED)):
        assert (await _until(second, message_id, state)).finished_at > 0
    everything = [done, failed, later, held, dead, cancelled]
    for port in (first, second):
        assert await _list(port) == everything
        assert await _list(port, states=[PENDING]) == [held]
        assert await _list(port, states=[SCHEDULED]) == [later]
        assert await _list(port, states=[DEAD, FAILED]) == [failed, dead]
        assert await _list(port, entity_id="ada") == [done, later, cancelled]
        assert await _list(port, entity_type="accounts", handler="hold") == [held]
        assert await _list(port, entity_type="account") == []
        assert await _list(port, key="b-1") == [done]
        assert await _list(port, older_than_seconds=HOUR) == []
        shard = str(cluster.shard_of(Accounts, "dan"))
        assert dead in await _list(port, shard=shard)
        assert done not in await _list(port, shard=shard, entity_id="ada", states=[DEAD])
    found, token = list[int](), ""
    while True:
        page = await second.admin.ListMessages(pb.ListMessagesRequest(page_size=4, page_token=token))
        found += [message.message_id for message in page.messages]
        if not (token := page.next_page_token):
            break
    assert found == everything
    await release("eve")


async def test_a_dead_letter_tells_all_about_itself(durable_ports: Ports) -> None:
    """Arguments as the gateway takes them, headers, attempts, times, and each failed run with its traceback."""
    port = await durable_ports.open()
    accounts = port.cluster.client(Accounts).options(headers={"a": "b"})
    message_id = await port.cluster.tell(accounts("ada").fragile("tea", 2), key="k")
    message = await _until(port, message_id, DEAD)
    assert (message.entity_type, message.entity_id, message.handler, message.key) == ("accounts", "ada", "fragile", "k")
    assert message.shard == str(port.cluster.shard_of(Accounts, "ada"))
    assert msgspec.json.decode(message.arguments_json) == {"text": "tea", "times": 2}
    assert msgspec.msgpack.decode(message.arguments) == ["tea", 2]
    assert message.headers == {"a": "b"}
    assert (message.attempts, [run.attempt for run in message.history]) == (2, [1, 2])
    assert 0 < message.created_at <= message.history[0].at < message.history[1].at
    assert abs(message.finished_at - message.history[1].at) < 0.1
    for run in message.history:
        assert (run.error_type, run.error_text) == ("KeyError", "'tea'")
        assert "in fragile" in run.traceback
    assert (message.reply.error.kind, message.reply.error.message) == ("HandlerFailed", "'tea'")
    listed = (await port.admin.ListDeadLetters(pb.ListMessagesRequest())).messages
    assert [each.message_id for each in listed] == [message_id]
    assert (listed[0].history[0].error_text, listed[0].history[0].traceback) == ("'tea'", "")
    assert not listed[0].HasField("arguments")


async def test_an_ended_message_shows_its_reply(durable_ports: Ports) -> None:
    """A value as JSON, a domain error with its fields, and arguments that are no longer kept."""
    port = await durable_ports.open()
    accounts = port.cluster.client(Accounts)
    done = await _until(port, await port.cluster.tell(accounts("ada").book(Booking(5))), DONE)
    assert (done.reply.value_json, done.reply.value) == ("5", b"\x05")
    assert not done.HasField("arguments")
    assert done.expires_at > done.finished_at >= done.created_at > 0
    failed = await _until(port, await port.cluster.tell(accounts("ada").book(Booking(-9))), FAILED)
    assert (failed.reply.error.kind, failed.reply.error.fields_json) == ("NotCovered", '{"missing":4}')


async def test_named_messages_are_retried_and_the_others_refused_with_reasons(durable_ports: Ports) -> None:
    """Dead letters and messages between attempts run again; for each other one there is a reason."""
    first, second = await durable_ports.open_two()
    accounts = first.cluster.client(Accounts)
    dead = await _dead_letters(first, "ada", "bob")
    waiting = await first.cluster.tell(accounts("eve").patient("x"))
    await _until(first, waiting, SCHEDULED)
    done = await first.cluster.tell(accounts("dan").book(Booking(5)))
    await _until(first, done, DONE)
    for name in ("ada", "bob", "eve"):
        await accounts(name).mend()
    reply = await second.admin.Retry(pb.RetryRequest(message_ids=[*dead, waiting, done, 5, dead[0]]))
    assert reply.retried == 3
    assert [(each.message_id, each.reason) for each in reply.refused] == [
        (done, "it is done"),
        (5, "no durable message has this id, or its retention is over"),
    ]
    for message_id in (*dead, waiting):
        message = await _until(second, message_id, DONE)
        assert message.attempts == 1
    assert (await _get(first, dead[1])).reply.value_json == '"of bobof bob"'


async def test_all_dead_letters_that_a_filter_lets_through_are_retried(
    durable_ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request retries the dead letters of one entity, the next one all others; nothing else is touched."""
    monkeypatch.setattr(messages, "_STEP", 1)
    port = await durable_ports.open()
    accounts = port.cluster.client(Accounts)
    dead = await _dead_letters(port, "ada", "bob", "eve")
    later = await port.cluster.tell(accounts("ada").book(Booking(5)), delay=_hours(1))
    for name in ("ada", "bob"):
        await accounts(name).mend()
    assert (await port.admin.Retry(pb.RetryRequest(filter=pb.MessageFilter(entity_id="ada")))).retried == 1
    await _until(port, dead[0], DONE)
    assert await _list(port, states=[DEAD]) == dead[1:]
    assert (await port.admin.Retry(pb.RetryRequest(filter=pb.MessageFilter()))).retried == 2
    await _until(port, dead[1], DONE)
    again = await _until(port, dead[2], DEAD)
    assert [run.attempt for run in again.history] == [1, 2, 1, 2]
    assert (await _get(port, later)).state == SCHEDULED


async def test_dead_letters_are_purged_by_filter_and_their_number_is_told(
    durable_ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counting deletes nothing; a purge deletes what the filter lets through and nothing else."""
    monkeypatch.setattr(messages, "_STEP", 2)
    port = await durable_ports.open()
    accounts = port.cluster.client(Accounts)
    dead = await _dead_letters(port, "ada", "bob", "eve")
    done = await port.cluster.tell(accounts("ada").book(Booking(5)))
    await _until(port, done, DONE)
    one = pb.MessageFilter(entity_id="ada")
    assert (await port.admin.Purge(pb.PurgeRequest(filter=one, only_count=True))).purged == 1
    assert (await port.admin.Purge(pb.PurgeRequest(only_count=True))).purged == 3
    assert await _list(port, states=[DEAD]) == dead
    assert (await port.admin.Purge(pb.PurgeRequest(filter=one))).purged == 1
    await _refused(_get(port, dead[0]), grpc.StatusCode.NOT_FOUND, str(dead[0]))
    assert (await port.admin.Purge(pb.PurgeRequest())).purged == 2
    assert (await port.admin.Purge(pb.PurgeRequest())).purged == 0
    assert await _list(port) == [done]


async def test_a_message_is_cancelled_unless_it_has_ended(durable_ports: Ports) -> None:
    """Scheduled ones, dead letters and running ones are, and of an ended one the state is told."""
    first, second = await durable_ports.open_two()
    accounts = first.cluster.client(Accounts)
    later = await first.cluster.tell(accounts("ada").book(Booking(5)), delay=_hours(1))
    (dead,) = await _dead_letters(first, "bob")
    for message_id in (later, dead):
        reply = await second.admin.CancelMessage(pb.CancelMessageRequest(message_id=message_id))
        assert (reply.cancelled, reply.state) == (True, CANCELLED)
        assert not (await _get(first, message_id)).HasField("reply")
    done = await first.cluster.tell(accounts("ada").book(Booking(5)))
    await _until(first, done, DONE)
    reply = await second.admin.CancelMessage(pb.CancelMessageRequest(message_id=done))
    assert (reply.cancelled, reply.state) == (False, DONE)
    for terminate in (False, True):
        held = await first.cluster.tell(accounts("eve").hold())
        async with asyncio.timeout(20):
            while not (await _get(first, held)).attempts:
                await asyncio.sleep(0.02)
        assert (await second.admin.Retry(pb.RetryRequest(message_ids=[held]))).retried == 1
        cancel = pb.CancelMessageRequest(message_id=held, terminate=terminate)
        assert (await second.admin.CancelMessage(cancel)).cancelled
        assert (await _get(first, held)).state == CANCELLED


async def test_wrong_questions_about_messages_are_answered_with_a_status_that_says_why(durable_ports: Ports) -> None:
    """Filters, tokens and ids that cannot be are INVALID_ARGUMENT, unknown messages NOT_FOUND."""
    admin = (await durable_ports.open()).admin
    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    listed = pb.ListMessagesRequest

    def chosen(**wanted: object) -> pb.MessageFilter:
        return pb.MessageFilter(**wanted)  # type: ignore[arg-type]

    questions = (
        (admin.GetMessage(pb.GetMessageRequest(message_id=7)), missing, "there is no durable message 7"),
        (admin.CancelMessage(pb.CancelMessageRequest(message_id=7)), missing, "there is no durable message 7"),
        (admin.ListMessages(listed(page_token="x")), invalid, "page_token 'x'"),
        (admin.ListMessages(listed(filter=chosen(shard="7"))), invalid, "write group:number"),
        (admin.ListMessages(listed(filter=chosen(states=[99]))), invalid, "there is no state 99"),
        (admin.ListMessages(listed(filter=chosen(older_than_seconds=-1))), invalid, "must not be negative"),
        (admin.ListDeadLetters(listed(filter=chosen(states=[DONE]))), invalid, "leave it empty"),
        (admin.Retry(pb.RetryRequest()), invalid, "message_ids, or a filter"),
        (admin.Retry(pb.RetryRequest(message_ids=[1], filter=chosen())), invalid, "message_ids, or a filter"),
        (admin.Retry(pb.RetryRequest(message_ids=range(1001))), invalid, "1000 message_ids at once"),
        (admin.Purge(pb.PurgeRequest(filter=chosen(states=[DONE]))), invalid, "leave it empty"),
    )
    for question, status, text in questions:
        await _refused(question, status, text)


async def test_a_row_that_cannot_be_read_is_shown_listed_and_cancelled(durable_ports: Ports) -> None:
    """People can look at it before it is due, on any runner, and end it there; infinite times are listed, too."""
    first, second = await durable_ports.open_two()
    told = await first.cluster.tell(first.cluster.client(Accounts)("ada").book(Booking(5)), delay=_hours(1))
    for change in ("headers = '{\"tenant\": null}', attempts = -1", "deliver_at = 'infinity', history = '7'"):
        await durable_ports.execute(f"update actorhub.message set {change} where message_id = {told}")
    for port in (first, second):
        shown = await _get(port, told)
        assert (shown.arguments_json, dict(shown.headers)) == ('{"amount":5,"text":""}', {})
        assert "tenant" in shown.unreadable
        assert await _list(port) == [told]
    assert (await second.admin.CancelMessage(pb.CancelMessageRequest(message_id=told))).cancelled
    assert (await _get(first, told)).state == CANCELLED
