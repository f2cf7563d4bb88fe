"""Unknown fields of a stored state, as the values that carry them along."""

from __future__ import annotations

import dataclasses
from typing import Any, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorhub.core.carried import Carried

encode = msgspec.msgpack.encode
decode = msgspec.msgpack.decode


class Item(msgspec.Struct):
    name: str
    count: int = 0


class Frozen(msgspec.Struct, frozen=True):
    name: str
    count: int = 0


@dataclasses.dataclass
class Plain:
    name: str
    count: int = 0


class Row(msgspec.Struct, array_like=True, tag="row"):
    name: str
    count: int = 0


class Typed(TypedDict):
    name: str
    count: int


class Circle(msgspec.Struct, tag="circle"):
    radius: int


class Square(msgspec.Struct, tag="square"):
    side: int


class Book(msgspec.Struct, rename="camel"):
    total_count: int = 0
    first: Item | None = None
    last: Frozen | None = None
    items: list[Item] = []
    frozen: list[Frozen] = []
    by_key: dict[str, Item] = {}
    by_number: dict[int, list[Plain]] = {}
    rows: list[Row] = []
    typed: Typed | None = None
    shape: Circle | Square | None = None
    texts: set[str] = set()


def unknown(name: str, count: int = 0, **more: object) -> dict[str, object]:
    """Return an item as the other release stores it."""
    return {"name": name, "count": count, "price": f"of {name}", **more}


STORED: dict[str, Any] = {
    "totalCount": 3,
    "first": unknown("a"),
    "last": unknown("b"),
    "items": [unknown("c"), unknown("d")],
    "frozen": [unknown("e"), unknown("f")],
    "byKey": {"k": unknown("g"), "l": unknown("h")},
    "byNumber": {7: [unknown("i")]},
    "rows": [["row", "j", 0, "extra", 1]],
    "typed": unknown("k"),
    "shape": {"type": "circle", "radius": 1, "colour": "red"},
    "texts": ["x"],
    "currency": {"code": "EUR"},
}


class Kept:
    """A state that was loaded, and what is carried along."""

    def __init__(self, stored: object, kind: Any = Book) -> None:  # noqa: ANN401 - a union is not a type
        data = encode(stored)
        self.state: Any = decode(data, type=kind)
        self._kind = kind
        self.carried = Carried.find(self.state, data)

    def commit(self) -> Any:  # noqa: ANN401 - whatever is stored
        """Return what is stored after a commit, decoded."""
        data = full = encode(self.state)
        if self.carried is not None:
            self.carried.prepare(self.state, data)
            full = self.carried.prepared(data)
            self.carried = self.carried.committed()
        assert decode(full, type=self._kind) == self.state
        return decode(full)


def changed(**fields: object) -> dict[str, Any]:
    """Return what is to be stored where some fields differ."""
    return {**STORED, **fields}


def test_a_state_without_unknown_fields_carries_nothing() -> None:
    """Defaults that are missing, another order and a set do not count."""
    kept = Kept({"items": [{"count": 1, "name": "c"}], "totalCount": 1, "texts": ["x", "y", "z"]})
    assert kept.carried is None


def test_unknown_fields_are_found_at_any_depth_and_named() -> None:
    """In structs, dataclasses, typed dicts, arrays, and in what lists and dicts hold."""
    kept = Kept(STORED)
    assert kept.carried is not None
    assert sorted(kept.carried.names) == sorted(
        [
            "currency",
            "first.price",
            "last.price",
            "items[0].price",
            "items[1].price",
            "frozen[0].price",
            "frozen[1].price",
            "byKey.k.price",
            "byKey.l.price",
            "byNumber[7][0].price",
            "rows[0][3]",
            "rows[0][4]",
            "typed.price",
            "shape.colour",
        ]
    )


def test_a_change_in_place_keeps_all_of_them() -> None:
    """What is known changes, and everything else is written back as it was, commit after commit."""
    kept = Kept(STORED)
    for number in range(1, 3):
        kept.state.total_count = number
        kept.state.first.count = number
        kept.state.items[1].count = number
        kept.state.by_key["k"].count = number
        kept.state.by_number[7][0].count = number
        kept.state.rows[0].count = number
        kept.state.typed["count"] = number
        kept.state.shape.radius = number
        assert kept.commit() == changed(
            totalCount=number,
            first=unknown("a", number),
            items=[unknown("c"), unknown("d", number)],
            byKey={"k": unknown("g", number), "l": unknown("h")},
            byNumber={7: [unknown("i", number)]},
            rows=[["row", "j", number, "extra", 1]],
            typed=unknown("k", number),
            shape={"type": "circle", "radius": number, "colour": "red"},
        )


