"""Handlers called as ordinary coroutines, of an entity that no cluster hosts."""

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar, cast

import msgspec

from actorhub._declaration import spec_of
from actorhub.context import stand_in
from actorhub.core.errors import ActorhubError
from actorhub.core.texts import only_error_in
from actorhub.engine.model.spec import EntitySpec
from actorhub.entity import Declared
from actorhub.testing.unhosted_current import Told, UnhostedCurrent

D = TypeVar("D", bound=Declared[Any])

_UNHOSTED = "__actorhub_unhosted__"


def unhosted(instance: D, *, state: object = msgspec.UNSET, entity_id: str = "unhosted") -> D:
    """Make an instance's handlers and hooks ordinary coroutines, to be awaited by a test; return the instance.

    What a handler changes in `state` stays if it returns, and is taken back if it raises, to where it began or last
    called `save()`. `current()` knows the entity. What it tells is recorded for `told_by` if the handler returns, and
    `step` calls its function. Asking other entities, `transaction`, `deferred`, `sleep` and `kv` raise `RuntimeError`.

    Nothing else of a cluster is there: no mailbox and no turns, no retries, time-outs or schedules, and neither
    arguments nor results are encoded. Hooks run when the test calls them.

    Args:
        instance: A new instance of an entity or singleton class.
        state: What it starts from; default is the initial state. It is copied. `instance.state` can be set later, too.
        entity_id: What `current().entity_id` is. A singleton's is its name, whatever this says.

    Raises:
        TypeError: there is a state for a class that keeps none.
        MalformedMessage: the state does not fit its type, or the id cannot be one.
    """
    if isinstance(cast("object", instance), type):
        name = cast("type", instance).__name__
        raise TypeError(f"{name} is a class: give an instance, as in unhosted({name}(...))")
    spec = spec_of(type(instance))
    runs = _Runs(instance, spec, spec.singleton_id or entity_id)
    runs.begin(state)
    attributes: dict[str, Any] = vars(instance)
    attributes[_UNHOSTED] = runs
    attributes["save"] = runs.save
    for name in (*spec.handlers, *type(instance).__declaration__.options.hooks):
        function = getattr(type(instance), name)
        attributes[name] = runs.stream(function) if inspect.isasyncgenfunction(function) else runs.call(function)
    return instance


def told_by(instance: Declared[Any]) -> list[Told]:
    """Return what the handlers of an unhosted instance told, in order; the list is the caller's to keep.

    Raises:
        TypeError: `unhosted` did not make the instance.
    """
    runs = vars(instance).get(_UNHOSTED)
    if not isinstance(runs, _Runs):
        raise TypeError(f"this {type(instance).__name__} is not unhosted: use unhosted({type(instance).__name__}(...))")
    return list(runs.told)


class _Runs:
    """The runs of one instance's handlers: what each leaves, as a commit would."""

    def __init__(self, instance: Declared[Any], spec: EntitySpec, entity_id: str) -> None:
        self.told: list[Told] = []
        self._instance = instance
        self._spec = spec
        self._here = UnhostedCurrent(spec, entity_id)
        self._kept = b""
        """The state to go back to, encoded."""

    def begin(self, state: object) -> None:
        """Give the instance its first state."""
        if self._spec.state is not None:
            self._instance.state = self._spec.initial_state() if state is msgspec.UNSET else state
            data = self._encoded()
            self._spec.state.check_faithful(self._instance.state, data)
            self._instance.state = self._spec.state.decode(data)
        elif state is not msgspec.UNSET:
            raise TypeError(f"{type(self._instance).__name__} keeps no state: leave it out")

    def call(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the handler or hook as a coroutine function of the arguments alone."""

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - what the handler returns
            with self._run():
                return await function(self._instance, *args, **kwargs)

        return call

    def stream(self, function: Callable[..., AsyncGenerator[Any, None]]) -> Callable[..., AsyncGenerator[Any, None]]:
        """Return the handler as a generator function; each item ends a run, as it does in a cluster."""

        @functools.wraps(function)
        async def items(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
            async with aclosing(function(self._instance, *args, **kwargs)) as stream:
                while True:
                    with self._run():
                        try:
                            item = await anext(stream)
                        except StopAsyncIteration:
                            return
                    yield item

        return items

    async def save(self, state: object = msgspec.UNSET) -> None:
        """Keep the state as it is now, whatever becomes of the handler."""
        if stand_in.get() is not self._here:
            raise RuntimeError("save() works in handlers: await one of this instance's")
        if self._spec.state is None and self._spec.main_loop is None:
            raise RuntimeError("save() works in the handlers of an Entity with state, and in the run() of a singleton")
        if state is not msgspec.UNSET:
            self._instance.state = state
        self._kept = self._encoded()

    @contextmanager
    def _run(self) -> Generator[None, None, None]:
        if stand_in.get() is self._here:
            yield  # a handler that calls another one of its own class: that is part of its own run
            return
        token = stand_in.set(self._here)
        self._kept = self._encoded()
        try:
            yield
            self._encoded()
        except BaseException as exc:
            self._here.take_untold()
            if self._spec.state is not None:
                self._instance.state = self._spec.state.decode(self._kept)
            if isinstance(only := only_error_in(exc), ActorhubError) and only is not exc:
                raise only from exc  # as callers get it
            raise
        else:
            self.told += self._here.take_untold()
        finally:
            stand_in.reset(token)

    def _encoded(self) -> bytes:
        """Return the state as it would be stored, which can be loaded again.

        Raises:
            MalformedMessage: it does not fit its type.
        """
        codec = self._spec.state
        if codec is None:
            return b""
        data = codec.encode(self._instance.state)
        codec.decode(data)
        return data
