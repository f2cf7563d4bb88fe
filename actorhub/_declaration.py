"""From a user's class to the spec that the engine uses: a check at class definition, and the resolution of types."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from actorhub._members import handlers_of
from actorhub._options import (
    EntityOptions,
    HandlerOptions,
    OptionsT,
    SingletonOptions,
    class_options,
    crons_of,
    options_of,
)
from actorhub._resolution import (
    OURS,
    DeclaredTypes,
    Written,
    binder,
    checked_codec,
    checked_defaults,
    initial_state_of,
    named_codec,
    positional,
    read_annotations,
    result_type,
    tuple_type,
)
from actorhub.core.codec import Codec
from actorhub.core.cron import CronOptions
from actorhub.core.retry import DEFAULT_RETRY
from actorhub.core.texts import is_of, short_name_of, shown
from actorhub.core.type_hints import ClassScope, UnknownName
from actorhub.engine.model.spec import DEFAULT_CANCEL_GRACE, EntitySpec, HandlerSpec
from actorhub.engine.singletons.cron_runs import cron_function

_KEY_MARGIN: Final = timedelta(hours=1)
"""How much longer the key of a fire time is kept than the fire time can still run."""


class Declaration:
    """The checked class of an entity or singleton. `spec` resolves its types at the first use, when names are known."""

    def __init__(
        self,
        cls: type,
        options: EntityOptions | SingletonOptions,
        handlers: Mapping[str, Callable[..., Any]],
        scope: ClassScope,
    ) -> None:
        self.cls = cls
        self.options = options
        self.handlers = handlers
        self._scope = scope
        self._written: Written | None = None
        self._spec: EntitySpec | None = None

    @property
    def spec(self) -> EntitySpec:
        """The class as the engine sees it.

        Raises:
            TypeError: An annotation has an unknown name, or a type that msgspec cannot encode.
        """
        if self._spec is None:
            self._spec = self._resolve()
            self._scope.forget()
        return self._spec

    def written(self, owner: type) -> Written:
        """Return the annotations of the class, or of one above it.

        Raises:
            UnknownName: One contains a name that is not defined (yet).
        """
        if owner is self.cls:
            if self._written is None:
                self._written = read_annotations(owner, self._scope.names())
            return self._written
        declaration: Declaration | None = vars(owner).get("__declaration__")
        if declaration is not None:
            return declaration.written(owner)
        # A class of another module does not see the names around this one.
        names = self._scope.names() if owner.__module__ == self.cls.__module__ else {}
        return read_annotations(owner, names)

    def try_resolve(self) -> None:
        """Resolve the types now if all names are known already, so that mistakes show at class definition."""
        try:
            _ = self.spec
        except UnknownName:
            return

    def _resolve(self) -> EntitySpec:
        options, cls = self.options, self.cls
        types = DeclaredTypes(cls, self.written)
        state_type = types.state()
        state = None if state_type is None else checked_codec(state_type, f"{options.name}: state")
        if isinstance(options, EntityOptions) and state is not None and options.concurrency > 1:
            raise TypeError(
                f"{cls.__name__}: concurrency={options.concurrency} needs an Entity without state, because the state "
                f"cannot be rolled back for one of several handlers: remove concurrency, or [{state_type!r}]"
            )
        spec = EntitySpec(
            name=options.name,
            handlers={name: self._handler(name, function, types) for name, function in self.handlers.items()},
            state=state,
            initial_state=initial_state_of(cls, state_type, state),
            shard_group=options.shard_group,
            mailbox_capacity=options.mailbox_capacity,
            on_activate=self._hook("on_activate", types),
            on_deactivate=self._hook("on_deactivate", types),
        )
        if isinstance(options, EntityOptions):
            return dataclasses.replace(
                spec, concurrency=options.concurrency, max_idle=options.max_idle, shard_key=options.shard_key
            )
        main_loop = self._hook("run", types)
        return dataclasses.replace(
            spec,
            singleton_id=options.name,
            state_ttl=_seconds(options.state_ttl),
            on_become_leader=self._hook("on_become_leader", types),
            on_lose_leadership=self._hook("on_lose_leadership", types),
            main_loop=None if main_loop is None else dataclasses.replace(main_loop, interleaved=True),
        )

    def _hook(self, name: str, types: DeclaredTypes) -> HandlerSpec | None:
        function = getattr(self.cls, name)
        ours = getattr(next(c for c in self.cls.__mro__ if c.__module__ in OURS), name)
        if function is ours:
            return None
        return dataclasses.replace(self._handler(name, ours, types), function=function)

    def _handler(self, name: str, function: Callable[..., Any], declared: DeclaredTypes) -> HandlerSpec:
        options = options_of(self.cls, name)
        what = f"{self.options.name}.{name}"
        hints = declared.of_handler(name, function)
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())[1:]
        types = tuple(hints[p.name] for p in parameters)
        stream = inspect.isasyncgenfunction(function)
        crons = self._crons(name, function, options, types)
        arguments = checked_codec(tuple_type(types), f"{what}: arguments")
        defaults = checked_defaults(what, parameters, types)
        result = result_type(hints["return"], what, stream=stream)
        run = positional(function, parameters)
        return HandlerSpec(
            entity_type=self.options.name,
            name=name,
            function=cron_function(run) if crons else run,
            parameters=tuple(p.name for p in parameters),
            defaults=defaults,
            by_position=sum(p.kind is not p.KEYWORD_ONLY for p in parameters),
            bind=binder(signature, name),
            arguments=arguments,
            leading=tuple(
                Codec(tuple_type(types[: len(types) - missing]), f"{what}: arguments")
                for missing in range(1, len(defaults) + 1)
            ),
            named=named_codec(what, parameters, types),
            # The run of a fire time that is skipped has no result.
            result=checked_codec(result | None if crons and result is not None else result, f"{what}: result"),
            stream=stream,
            readonly=options.readonly,
            reentrant=options.reentrant,
            timeout=_seconds(options.timeout),
            durable=options.durable or bool(crons),
            retry=crons[0].retry if crons else options.retry or DEFAULT_RETRY,
            retention=_seconds(_retention(options, crons)),
            cancel_grace=(
                DEFAULT_CANCEL_GRACE if options.cancel_grace is None else options.cancel_grace
            ).total_seconds(),
            interleaved=bool(crons) and crons[0].overlap == "allow",
            singleton=isinstance(self.options, SingletonOptions),
            crons=crons,
        )

    def _crons(
        self, name: str, function: Callable[..., Any], options: HandlerOptions, types: tuple[Any, ...]
    ) -> tuple[CronOptions, ...]:
        """Return the schedules of a method, named in order from top to bottom."""
        declared = crons_of(self.cls, name)
        if not declared:
            return ()
        where = f"{self.cls.__name__}.{name}"
        if isinstance(self.options, EntityOptions):
            raise TypeError(f"{where}: @cron is for methods of a Singleton: move the schedule to one, or remove @cron")
        if inspect.isasyncgenfunction(function) or types != (datetime,):
            raise TypeError(
                f"{where}: a method with @cron takes the fire time only: write `async def {name}(self, at: datetime)`"
            )
        if options.readonly or options.reentrant or options.retry is not None:
            raise TypeError(
                f"{where}: @handler(readonly, reentrant, retry) cannot be combined with @cron, which has its own retry"
            )
        if any((cron.overlap, cron.retry) != (declared[0].overlap, declared[0].retry) for cron in declared):
            raise TypeError(f"{where}: all @cron of one method must have the same overlap and retry")
        return tuple(
            msgspec.structs.replace(cron, name=name if number == 1 else f"{name}-{number}")
            for number, cron in enumerate(declared, start=1)
        )


def declare(cls: type, kind: type[OptionsT], given: Mapping[str, object], frame: types.FrameType | None) -> Declaration:
    """Check the class of an entity or singleton and return its declaration.

    Args:
        cls: The class.
        kind: What options it has.
        given: Those of its class statement by name; `UNSET`, or `None` for the name, where it gives none.
        frame: Of the class statement: annotations can use names that exist only there.

    Raises:
        TypeError: The class is not valid. The text names what is wrong and says what to write instead.
    """
    options = class_options(cls, kind, given)
    kinds = [
        base.__name__ for base in cls.__mro__ if base.__module__ in OURS and base.__name__ in ("Entity", "Singleton")
    ]
    if len(kinds) > 1:
        raise TypeError(f"{cls.__name__} is both an Entity and a Singleton: derive it from one of them")
    handlers = handlers_of(cls, options.hooks)
    declaration = Declaration(cls, options, handlers, ClassScope(cls, frame))
    declaration.try_resolve()
    return declaration


def spec_of(declared: object) -> EntitySpec:
    """Return what the engine knows about the class of an entity or singleton.

    Raises:
        TypeError: It is not such a class, or its types cannot be resolved.
    """
    # Of the class, as far as it is an instance: `declared` may be anything, whose attributes do anything.
    declaration = getattr(declared if is_of(declared, type) else type(declared), "__declaration__", None)
    if is_of(declared, type) and declaration is not None:
        spec: EntitySpec = declaration.spec
        return spec
    if declaration is not None:
        name = short_name_of(type(declared))
        raise TypeError(f"an instance of {name} was given: give the class, {name}")
    if hasattr(_origin(declared), "__declaration__"):
        raise TypeError(f"{declared} has no name: declare a class of it, as in class Name({declared}): ...")
    raise TypeError(f"{shown(declared)} is not a class of entities: give a subclass of Entity or Singleton")


def _origin(declared: object) -> object:
    try:
        return typing.get_origin(declared)
    except Exception:  # noqa: BLE001 - user code: it may lie about its class
        return None


def _retention(options: HandlerOptions, crons: tuple[CronOptions, ...]) -> timedelta | None:
    """Return how long keys are kept. The key of a fire time is kept until the fire time is too old to run."""
    least = max((cron.skip_if_older_than + _KEY_MARGIN for cron in crons), default=None)
    return options.retention if least is None else max(least, options.retention or least)


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()