def test_they_move_and_leave_with_their_objects() -> None:
    """Items of lists may change places, and what is taken out takes them along."""
    kept = Kept(STORED)
    state = kept.state
    state.items.reverse()
    state.items.append(Item("new"))
    state.first, state.by_key["k"] = state.by_key.pop("l"), state.first
    assert kept.commit() == changed(
        items=[unknown("d"), unknown("c"), {"name": "new", "count": 0}],
        first=unknown("h"),
        byKey={"k": unknown("a")},
    )
    del state.items[0]
    state.first = None
    assert kept.commit() == changed(
        items=[unknown("c"), {"name": "new", "count": 0}], first=None, byKey={"k": unknown("a")}
    )


def test_a_new_object_in_the_place_of_another_one_starts_without() -> None:
    """It must not get what another thing was stored with, not even later."""
    kept = Kept(STORED)
    kept.state.first = Item("other")
    kept.state.by_key["k"] = Item("other")
    kept.state.items[0] = Item("other")
    kept.state.shape = Square(2)
    new = {"name": "other", "count": 0}
    expected = changed(
        first=new,
        byKey={"k": new, "l": unknown("h")},
        items=[new, unknown("d")],
        shape={"type": "square", "side": 2},
    )
    assert kept.commit() == expected
    kept.state.shape = Circle(1)
    kept.state.first = Item("a")
    assert kept.commit() == {**expected, "shape": {"type": "circle", "radius": 1}, "first": {"name": "a", "count": 0}}


def test_what_cannot_change_in_place_is_followed_by_its_successor() -> None:
    """A frozen object in a field or under a key is replaced in order to change it; equal ones are the same anywhere."""
    kept = Kept(STORED)
    state = kept.state
    state.last = msgspec.structs.replace(state.last, count=5)
    state.frozen = [Frozen("f"), Frozen("e"), Frozen("e")]
    state.items = [Item("d"), Item("new")]
    state.first = Item("a")
    assert kept.commit() == changed(
        last=unknown("b", 5),
        frozen=[unknown("f"), unknown("e"), {"name": "e", "count": 0}],
        items=[unknown("d"), {"name": "new", "count": 0}],
    )


def test_the_whole_state_is_one_thing() -> None:
    """A handler may make a new one each time: its own unknown fields stay."""
    kept = Kept({"name": "a", "price": 1, "more": [1, {"b": b"c"}]}, Frozen)
    kept.state = Frozen("b", 2)
    assert kept.commit() == {"name": "b", "count": 2, "price": 1, "more": [1, {"b": b"c"}]}


@pytest.mark.parametrize("kind", [Item, Plain, Typed])
def test_any_class_with_fields_can_be_the_state(kind: type[Any]) -> None:
    """Structs, dataclasses and typed dicts."""
    kept = Kept(unknown("a"), kind)
    if kind is Typed:
        kept.state["count"] = 4
    else:
        kept.state.count = 4
    assert kept.commit() == unknown("a", 4)


def test_a_union_keeps_them_as_long_as_it_holds_the_same_variant() -> None:
    """Another variant is another thing, whatever it stands in the place of."""
    kept = Kept({"type": "circle", "radius": 1, "colour": "red"}, Circle | Square)
    kept.state = Circle(2)
    assert kept.commit() == {"type": "circle", "radius": 2, "colour": "red"}
    kept.state = Square(2)
    assert kept.commit() == {"type": "square", "side": 2}
    assert kept.carried is None


def test_a_failed_commit_changes_nothing() -> None:
    """What was prepared for it is prepared again by the next one."""
    kept = Kept(STORED)
    assert kept.carried is not None
    kept.state.items = [Item("d")]
    kept.carried.prepare(kept.state, encode(kept.state))
    kept.state.items = [Item("d"), Item("c")]
    assert kept.commit()["items"] == [unknown("d"), unknown("c")]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
items = st.fixed_dictionaries(
    {"name": st.text(max_size=3), "count": st.integers(0, 9)},
    optional={"price": values, "": values, "type": values},
)


@given(
    items=st.lists(items, max_size=4),
    by_key=st.dictionaries(st.text(max_size=2), items, max_size=4),
    more=st.dictionaries(st.sampled_from(["currency", "new", "first_"]), values, max_size=3),
)
def test_whatever_is_stored_is_written_back(
    items: list[dict[str, Any]], by_key: dict[str, dict[str, Any]], more: dict[str, Any]
) -> None:
    """A release that counts all items up and knows nothing else writes all of them back."""
    stored = {**decode(encode(Book())), "items": items, "byKey": by_key, **more}
    kept = Kept(stored)
    for item in (*kept.state.items, *kept.state.by_key.values()):
        item.count += 1
    kept.state.total_count += 1
    up = [{**item, "count": item["count"] + 1} for item in items]
    up_by_key = {key: {**item, "count": item["count"] + 1} for key, item in by_key.items()}
    assert kept.commit() == {**stored, "items": up, "byKey": up_by_key, "totalCount": 1}
