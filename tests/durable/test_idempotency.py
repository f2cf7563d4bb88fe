"""Idempotency keys: which ones are valid, where they come from, and the hashes under which they are stored."""

import dataclasses
import enum
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorhub.core.errors import MalformedMessage
from actorhub.core.idempotency import (
    MAX_KEY_BYTES,
    check_key,
    key_hash,
    payload_hash,
    primary_key_of,
    run_key,
    scope_of_key,
    users_key,
)
from tests.support.hash_seeds import printed_with_each_seed

TEXTS = st.text(st.characters(codec="utf-8"))
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXTS | st.binary()
ITEMS = st.lists(st.tuples(PLAIN, PLAIN), unique_by=lambda item: item[0])


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Order(msgspec.Struct, frozen=True):
    order_id: str
    quantity: int = 1

    def primary_key(self) -> str:
        return self.order_id


class Refund(Order, frozen=True, tag=True):
    pass


class Numbered(msgspec.Struct):
    number: int

    def primary_key(self) -> int:
        return self.number


class Raising(msgspec.Struct):
    def primary_key(self) -> str:
        raise LookupError("no such order")


class Column(msgspec.Struct):
    primary_key: str = "id"


@dataclasses.dataclass
class Basket:
    lines: dict[int, set[Colour]]
    _note: str = ""


def test_a_key_hash_is_the_same_in_every_release() -> None:
    """The hash is stored: a release with another one would run every message with a key again."""
    assert key_hash("orders", "ada", "process", "o-1").hex() == "1dd98f2880d271e5b7691d94020c613b"
    assert key_hash("orders", "ärger", "process", "o-\N{SNOWMAN}").hex() == "cd0568633c0b2687df794f290147ab3b"


@given(parts=st.tuples(TEXTS, TEXTS, TEXTS), key=TEXTS, at=st.integers(0, 3))
def test_neighbouring_parts_do_not_run_together(parts: tuple[str, str, str], key: str, at: int) -> None:
    """Moving a character from one part to the next changes the hash."""
    before = [*parts, key]
    after = [*parts, key]
    before[at] += "x"
    after[(at + 1) % 4] = "x" + after[(at + 1) % 4]
    assert key_hash(*before) != key_hash(*after)


def test_a_payload_hash_is_the_same_in_every_release() -> None:
    """The hash is stored: a release with another one would refuse repeated keys."""
    assert payload_hash((Order("o-1", 2), {"b": 1, "a": {"z", "y"}})).hex() == "88f9c6833e83e23e914c1cacc211c3da"
    basket = Basket({2: {Colour.RED, Colour.BLUE}, 1: set()})
    assert payload_hash((basket, Refund("o-1"))).hex() == "73d075aa9bf38a1e8b4bbfbce8b1291a"


def test_the_key_of_a_run_is_the_same_in_every_release() -> None:
    """It is stored: a release that makes another one would send again what its predecessor sent."""
    assert run_key(("7",), "pay", bytes(16), 1) == "\x1f7\x1f4b90102948c487a3b7f82a606cb7e207"
    assert run_key(("orders", "ada", "3"), "", bytes(16), 12) == (
        "\x1forders\x1fada\x1f3\x1f44cb6d7870c05f37bfe53b353e013dd1"
    )


