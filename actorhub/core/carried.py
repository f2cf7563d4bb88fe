"""What a stored state has and its class does not know: kept beside the state, and written back with it.

Two releases side by side have different classes for one stored state. Decoding drops what a class does not know, so the
first commit of one release would destroy what the other one has stored. Instead it is found when the state is loaded,
and merged into what is committed, at any depth: of structs, dataclasses, attrs classes and typed dicts.

Unknown fields belong to an object of the state. They stay with it, wherever it goes in the state, and leave with it. An
object that takes the place of another one, in a field or under a key of a dict, gets that one's if it is equal, or if
its class is frozen, since it could not have been changed in place; an item of a list only if it is equal. Any other new
object is a new thing, and starts without: it must not get what another one was stored with. The whole state is one
thing, however it is replaced. Elements of sets have no place, and one that is changed is another one: they get nothing.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from actorhub.core.fields import Field, fields_of

_encode: Final = msgspec.msgpack.Encoder().encode
_as_map: Final = msgspec.msgpack.Decoder(dict[Any, msgspec.Raw]).decode
_as_array: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_LEAVES: Final = frozenset({bool, int, float, str, bytes, type(None)})


class _Node(msgspec.Struct, eq=False):
    """An object of a state with unknown fields, its own or further down."""

    value: Any
    unknown: dict[Any, bytes]
    """Its own, encoded, by name; of what is encoded as an array, by index."""
    parts: "dict[Any, _Node]"
    """By field, key or index."""
    known: bytes
    """The object itself, encoded."""


class Carried:
    """The unknown fields of one entity's stored state."""

    def __init__(self, root: _Node | None, full: bytes) -> None:
        self.full = full
        """What is stored: the state, with its unknown fields."""
        self._root = root
        self._nodes = {id(node.value): node for node in _nodes(root)}
        self._prepared: tuple[bytes, bytes, _Node | None] = (b"", full, root)

    @classmethod
    def find(cls, state: object, stored: bytes) -> "Carried | None":
        """Return what `stored` has beyond `state`, which was decoded from it; `None`: nothing."""
        root = _find(state, stored)
        return None if root is None else cls(root, stored)

    @property
    def names(self) -> list[str]:
        """The unknown fields, such as `items[2].price`."""
        return [] if self._root is None else list(_names(self._root, ""))

    def merged(self, state: object, data: bytes) -> bytes:
        """Return what a commit of `state` would write; `data` is the state, encoded."""
        return self._merge(state, data)[0]

    def moved(self, state: object, full: bytes) -> "Carried":
        """Return the same for another copy of the state, which was decoded from `full`, and is not committed."""
        return Carried(_find(state, full), self.full)

    def prepare(self, state: object, data: bytes) -> None:
        """Make ready what a commit of `state` writes; `data` is the state, encoded."""
        self._prepared = data, *self._merge(state, data)

    def prepared(self, data: bytes) -> bytes:
        """Return what a commit writes of the state that was prepared as `data`."""
        known, full, _ = self._prepared
        assert known is data
        return full

    def committed(self) -> "Carried | None":
        """Return what is carried once the prepared state is committed; `None`: nothing is left."""
        _, full, root = self._prepared
        return None if root is None else Carried(root, full)

    def _merge(self, state: object, data: bytes) -> tuple[bytes, _Node | None]:
        return _Merge(self._nodes, state).merged(state, data, self._root, is_root=True)


class _Merge:
    """Gives the objects of a state what was carried along for them. Changes nothing of what is given to it."""

    def __init__(self, nodes: dict[int, _Node], state: object) -> None:
        self._nodes = nodes
        self._alive = {id(value) for value in _objects(state)} & nodes.keys()
        self._given: set[int] = set()
        """Items of former lists whose unknown fields were given to equal items."""

    def merged(
        self, value: object, data: bytes, before: _Node | None, *, is_root: bool = False
    ) -> tuple[bytes, _Node | None]:
        """Return `data`, which is `value` encoded, with unknown fields, and the node of those, if there are any."""
        opened = _open(value, data, is_carrier=before is not None or id(value) in self._nodes)
        if opened is None:
            return data, None
        node = self._nodes.get(id(value))
        if node is None or node.value is not value:
            node = before if before is not None and self._succeeds(value, data, before, is_root) else None
        parts: dict[Any, _Node] = {}
        for key, child, encoded in opened.parts:
            full, part = self.merged(child, encoded, None if node is None else self._before(node, opened, key, encoded))
            if part is not None:
                parts[key] = part
                opened.content[key] = msgspec.Raw(full)
        unknown = {} if node is None else opened.addable(node.unknown)
        if not parts and not unknown:
            return data, None
        return opened.encoded(unknown), _Node(value, unknown, parts, data)

    def _before(self, node: _Node, opened: "_Opened", key: object, encoded: bytes) -> _Node | None:
        """Return what may have been in a place before."""
        if not opened.is_list:
            return node.parts.get(key)
        for part in node.parts.values():
            if part.known == encoded and id(part.value) not in self._alive and id(part) not in self._given:
                self._given.add(id(part))
                return part
        return None

    def _succeeds(self, value: object, data: bytes, before: _Node, is_root: bool) -> bool:
        """Whether an object that is new in its place is the thing that was there before."""
        if type(value) is not type(before.value):
            return False
        if is_root:
            return True
        if id(before.value) in self._alive:
            return False  # That thing is somewhere else by now.
        return data == before.known or not before.unknown or _is_frozen(type(value))


