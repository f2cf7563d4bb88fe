"""Tables of columns: how a batch of records becomes one argument of a function, a value per column.

Each table has its counterpart in the schema: a composite type of the same name, with the same columns in order.
To add a column is one line in each; a test compares the two.
"""

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from actorhub.core.address import ShardId

RecordT = TypeVar("RecordT")
ValueT = TypeVar("ValueT")


class Column(msgspec.Struct, Generic[RecordT], frozen=True):
    """A column, its Postgres type, and how it is read from all records of a batch at once."""

    name: str
    type: str
    read: Callable[[Sequence[RecordT]], object]
    """Returns a text with a line for each record, or a list with an element for each; `None`: none has anything."""


class Columns(Generic[RecordT]):
    """The columns of a composite type of the schema."""

    def __init__(self, name: str, *columns: Column[RecordT]) -> None:
        self.name = name
        """Of the type."""
        self.columns = columns
        self._reads = [column.read for column in columns]

    def encode(self, records: Sequence[RecordT]) -> tuple[object, ...]:
        """Return the value of the composite type that stands for `records`.

        Raises:
            UnicodeError: a name has a line break.
        """
        return tuple([read(records) for read in self._reads])


class OfShard(Protocol):
    """A record that an owner writes: what it says of the shard is checked before it is written."""

    @property
    def shard(self) -> ShardId:
        """Where it belongs."""
        ...

    @property
    def epoch(self) -> int:
        """At which the writer owns the shard."""
        ...


def lines(values: Sequence[str]) -> str:
    """Return a column of names as one text, a line each.

    Raises:
        UnicodeError: one has several lines, so it names nothing.
    """
    text = "\n".join(values)
    if text.count("\n") >= len(values):
        raise UnicodeError("a name with a line break cannot be stored")
    return text


def numbers(values: Sequence[float]) -> str:
    """Return a column of plain ints or floats as one text, a line each."""
    first, count = values[0], len(values)
    if values.count(first) == count:
        return "\n".join([repr(first)] * count)
    return "\n".join(map(repr, values))


def sparse(values: list[ValueT | None]) -> list[ValueT | None] | None:
    """Return `values`, or `None` where all of them are `None`."""
    return values if values.count(None) < len(values) else None


def shard_groups(records: Sequence[OfShard]) -> str:
    """Return the group of each record's shard."""
    return lines([record.shard.group for record in records])


def shard_numbers(records: Sequence[OfShard]) -> str:
    """Return the number of each record's shard."""
    return numbers([record.shard.number for record in records])


def epochs(records: Sequence[OfShard]) -> str:
    """Return the epoch of each record."""
    return numbers([record.epoch for record in records])


def held_shards(records: Sequence[OfShard]) -> tuple[str, str, str] | None:
    """Return the shards of `records`, each once, as a value of the type `held_shards`.

    `None` where they are of several groups, or a shard is named with two epochs: then each row's owner is checked.
    """
    if len(records) == 1:
        [only] = records
        return only.shard.group, repr(only.shard.number), repr(only.epoch)
    shards = [record.shard for record in records]
    places = [shard.number for shard in shards]
    named = [record.epoch for record in records]
    held = dict(zip(places, named, strict=True))
    group = shards[0].group
    if [shard.group for shard in shards].count(group) < len(shards) or [held[place] for place in places] != named:
        return None
    ordered = sorted(held)
    return group, numbers(ordered), numbers([held[place] for place in ordered])