@given(scope=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"])), min_size=1), key=TEXTS)
def test_the_scope_is_read_from_the_key_of_a_run_alone(scope: list[str], key: str) -> None:
    """A user's key can never be taken for one, nor be the same."""
    made = run_key(scope, key, b"payload", 1)
    assert scope_of_key(made) == scope
    assert users_key(made) is None
    with pytest.raises(MalformedMessage):
        check_key(made)
    assert users_key("o-1") == "o-1"
    assert scope_of_key(None) is None


@given(step=TEXTS, payload=st.binary(), number=st.integers(1, 10**6))
def test_what_a_run_sends_has_a_key_of_its_own(step: str, payload: bytes, number: int) -> None:
    """Another step, other arguments or another number make another key."""
    keys = {
        run_key(("7",), step, payload, number),
        run_key(("8",), step, payload, number),
        run_key(("7",), step + "1", payload, number),
        run_key(("7",), step, payload + b"1", number),
        run_key(("7",), step, payload, number + 1),
        run_key(("7",), step + "1", payload + b"1", number),
    }
    assert len(keys) == 6


_PROGRAM = """
from tests.durable.test_idempotency import Basket, Colour, Order, payload_hash
names = {"ada", "grace", "barbara", "hedy", "joan"}
print(payload_hash((names, frozenset({(n, 1) for n in names}), {n: n for n in names})).hex())
print(payload_hash((Basket({1: {Colour.RED, Colour.BLUE}}), {Order(n) for n in names}, {1, "one", None})).hex())
print(payload_hash(({frozenset({n}): {n, 1} for n in names},)).hex())
"""


def test_sets_and_dicts_hash_alike_in_processes_that_iterate_them_otherwise() -> None:
    """Neither Python's hash seed nor the order in which a container was filled matters."""
    hashes = printed_with_each_seed(_PROGRAM)
    assert len(hashes) == 1
    assert len(set(hashes.pop().split())) == 3


@given(orders=ITEMS.flatmap(lambda items: st.tuples(st.just(items), st.permutations(items))))
def test_the_order_in_which_a_dict_was_filled_does_not_count(
    orders: tuple[list[tuple[object, object]], list[tuple[object, object]]],
) -> None:
    """Equal dicts and sets have equal hashes, whatever their keys are."""
    items, mixed = orders
    assert payload_hash((dict(items),)) == payload_hash((dict(mixed),))
    assert payload_hash(({key for key, _ in items},)) == payload_hash(({key for key, _ in mixed},))


@given(one=st.lists(PLAIN | st.dictionaries(st.integers(0, 9), PLAIN)), other=st.lists(PLAIN))
def test_another_payload_has_another_hash(one: list[object], other: list[object]) -> None:
    """Values with different encodings have different hashes, and the order of a list matters."""
    same = msgspec.msgpack.encode(one) == msgspec.msgpack.encode(other)
    assert (payload_hash(tuple(one)) == payload_hash(tuple(other))) == same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, 2), (2, 1)),
        (([1, 2],), ([2, 1],)),
        ((Order("o-1", 1),), (Order("o-1", 2),)),
        (({1: Order("o-1")},), ({1: Refund("o-1")},)),
        (({1: 2},), ({2: 1},)),
        ((Basket({1: set()}),), (Basket({1: set()}, "gift"),)),
        (({Colour.RED, Colour.BLUE},), ({Colour.RED},)),
        (({1: UUID(int=1)},), ({1: UUID(int=2)},)),
        (({1: datetime(2026, 1, 1, tzinfo=UTC)},), ({1: datetime(2026, 1, 2, tzinfo=UTC)},)),
        (({1: 0},), ({1: None},)),
    ],
)
def test_a_small_difference_makes_another_hash(one: tuple[object, ...], other: tuple[object, ...]) -> None:
    """Values, fields, tags, positions in a list, keys and elements all matter."""
    assert payload_hash(one) != payload_hash(other)


def test_arguments_that_cannot_be_encoded_have_no_hash() -> None:
    """The error is the same as for every malformed call."""
    with pytest.raises(MalformedMessage, match="arguments of a call with a key: Encoding objects of type"):
        payload_hash((object(),))


@pytest.mark.parametrize("key", ["o", "o-1", "bestellung/42 für ada", "\N{SNOWMAN}" * 341, "x" * MAX_KEY_BYTES])
def test_a_legal_key_is_taken_as_it_is(key: str) -> None:
    """Any printable text of up to 1024 bytes in UTF-8 is a valid key."""
    assert check_key(key) == key


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (7, r"key must be a string, not int: 7"),
        (None, r"key must be a string, not NoneType"),
        (b"o-1", r"key must be a string, not bytes: b'o-1'"),
        ("", r"key must not be empty"),
        ("o\n1", r"key 'o\\n1' contains a control character"),
        ("o\x00", r"key 'o\\x00' contains a control character"),
        ("\ud800", r"key '\\ud800' contains half of a surrogate pair"),
        ("x" * 1025, r"key 'x{40}'… has 1025 bytes; the limit is 1024"),
        ("\N{SNOWMAN}" * 342, r"has 1026 bytes; the limit is 1024"),
    ],
)
def test_a_key_that_cannot_be_stored_is_refused_by_name(key: object, text: str) -> None:
    """The error quotes the shortened key and says what is wrong with it."""
    with pytest.raises(MalformedMessage, match=text) as failed:
        check_key(key)
    assert not failed.value.possibly_executed
    assert len(str(failed.value)) < 200


@given(key=st.text())
def test_every_key_that_is_taken_can_be_hashed(key: str) -> None:
    """A valid key has a UTF-8 form within the limit, and every other text raises the same error."""
    try:
        check_key(key)
    except MalformedMessage:
        return
    assert 0 < len(key.encode()) <= MAX_KEY_BYTES
    assert len(key_hash("orders", "ada", "process", key)) == 16


def test_the_first_argument_with_a_primary_key_gives_the_key() -> None:
    """Arguments without the method are skipped, including those with a field of that name."""
    assert primary_key_of((7, "text", Column("id"), {"primary_key": "x"}, Order("o-1"), Order("o-2"))) == "o-1"
    assert primary_key_of((7, None, Column())) is None
    assert primary_key_of(()) is None


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        (Order(""), r"Order\.primary_key\(\): key must not be empty"),
        (Order("o\t1"), r"Order\.primary_key\(\): key 'o\\t1' contains a control character"),
        (Numbered(7), r"Numbered\.primary_key\(\): key must be a string, not int: 7"),
        (Raising(), r"Raising\.primary_key\(\) raised LookupError: no such order"),
    ],
)
def test_a_primary_key_that_fails_is_a_malformed_message_that_names_the_type(argument: object, text: str) -> None:
    """Whatever the method raises or returns, the error names its class, and nothing ran."""
    with pytest.raises(MalformedMessage, match=text):
        primary_key_of((1, argument))
