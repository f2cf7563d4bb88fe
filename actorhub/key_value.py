"""The key-value store: small values that belong to no entity and are shared by the whole cluster."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from types import CoroutineType
from typing import Any, Final, Generic, TypeVar, overload

from actorhub.core.arguments import limit_of
from actorhub.core.clock import Clock
from actorhub.core.codec import Codec
from actorhub.core.errors import MalformedMessage
from actorhub.core.key_value import check_key, check_prefix, check_value
from actorhub.core.texts import is_of, shown
from actorhub.storage.key_value_ports import KeyValues

T = TypeVar("T")
U = TypeVar("U")

_NIL: Final = b"\xc0"
_CLEAR_STEP: Final = 500
_SHORTEST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.1


class KeyValue(Generic[T]):
    """A store of values by key, shared by all programs of the cluster. Get it as `cluster.kv` or `current().kv`.

    When a write method returns, the write is done: every reader sees it from then on, and it survives the loss of
    runners and every failure that Postgres itself survives. A write is not part of a handler's commit: it stays if the
    handler raises afterwards, and is made again if the handler runs again. Keep what must happen once per message in
    the state of an entity.

    A key is text of at most 1,024 bytes in UTF-8, including its prefix, without control characters. A value is anything
    that msgspec can encode, at most 1 MiB; `None` cannot be stored. Values are returned as built-in types, or as the
    type given to `typed`.

    Every method can raise `MalformedMessage` (the key is not valid, or the value cannot be encoded or does not fit the
    type; the text names the key), `MessageTooLarge` (the value is larger than 1 MiB) and `PersistenceError` (the store
    failed) and `NotConnected` (called outside of the event loop of the connection). A program without a database asks a
    runner, so it can also get `RunnerUnavailable` (the runner was lost during a write) and `CallTimeout` (no answer
    within 30 s). If `possibly_executed` of the error is `True`, or if the call was cancelled, a write may have
    happened. Otherwise nothing was written.
    """

    __slots__ = ("_clock", "_codec", "_prefix", "_reach")

    def __init__(self, reach: Callable[[], KeyValues], clock: Clock, codec: Codec[T], prefix: str = "") -> None:
        self._reach = reach
        """Returns the store, or raises where it must not be used."""
        self._clock = clock
        self._codec = codec
        self._prefix = prefix

    def __repr__(self) -> str:
        return f"KeyValue(prefix={self._prefix!r})"

    @overload
    async def get(self, key: str) -> T | None: ...

    @overload
    async def get(self, key: str, default: U) -> T | U: ...

    async def get(self, key: str, default: object = None) -> object:
        """Return the value of `key`, or `default` if there is none."""
        name = self._name(key)
        stored = await self._reach().get(name)
        return default if stored is None else self._decode(name, stored.data)

    async def set(self, key: str, value: T, *, ttl: timedelta | None = None) -> None:
        """Write a value. An existing value is replaced.

        Args:
            key: The key of the value.
            value: The value to store.
            ttl: How long to keep it. By default it is kept until it is deleted, even if the value before had a `ttl`.

        Raises:
            TypeError: The value is `None`, or `ttl` is not a `timedelta`.
            ValueError: `ttl` is not positive, or is longer than a million days.
        """
        name, seconds = self._name(key), limit_of(ttl, "ttl")
        await self._reach().put(name, self._encode(name, value), seconds)

    async def delete(self, key: str) -> bool:
        """Delete a value. Return whether there was one."""
        return await self._reach().delete(self._name(key))

    async def has(self, key: str) -> bool:
        """Return whether there is a value."""
        return await self._reach().get(self._name(key)) is not None

    async def ttl(self, key: str) -> timedelta | None:
        """Return the time until a value expires, or `None` if it does not expire or does not exist; see `has`."""
        stored = await self._reach().get(self._name(key))
        return None if stored is None or stored.ttl is None else timedelta(seconds=stored.ttl)

    async def modify(
        self, key: str, change: Callable[[T | None], T | None], *, ttl: timedelta | None = None
    ) -> T | None:
        """Change a value atomically, and return the new value.

        `modify` reads the value, calls `change` with it, and writes the result if the value has not changed in the
        meantime. If it has, `modify` starts again after a pause. So any number of concurrent changes are all made, one
        after the other.

        Args:
            key: The key of the value.
            change: Gets the value, or `None` if there is none. Returns the new value, or `None` to delete it. It can be
                called several times, so it should do nothing else.
            ttl: How long to keep a value that did not exist before. An existing value keeps its expiry time.

        Raises:
            TypeError: `change` is a coroutine function or no function, or `ttl` is not a `timedelta`.
            ValueError: `ttl` is not positive, or is longer than a million days.
        """
        name, seconds = self._name(key), limit_of(ttl, "ttl")
        if not callable(change):
            raise TypeError(f"modify takes a function that returns the new value, not {shown(change)}")
        attempt = 0
        while True:
            stored = await self._reach().get(name)
            before = None if stored is None else stored.data
            value = change(None if before is None else self._decode(name, before))
            after = None if value is None else self._encode(name, _not_awaitable(value))
            if after == before or await self._reach().swap(name, before, after, seconds):
                return None if after is None else self._decode(name, after)
            attempt += 1
            await asyncio.sleep(_pause(attempt, self._clock.random()))

    async def size(self) -> int:
        """Return the number of keys (with the prefix). Complexity: linear in the result."""
        return await self._reach().count(self._prefix, None)

    async def is_empty(self) -> bool:
        """Return whether there are no keys (with the prefix)."""
        return await self._reach().count(self._prefix, 1) == 0

    async def clear(self) -> int:
        """Delete all keys (with the prefix). Return how many were deleted.

        Keys are deleted in steps of 500, so others can see some of them gone and some not, and keys that are written in
        the meantime can stay. If a step fails, the steps before it stay done.
        """
        removed, after = 0, ""
        while True:
            step = await self._reach().clear(self._prefix, after, _CLEAR_STEP)
            removed += step.removed
            if step.last is None:
                return removed
            after = step.last

    def prefix(self, text: str) -> "KeyValue[T]":
        """Return the part of the store whose keys begin with `text`. `size` and `clear` apply to that part only.

        Prefixes add up: `kv.prefix("shop:").prefix("tea:")` is `kv.prefix("shop:tea:")`.

        Raises:
            MalformedMessage: No valid key can begin with this prefix.
        """
        return KeyValue(self._reach, self._clock, self._codec, check_prefix(self._prefix + check_prefix(text)))

    def typed(self, type_: type[U]) -> "KeyValue[U]":
        """Return the same store for values of one type. A value that does not fit it is neither written nor returned.

        Raises:
            TypeError: msgspec does not support the type.
        """
        return KeyValue(self._reach, self._clock, Codec(type_, "its value"), self._prefix)

    def _name(self, key: str) -> str:
        name = check_key(key)
        return check_key(self._prefix + name) if self._prefix else name

    def _decode(self, name: str, data: bytes) -> T:
        try:
            return self._codec.decode(data)
        except MalformedMessage as error:
            raise MalformedMessage(f"key {name!r}: {error.message}") from error

    def _encode(self, name: str, value: T) -> bytes:
        """Return the encoded value, after a check that it can be decoded again."""
        try:
            data = self._codec.encode(value)
        except MalformedMessage as error:
            raise MalformedMessage(f"key {name!r}: {error.message}") from error
        if data == _NIL:
            raise TypeError(f"key {name!r}: None cannot be stored, because it means that there is no value: use delete")
        check_value(name, data)
        self._decode(name, data)
        return data


def untyped(reach: Callable[[], KeyValues], clock: Clock) -> KeyValue[Any]:
    """Return the whole store, for values of every type; `reach` returns it, or raises where it must not be used."""
    return KeyValue(reach, clock, Codec(Any, "its value"))


def _not_awaitable(value: T) -> T:
    if is_of(value, CoroutineType):
        value.close()
        raise TypeError("modify takes a plain function, not a coroutine function: compute the new value without await")
    return value


def _pause(attempt: int, chance: float) -> float:
    return min(_LONGEST_PAUSE, _SHORTEST_PAUSE * (1 << min(attempt, 10))) * chance