class _Opened:
    """An object and its encoding, taken apart."""

    def __init__(self, content: Any, parts: list[tuple[Any, Any, bytes]], unknown: dict[Any, bytes]) -> None:
        self.content: Any = content
        """The encoded values, as a dict or a list."""
        self.parts = parts
        """Key, value and encoded value of what may have unknown fields itself."""
        self.unknown = unknown
        self.is_list = False
        """Its items have no fixed places."""

    def addable(self, unknown: dict[Any, bytes]) -> dict[Any, bytes]:
        """Return those of `unknown` fields whose places are free."""
        content: Any = self.content
        if type(content) is dict:
            return {name: raw for name, raw in unknown.items() if name not in content}
        return unknown if len(content) == min(unknown, default=0) else {}

    def encoded(self, unknown: dict[Any, bytes]) -> bytes:
        """Return it encoded, with unknown fields."""
        raws = {name: msgspec.Raw(raw) for name, raw in unknown.items()}
        content: Any = self.content
        if type(content) is dict:
            return _encode({**content, **raws})
        return _encode([*content, *(raws[index] for index in sorted(raws))])


def _open(value: Any, data: bytes, *, is_carrier: bool = False) -> _Opened | None:
    """Take an object apart; `None` if nothing in it can have unknown fields, and it is not known to have had some."""
    kind = _kind(value)
    if kind in _LEAVES:
        return None
    try:
        if issubclass(kind, msgspec.Struct) and kind.__struct_config__.array_like:
            return _open_array(value, data)
        if issubclass(kind, dict):
            return _open_dict(value, data, is_carrier=is_carrier)
        if issubclass(kind, list | tuple):
            return _open_list(value, data)
        fields = fields_of(kind)
        return None if fields is None else _open_fields(value, data, fields)
    except msgspec.MsgspecError:
        return None  # It encodes itself in its own way.


def _open_fields(value: Any, data: bytes, fields: Sequence[Field]) -> _Opened:
    content = _as_map(data)
    names = {field.encoded: field.name for field in fields}
    tag = value.__struct_config__.tag_field if isinstance(value, msgspec.Struct) else None
    parts = [(name, getattr(value, names[name], None), bytes(raw)) for name, raw in content.items() if name in names]
    return _Opened(content, parts, {k: bytes(raw) for k, raw in content.items() if k not in names and k != tag})


def _open_array(value: msgspec.Struct, data: bytes) -> _Opened:
    content = _as_array(data)
    first = int(value.__struct_config__.tag is not None)
    end = first + len(value.__struct_fields__)
    names = enumerate(value.__struct_fields__, first)
    parts = [(at, getattr(value, name, None), bytes(content[at])) for at, name in names if at < len(content)]
    return _Opened(content, parts, {at: bytes(raw) for at, raw in enumerate(content) if at >= end})


def _open_dict(value: dict[Any, Any], data: bytes, *, is_carrier: bool) -> _Opened | None:
    content = _as_map(data)
    if len(content) == len(value):
        if not is_carrier and _are_leaves(value.values()):
            return None
        # A key may be encoded as something else, but both are in one order.
        pairs = zip(content.items(), value.values(), strict=True)
        return _Opened(content, [(key, child, bytes(raw)) for (key, raw), child in pairs], {})
    # A typed dict: of any other, everything is known.
    parts = [(key, value[key], bytes(raw)) for key, raw in content.items() if key in value]
    return _Opened(content, parts, {key: bytes(raw) for key, raw in content.items() if key not in value})


def _open_list(value: list[Any], data: bytes) -> _Opened | None:
    if _are_leaves(value):
        return None
    content = _as_array(data)
    pairs = enumerate(zip(value, content, strict=False))
    opened = _Opened(content, [(at, child, bytes(raw)) for at, (child, raw) in pairs], {})
    opened.is_list = True
    return opened


def _find(value: object, stored: bytes) -> _Node | None:
    opened = _open(value, stored)
    if opened is None:
        return None
    found = ((key, _find(child, raw)) for key, child, raw in opened.parts)
    parts = {key: node for key, node in found if node is not None}
    return _Node(value, opened.unknown, parts, _encode(value)) if parts or opened.unknown else None


def _nodes(node: _Node | None) -> Iterator[_Node]:
    if node is not None:
        yield node
        for part in node.parts.values():
            yield from _nodes(part)


def _names(node: _Node, path: str) -> Iterator[str]:
    for name in node.unknown:
        yield _place(path, name)
    for key, part in node.parts.items():
        yield from _names(part, _place(path, key))


def _place(path: str, key: object) -> str:
    return f"{path}.{key}".lstrip(".") if isinstance(key, str) else f"{path}[{key!r}]"


def _objects(value: Any) -> Iterator[Any]:
    """Iterate over an object and everything in it that may have unknown fields."""
    if type(value) in _LEAVES:
        return
    yield value
    children: Any = ()
    kind = _kind(value)
    if issubclass(kind, dict):
        children = value.values()
    elif issubclass(kind, list | tuple):
        children = value
    elif (fields := fields_of(kind)) is not None:
        children = [getattr(value, field.name, None) for field in fields]
    if not _are_leaves(children):
        for child in children:
            yield from _objects(child)


def _are_leaves(values: Any) -> bool:
    return _LEAVES.issuperset(map(type, values))


def _kind(value: object) -> type[Any]:
    return type(value)


def _is_frozen(kind: type[Any]) -> bool:
    if issubclass(kind, msgspec.Struct):
        return bool(kind.__struct_config__.frozen)
    parameters = getattr(kind, "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen)
