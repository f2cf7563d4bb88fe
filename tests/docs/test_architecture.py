"""What ARCHITECTURE.md says of the code holds."""

import re

import msgspec
import pytest

from actorhub.core.address import RunnerAddress, ShardId, ShardOwner, lock_key, shard_number
from actorhub.core.codec import encode_error
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
    Reply,
    Request,
    decode_frame,
    encode_frame,
)
from actorhub.core.errors import MailboxFull
from actorhub.engine.ownership import plan, session
from actorhub.storage import ports
from tests.docs.documents import ROOT, prose, rows

ARCHITECTURE = ROOT / "ARCHITECTURE.md"
RUNNER = RunnerAddress("h:1", "i")
OWNER = ShardOwner(ShardId("default", 7), RUNNER, 3)
FRAMES: list[tuple[Envelope, str]] = [
    (Hello(1, "ns", "h:1", "i"), "91960001a26e73a3683a31a169c2"),
    (
        Request(1, ASK, "orders", "ada", "process", b"x", 30_000),
        "919e010100a66f7264657273a3616461a770726f63657373c40178cd75300090800000c2",
    ),
    (Reply(1, 3, b"x"), "9194020103c40178"),
    (Failure(1, 3, b"x"), "9194030103c40178"),
    (NotOwner(1, OWNER), "919304019392a764656661756c740792a3683a31a16903"),
    (Chunk(1, 3, [b"x"]), "919405010391c40178"),
    (Credit(1, 5), "9193060105"),
    (Cancel(1, timed_out=True), "91930701c3"),
    (Owners([OWNER]), "919408919392a764656661756c740792a3683a31a1690390c2"),
    (Members([RUNNER], 300, ["orders"]), "9195099192a3683a31a169cd012c91a66f7264657273ff"),
    (Leaving("bye"), "91920aa3627965"),
]


def _table(heading: str) -> list[list[str]]:
    return rows(prose(ARCHITECTURE).partition(f"## {heading}\n")[2].partition("\n## ")[0])


def _pointers(text: str) -> list[tuple[str, str]]:
    """Return (file, name) for each name in `file`: `name`, `name`; and in `file`: `name`."""
    found: list[tuple[str, str]] = []
    file = ""
    for code in re.findall(r"`([^`]+)`", text):
        if "/" in code:
            file = code
        elif file and re.fullmatch(r"[\w.]+", code):
            found.append((file, code))
    return found


@pytest.mark.parametrize("heading", ["Invariants", "Wire formats", "Where to change what"])
def test_each_name_is_in_the_file_that_it_is_said_to_be_in(heading: str) -> None:
    """Where a table says `file`: `name`, that file defines or mentions the name."""
    pointers = [pointer for row in _table(heading) for cell in row[1:] for pointer in _pointers(cell)]
    assert pointers
    for file, name in pointers:
        if (ROOT / file).is_file():
            assert re.search(rf"\b{name.rpartition('.')[2]}\b", (ROOT / file).read_text(encoding="utf-8")), (file, name)


def test_each_named_test_exists() -> None:
    """Every test that the document names is in the file that it names."""
    pointers = [(f, n) for f, n in _pointers(prose(ARCHITECTURE)) if n.startswith("test_")]
    assert len(pointers) > 20
    for file, name in pointers:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), (file, name)


def test_the_numbers_of_ownership_are_those_of_the_code() -> None:
    """The seconds in the table of ownership are the constants'."""
    stated = {row[2].split("`")[1]: [float(n) for n in re.findall(r"[\d.]+", row[1])] for row in _table("Ownership")}
    assert stated["HEARTBEAT_INTERVAL"][0] == ports.HEARTBEAT_INTERVAL.total_seconds()
    assert stated["LEASE"][0] == ports.LEASE.total_seconds()
    assert stated["SESSION_IDLE_LIMIT"][0] == ports.SESSION_IDLE_LIMIT.total_seconds()
    assert stated["OPERATION_DEADLINE"][0] == session.OPERATION_DEADLINE
    assert stated["LIVE_WITHIN"][0] == plan.LIVE_WITHIN
    assert stated["STALE_AFTER"][0] == plan.STALE_AFTER
    assert stated["FORGET_AFTER"][0] == plan.FORGET_AFTER


def test_the_wire_formats_are_what_the_table_says() -> None:
    """The values in the table of wire formats are those of the functions that it names."""
    stated = {call: int(value) for call, value in re.findall(r"`(\w+\([^`]*\))` = (-?\d+)", prose(ARCHITECTURE))}
    assert stated == {
        'shard_number("ada", 300)': shard_number("ada", 300),
        'lock_key("actorhub", "shard/default:0")': lock_key("actorhub", "shard/default:0"),
    }


@pytest.mark.parametrize(("envelope", "frame"), FRAMES, ids=lambda value: type(value).__name__)
def test_the_envelopes_keep_their_bytes(envelope: Envelope, frame: str) -> None:
    """An older release reads what this one writes, and this one what an older one wrote: fields are appended only."""
    mine = encode_frame([envelope]).hex()
    assert decode_frame(bytes.fromhex(frame)) == [envelope]
    assert (
        msgspec.msgpack.decode(bytes.fromhex(mine))[0][: _fields(frame)]
        == msgspec.msgpack.decode(bytes.fromhex(frame))[0]
    )


def _fields(frame: str) -> int:
    return len(msgspec.msgpack.decode(bytes.fromhex(frame))[0])


def test_an_error_keeps_its_bytes() -> None:
    """An error is an array of class name, text, possibly_executed, fields and whether it is the program's own."""
    expected = "95ab4d61696c626f7846756c6ca466756c6cc281ab72657472795f6166746572a65054302e3153c2"
    assert encode_error(MailboxFull("full")).hex() == expected
