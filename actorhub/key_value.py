"""The key-value store: small values that belong to no entity, shared by the whole cluster."""

import asyncio
import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Generic, TypeVar, overload

from actorhub.core.clock import Clock
from actorhub.core.codec import Codec
from actorhub.core.errors import MalformedMessage
from actorhub.core.key_value import check_key, check_prefix, check_value
from actorhub.storage.key_value_ports import KeyValues

T = TypeVar("T")
U = TypeVar("U")

_NIL: Final = b"\xc0"
_CLEAR_STEP: Final = 500
_LONGEST_TTL: Final = timedelta(days=1_000_000)
_SHORTEST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.1


class KeyValue(Generic[T]):
    """Values by key, for every program of the cluster; get it as `cluster.kv` or `current().kv`.

    A write is done when its method returns: every reader sees it from then on, and it survives runners, and whatever
    Postgres itself survives. It is no part of a handler's commit: it stays written when the handler raises afterwards,
    and is written again when the handler runs again. What must be done once per message belongs in an entity's state.

    Keys are text of at most 1,024 bytes in UTF-8, prefix included, without control characters. Values are what msgspec
    encodes, at most 1 MiB; `None` cannot be stored. They come back as built-in types, or as the type of `typed`.

    Every method may raise `MalformedMessage` (the key cannot be one, or the value cannot be encoded, or does not fit
    the type; the text names the key), `MessageTooLarge` (the value is larger than 1 MiB) and `PersistenceError` (the
    store failed). A program without a database asks a runner, so it may also see `RunnerUnavailable` (the runner was
    lost while it wrote) and `CallTimeout` (no answer within 30 s). Where the error's `possibly_executed` is set, and
    where a call was cancelled, a write may have happened; else nothing was written.
    """

    __slots__ = ("_clock", "_codec", "_prefix", "_store")

    def __init__(self, store: KeyValues, clock: Clock, codec: Codec[T], prefix: str = "") -> None:
        self._store = store
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
        """Return the value of `key`, `default` if there is none."""
        name = self._name(key)
        stored = await self._store.get(name)
        return default if stored is None else self._decode(name, stored.data)

    async def set(self, key: str, value: T, *, ttl: timedelta | None = None) -> None:
        """Write a value, whatever was there.

        Args:
            key: Of the value.
            value: What to keep.
            ttl: How long; by default for ever, also where the value before had a time.

        Raises:
            TypeError: the value is `None`.
            ValueError: `ttl` is not positive, or longer than a million days.
        """
        name, seconds = self._name(key), _seconds(ttl)
        await self._store.put(name, self._encode(name, value), seconds)

    async def delete(self, key: str) -> bool:
        """Delete a value; return whether there was one."""
        return await self._store.delete(self._name(key))

    async def has(self, key: str) -> bool:
        """Return whether there is a value."""
        return await self._store.get(self._name(key)) is not None

    async def ttl(self, key: str) -> timedelta | None:
        """Return how long a value still has; `None`: it stays for ever, or there is none, which `has` tells apart."""
        stored = await self._store.get(self._name(key))
        return None if stored is None or stored.ttl is None else timedelta(seconds=stored.ttl)

    async def modify(
        self, key: str, change: Callable[[T | None], T | None], *, ttl: timedelta | None = None
    ) -> T | None:
        """Change a value as if nobody else did meanwhile; return what is stored then.

        The value is read, given to `change`, and its result is written if the value is still the same. If not, all of
        that is done again after a pause: each of any number of concurrent changes is made once, on the result of
        another one.

        Args:
            key: Of the value.
            change: Gets the value, `None` if there is none, and returns the new one, `None` to delete it. It may be
                called several times, so it had better do nothing else.
            ttl: How long a value stays that was not there before; one that is changed keeps its time.

        Raises:
            TypeError: `change` is a coroutine function.
            ValueError: `ttl` is not positive, or longer than a million days.
        """
        name, seconds = self._name(key), _seconds(ttl)
        attempt = 0
        while True:
            stored = await self._store.get(name)
            before = None if stored is None else stored.data
            value = change(None if before is None else self._decode(name, before))
            after = None if value is None else self._encode(name, _not_awaitable(value))
            if after == before or await self._store.swap(name, before, after, seconds):
                return None if after is None else self._decode(name, after)
            attempt += 1
            await asyncio.sleep(_pause(attempt, self._clock.random()))

    async def size(self) -> int:
        """Return how many keys there are (with the prefix). Complexity: linear in the result."""
        return await self._store.count(self._prefix, None)

    async def is_empty(self) -> bool:
        """Return whether there is no key (with the prefix)."""
        return await self._store.count(self._prefix, 1) == 0

    async def clear(self) -> int:
        """Delete every key (with the prefix); return how many there were.

        It is done in steps of 500: others see it half done, and keys that are written meanwhile may stay. Where a step
        fails, those before it are done.
        """
        removed, after = 0, ""
        while True:
            step = await self._store.clear(self._prefix, after, _CLEAR_STEP)
            removed += step.removed
            if step.last is None:
                return removed
            after = step.last

    def prefix(self, text: str) -> "KeyValue[T]":
        """Return the part of the store whose keys begin with `text`; `size` and `clear` mean that part alone.

        Prefixes add up: `kv.prefix("shop:").prefix("tea:")` is `kv.prefix("shop:tea:")`.

        Raises:
            MalformedMessage: no key can begin like that.
        """
        return KeyValue(self._store, self._clock, self._codec, check_prefix(self._prefix + text))

    def typed(self, type_: type[U]) -> "KeyValue[U]":
        """Return the same store for values of one type: what does not fit it is neither written nor returned.

        Raises:
            TypeError: msgspec does not support the type.
        """
        return KeyValue(self._store, self._clock, Codec(type_, "its value"), self._prefix)

    def _name(self, key: str) -> str:
        check_key(key)
        return check_key(self._prefix + key) if self._prefix else key

    def _decode(self, name: str, data: bytes) -> T:
        try:
            return self._codec.decode(data)
        except MalformedMessage as error:
            raise MalformedMessage(f"key {name!r}: {error.message}") from error

    def _encode(self, name: str, value: T) -> bytes:
        """Return the value encoded, if it can be read again."""
        try:
            data = self._codec.encode(value)
        except MalformedMessage as error:
            raise MalformedMessage(f"key {name!r}: {error.message}") from error
        if data == _NIL:
            raise TypeError(f"key {name!r}: None cannot be stored, it stands for no value: use delete")
        check_value(name, data)
        self._decode(name, data)
        return data


def untyped(store: KeyValues, clock: Clock) -> KeyValue[Any]:
    """Return the whole store, for values of every type."""
    return KeyValue(store, clock, Codec(Any, "its value"))


def _seconds(ttl: timedelta | None) -> float | None:
    if ttl is not None and not timedelta() < ttl <= _LONGEST_TTL:
        raise ValueError(f"ttl={ttl} must be positive, and at most {_LONGEST_TTL.days} days")
    return None if ttl is None else ttl.total_seconds()


def _not_awaitable(value: T) -> T:
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError("modify takes a plain function, which may be called several times, not a coroutine function")
    return value


def _pause(attempt: int, chance: float) -> float:
    return min(_LONGEST_PAUSE, _SHORTEST_PAUSE * (1 << min(attempt, 10))) * chance
