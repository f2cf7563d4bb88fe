"""What `current().step` and `current().deferred` give to user code, typed."""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from actorhub._resolution import checked_codec
from actorhub.core.codec import Codec
from actorhub.engine.cell import Cell
from actorhub.engine.checkpoints import Progress, progress_of
from actorhub.engine.message import Message

T = TypeVar("T")


class Deferred(Generic[T]):
    """A value that somebody else provides: `cluster.complete(token, value)`. Made by `current().deferred`."""

    def __init__(self, message: Message, cell: Cell, progress: Progress, name: str, type_: Any) -> None:
        self._message = message
        self._cell = cell
        self._progress = progress
        self._name = name
        self._codec: Codec[T] = checked_codec(type_, f"{message.what}: deferred value {name!r}")
        self.token: str = cell.shard.host.deferrals.token(progress, name)
        """Names the value: text that may be put in a URL, and that only this cluster can make.

        It is the same in each run of the message, so it can be handed out in a step.
        """

    async def wait(self) -> T:
        """Return the value once somebody completed it: at once where that is done, in an earlier run, too.

        The wait survives restarts: the next run of the message, or of the singleton's `run`, waits on. A hand-over or a
        lost runner meanwhile does not count as a failed attempt. The wait of a durable handler keeps its entity's turn.

        Raises:
            DeferredFailed: it was completed by `cluster.fail` with a text; with an `EntityError`, this one is raised.
            MalformedMessage: the value that it was completed with is not of the type.
        """
        await progress_of(self._message, self._cell)
        data = await self._cell.shard.host.deferrals.wait(self._message, self._cell, self._progress, self._name)
        return self._codec.decode(data)


def step_codec(function: Callable[..., Any]) -> Codec[Any] | None:
    """Return the codec of what a step's function returns; `None` where it has no annotation.

    Raises:
        TypeError: the annotation cannot be resolved, or is of a type that cannot be stored.
    """
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(getattr(function, "__func__", function))
    # A function that is made anew at each call would stay in the cache, with all that it closes over.
    is_lasting = "<locals>" not in getattr(function, "__qualname__", "<locals>")
    return _known_codec(function) if is_lasting else _codec(function)


@functools.lru_cache(maxsize=4096)
def _known_codec(function: Callable[..., Any]) -> Codec[Any] | None:
    return _codec(function)


def _codec(function: Callable[..., Any]) -> Codec[Any] | None:
    name = getattr(function, "__qualname__", repr(function))
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as exc:
        raise TypeError(f"step {name}: {exc}: define the type of its result in the module, not in a function") from exc
    except TypeError:
        return None  # a callable object, which has no annotations of its own
    return checked_codec(hints["return"], f"result of step {name}") if "return" in hints else None
