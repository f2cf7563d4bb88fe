"""What `current().step` and `current().deferred` give to user code, with types."""

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final, Generic, TypeVar

from actorhub._resolution import checked_codec
from actorhub.core.arguments import seconds_of
from actorhub.core.codec import Codec
from actorhub.engine.model.run import Run
from actorhub.engine.runs.checkpoints import known_progress
from actorhub.engine.runs.deferred import deferral_of
from actorhub.engine.runs.services import services_of

T = TypeVar("T")

_AWAITABLES: Final = (collections.abc.Awaitable, collections.abc.Coroutine)


class Deferred(Generic[T]):
    """A value that somebody else provides, by `cluster.complete(token, value)`. Made by `current().deferred`."""

    def __init__(self, run: Run, name: str, type_: Any) -> None:
        self._run = run
        self._progress = known_progress(run)
        self._deferral = deferral_of(self._progress, name)
        self._codec: Codec[T] = checked_codec(type_, f"{run.what}: deferred value {name!r}")
        self.token: str = services_of(run).deferrals.token(self._deferral)
        """Names the value. It is text that can be put into a URL, and nobody outside of the cluster can guess it.

        It is the same in every run of the message, so it can be handed out in a step.
        """

    async def wait(self, *, timeout: timedelta | None = None) -> T:
        """Return the value once somebody has completed it, which may have been during an earlier run.

        The wait survives restarts: the next run of the message, or of the singleton's `run`, goes on waiting. A
        hand-over or a lost runner in the meantime does not count as a failed attempt. While a durable handler waits, it
        keeps its entity's turn, so the entity's other messages wait as well, except those of readonly handlers.

        Args:
            timeout: How long to wait, by the database's clock, from the first run of the message that got here. A
                restart does not prolong it. By default there is no limit. If it is over, the value counts as completed
                with the error, in every run: whoever completes it later is too late.

        Raises:
            CallTimeout: The value was not completed in time.
            DeferredFailed: The value was completed by `cluster.fail` with a text.
            EntityError: The value was completed by `cluster.fail` with this error.
            MalformedMessage: The value that it was completed with does not fit the type.
            RuntimeError: The wait is inside a step, after the run has ended, or after a `save()` that made the value
                history.
        """
        seconds = None if timeout is None else seconds_of(timeout, "timeout")
        run, progress = self._run, self._progress
        if known_progress(run) is not progress or self._deferral.generation != progress.generation:
            raise RuntimeError(
                f"{run.what}: deferred value {self._deferral.name!r} is history: make it again after save()"
            )
        data = await services_of(run).deferrals.wait(run, progress, self._deferral, seconds)
        return self._codec.decode(data)


def without_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that is wrapped in partials."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def step_codec(function: Callable[..., Any]) -> Codec[Any] | None:
    """Return the codec for the result of a step's function; `None` if it has no annotation.

    Raises:
        TypeError: The annotation cannot be resolved, or names a type that cannot be stored.
    """
    if not isinstance(function, type):
        if not inspect.isroutine(function):
            function = type(function).__call__
        function = inspect.unwrap(getattr(function, "__func__", function))
    # A local function is a new object each time its outer function runs. In the cache it would live on, together with
    # everything that it closes over.
    is_lasting = "<locals>" not in getattr(function, "__qualname__", "<locals>")
    return _known_codec(function) if is_lasting else _codec(function)


@functools.lru_cache(maxsize=4096)
def _known_codec(function: Callable[..., Any]) -> Codec[Any] | None:
    return _codec(function)


def _codec(function: Callable[..., Any]) -> Codec[Any] | None:
    what = f"result of step {getattr(function, '__qualname__', function)}"
    result = function if isinstance(function, type) else _annotation(function, what)
    if typing.get_origin(result) in _AWAITABLES:
        result = typing.get_args(result)[-1]
    if result in (inspect.Parameter.empty, Any, object) or isinstance(result, TypeVar):
        return None
    return checked_codec(result, what)


def _annotation(function: Callable[..., Any], what: str) -> Any:
    """Return the annotation of the function's result, even if those of its parameters cannot be resolved."""
    try:
        annotations: Mapping[str, Any] = getattr(function, "__annotations__", {})
        if "return" not in annotations:
            return inspect.Parameter.empty
        holder = types.SimpleNamespace(__annotations__={"return": annotations["return"]})
        scope = getattr(function, "__globals__", {})
        return typing.get_type_hints(holder, scope, _enclosing(function), include_extras=True)["return"]
    except (NameError, AttributeError, SyntaxError) as exc:
        raise TypeError(f"{what}: {exc}: define the type of the result in the module, not in a function") from exc


def _enclosing(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the variables that a local function shares with the functions around it."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    if code is None or not cells:
        return {}
    found: dict[str, Any] = {}
    for name, cell in zip(code.co_freevars, cells, strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue  # not assigned yet
    return found
