"""How a stored message is shown: its data as JSON whatever the asked runner knows, and nothing beyond bounds."""

import msgspec

from actorhub.cli.message_rows import message_record, message_text
from actorhub.core.address import ShardId
from actorhub.ops.message_rows import listed_message, whole_message
from actorhub.storage.message_ports import FailedRun, MessageRow, MessageState, Outcome, StoredReply
from tests.ops.durable_shop import Booking, hub


def _row(handler: str, arguments: object, **more: object) -> MessageRow:
    row = MessageRow(
        message_id=7,
        shard=ShardId("default", 3),
        entity_type="accounts",
        entity_id="ada",
        handler=handler,
        state=MessageState.PENDING,
        body=msgspec.msgpack.encode(arguments),
    )
    return msgspec.structs.replace(row, **more)


def _arguments(row: MessageRow) -> str:
    return whole_message(row, hub.specs).arguments_json


def test_arguments_are_shown_as_the_gateway_takes_them() -> None:
    """One parameter is its value, several are an object by name, defaults of older callers included."""
    assert _arguments(_row("book", [Booking(5)])) == '{"amount":5,"text":""}'
    assert _arguments(_row("fragile", ["tea", 2])) == '{"text":"tea","times":2}'
    assert _arguments(_row("fragile", ["tea"])) == '{"text":"tea","times":1}'
    assert _arguments(_row("hold", [])) == "{}"


def test_arguments_of_unknown_form_are_shown_as_they_are() -> None:
    """Of an unknown type or handler, or where they no longer fit: an array; what JSON has not, as text."""
    assert _arguments(_row("gone", ["tea", 2])) == '["tea",2]'
    assert _arguments(_row("book", ["tea"])) == '["tea"]'
    assert _arguments(_row("book", [1], entity_type="gone")) == "[1]"
    assert _arguments(_row("gone", [b"\x00\xff", {1: "a"}])) == '["AP8=",{"1":"a"}]'
    assert _arguments(_row("gone", [], body=b"\xc1")) == ""


def test_what_cannot_be_read_is_named() -> None:
    """The text and the JSON object for people say what is missing, beside what is there; a count is never negative."""
    shown = whole_message(_row("book", [Booking(5)], unreadable="headers: gone\x1b", attempts=-3), hub.specs)
    assert (shown.arguments_json, shown.unreadable, shown.attempts) == (
        '{"amount":5,"text":""}',
        "headers: gone\x1b",
        0,
    )
    assert "unreadable  headers: gone\\x1b" in message_text(shown)
    assert message_record(shown)["unreadable"] == "headers: gone\x1b"


def test_a_reply_of_unknown_type_is_shown_as_it_is() -> None:
    """The value's JSON does not need the handler."""
    row = _row("gone", [], body=None, state=MessageState.DONE, reply=StoredReply(Outcome.VALUE, b"\x81\xa1a\x05"))
    shown = whole_message(row, hub.specs)
    assert (shown.reply.value_json, shown.reply.value) == ('{"a":5}', b"\x81\xa1a\x05")
    assert not shown.HasField("arguments")


def test_what_is_shown_is_bounded() -> None:
    """Long JSON is left out beside its msgpack, long histories and texts are cut, and lists carry one line."""
    text = "x" * (300 << 10)
    shown = whole_message(_row("patient", [text]), hub.specs)
    assert shown.arguments_json == ""
    assert len(shown.arguments) > 300 << 10
    run = FailedRun(attempt=1, at=1.0, error_type="E", error_text=text, traceback=f"{text} the end")
    failed = _row("patient", ["a"], history=[run] * 30)
    assert whole_message(failed, hub.specs).ByteSize() < 512 << 10
    assert whole_message(failed, hub.specs).history[-1].traceback.endswith(" the end")
    assert listed_message(failed, hub.specs).ByteSize() < 1024
