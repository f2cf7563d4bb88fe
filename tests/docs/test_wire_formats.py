"""docs/design/wire-formats.md shows what the code sends."""

import re

import msgspec
import pytest

from actorhub.core.address import RunnerAddress, ShardId, ShardOwner, lock_key, shard_number
from actorhub.core.codec import encode_error
from actorhub.core.cron import fire_time_key
from actorhub.core.envelope import (
    ASK,
    Cancel,
    Chunk,
    Credit,
    Envelope,
    Failure,
    Hello,
    Leaving,
    Members,
    NotOwner,
    Owners,
    Relayed,
    Reply,
    Request,
    decode_frame,
    encode_frame,
)
from actorhub.core.errors import MailboxFull
from tests.docs.documents import ROOT, prose, rows

WIRE_FORMATS = prose(ROOT / "docs" / "design" / "wire-formats.md")
RUNNER = RunnerAddress("h:1", "i")
OWNER = ShardOwner(ShardId("default", 7), RUNNER, 3)
ENVELOPES: dict[str, Envelope] = {
    'Hello(1, "ns", "h:1", "i")': Hello(1, "ns", "h:1", "i"),
    'Request(1, ASK, "orders", "ada", "process", b"x", 30_000)': Request(
        1, ASK, "orders", "ada", "process", b"x", 30_000
    ),
    'Reply(1, 3, b"x")': Reply(1, 3, b"x"),
    'Failure(1, 3, b"x")': Failure(1, 3, b"x"),
    "NotOwner(1, OWNER)": NotOwner(1, OWNER),
    'Chunk(1, 3, [b"x"])': Chunk(1, 3, [b"x"]),
    "Credit(1, 5)": Credit(1, 5),
    "Cancel(1, timed_out=True)": Cancel(1, timed_out=True),
    "Owners([OWNER])": Owners([OWNER]),
    'Members([RUNNER], 300, ["orders"])': Members([RUNNER], 300, ["orders"]),
    'Leaving("bye")': Leaving("bye"),
    'Relayed("l", b"x", "b", "a")': Relayed("l", b"x", "b", "a"),
}


def _table(heading: str) -> dict[str, str]:
    """Return the hexadecimal bytes of each example under a heading."""
    section = WIRE_FORMATS.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return {example.strip("`"): shown.strip("`") for example, shown in rows(section)}


def test_the_examples_are_what_the_code_computes() -> None:
    """Each `function(arguments)` = value of the page is what the function returns."""
    stated = {call: value.strip("`") for call, value in re.findall(r"`(\w+\([^`]*\))` = (`[^`]+`|-?\d+)", WIRE_FORMATS)}
    assert stated == {
        'shard_number("ada", 300)': str(shard_number("ada", 300)),
        'lock_key("actorhub", "shard/default:0")': str(lock_key("actorhub", "shard/default:0")),
        'fire_time_key("sweep", 1795782600.0, 0)': fire_time_key("sweep", 1795782600.0, 0),
    }


def test_the_page_shows_one_envelope_of_each_kind() -> None:
    """Every tag has its example."""
    assert list(_table("Envelopes")) == list(ENVELOPES)
    assert {type(envelope) for envelope in ENVELOPES.values()} == set(Envelope.__args__)


@pytest.mark.parametrize("example", ENVELOPES)
def test_the_envelopes_keep_their_bytes(example: str) -> None:
    """An older release reads what this one writes, and this one what an older one wrote: fields are appended only."""
    envelope, shown = ENVELOPES[example], bytes.fromhex(_table("Envelopes")[example])
    assert decode_frame(shown) == [envelope]
    known = msgspec.msgpack.decode(shown)[0]
    assert msgspec.msgpack.decode(encode_frame([envelope]))[0][: len(known)] == known


def test_an_error_keeps_its_bytes() -> None:
    """An error is an array of class name, text, possibly_executed, fields and whether it is the program's own."""
    assert _table("Errors") == {'MailboxFull("full")': encode_error(MailboxFull("full"), 1000).hex()}
