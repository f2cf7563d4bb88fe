"""From a user's class to the spec that the engine uses: a check at class definition, and the resolution of types."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from actorhub._resolution import (
    OURS,
    DeclaredTypes,
    Written,
    binder,
    checked_codec,
    initial_state_of,
    item_type,
    named_codec,
    positional,
    read_annotations,
    tuple_type,
)
from actorhub.core.address import NAME_PATTERN
from actorhub.core.codec import Codec
from actorhub.core.cron import CronOptions
from actorhub.core.retry import DEFAULT_RETRY, Retry
from actorhub.core.type_hints import Scope, UnknownName
from actorhub.engine.model.spec import EntitySpec, HandlerSpec
from actorhub.engine.singletons.cron_runs import cron_function

_OPTIONS: Final = "__actorhub_handler__"
_CRONS: Final = "__actorhub_crons__"
_ENTITY_HOOKS: Final = ("on_activate", "on_deactivate")
_SINGLETON_HOOKS: Final = (*_ENTITY_HOOKS, "on_become_leader", "on_lose_leadership", "run")
_ENTITY_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
_LONGEST_RETENTION: Final = timedelta(days=36_500)
_KEY_MARGIN: Final = timedelta(hours=1)
"""How much longer the key of a fire time is kept than the fire time can still run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerOptions:
    """The options of `@handler(...)`."""

    durable: bool = False
    retry: Retry | None = None
    retention: timedelta | None = None
    readonly: bool = False
    reentrant: bool = False
    timeout: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityOptions:
    """The options in the class statement of an entity."""

    name: str
    shard_group: str
    mailbox_capacity: int
    concurrency: int
    max_idle: timedelta
    shard_key: Callable[[str], str] | None

    @property
    def hooks(self) -> tuple[str, ...]:
        """Methods that are not handlers."""
        return _ENTITY_HOOKS


@dataclass(frozen=True, slots=True, kw_only=True)
class SingletonOptions:
    """The options in the class statement of a singleton."""

    name: str
    shard_group: str
    mailbox_capacity: int
    state_ttl: timedelta | None

    @property
    def hooks(self) -> tuple[str, ...]:
        """Methods that are not handlers."""
        return _SINGLETON_HOOKS


class Declaration:
    """The checked class of an entity or singleton. `spec` resolves its types at the first use, when names are known."""

    def __init__(
        self,
        cls: type,
        options: EntityOptions | SingletonOptions,
        handlers: Mapping[str, Callable[..., Any]],
        scope: Scope,
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
        options: HandlerOptions = getattr(function, _OPTIONS, HandlerOptions())
        what = f"{self.options.name}.{name}"
        hints = declared.of_handler(name, function)
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())[1:]
        types = tuple(hints[p.name] for p in parameters)
        defaults = tuple(p.default for p in parameters if p.default is not p.empty)
        stream = inspect.isasyncgenfunction(function)
        crons = self._crons(name, function, options, types)
        result = item_type(hints["return"], what) if stream else hints["return"]
        run = positional(function, parameters)
        return HandlerSpec(
            entity_type=self.options.name,
            name=name,
            function=cron_function(run) if crons else run,
            parameters=tuple(p.name for p in parameters),
            defaults=defaults,
            by_position=sum(p.kind is not p.KEYWORD_ONLY for p in parameters),
            bind=binder(signature, name),
            arguments=checked_codec(tuple_type(types), f"{what}: arguments"),
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
            interleaved=bool(crons) and crons[0].overlap == "allow",
            singleton=isinstance(self.options, SingletonOptions),
            crons=crons,
        )

    def _crons(
        self, name: str, function: Callable[..., Any], options: HandlerOptions, types: tuple[Any, ...]
    ) -> tuple[CronOptions, ...]:
        """Return the schedules of a method, named in order from top to bottom."""
        declared: list[CronOptions] = list(reversed(getattr(function, _CRONS, [])))
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


def declare(cls: type, options: EntityOptions | SingletonOptions, scope: Scope) -> Declaration:
    """Check the class of an entity or singleton and return its declaration.

    Raises:
        TypeError: The class is not valid. The text names what is wrong and says what to write instead.
    """
    _check_options(cls, options)
    handlers: dict[str, Callable[..., Any]] = {}
    for owner in reversed(_user_classes(cls)):
        for name, value in vars(owner).items():
            if not name.startswith("_") and name not in options.hooks:
                _check_public(cls, name, value)
                if inspect.isfunction(value):
                    handlers[name] = value
        for name in inspect.get_annotations(owner):
            if not name.startswith("_") and not name.isupper() and name not in handlers:
                raise TypeError(
                    f"{cls.__name__}.{name}: callers cannot reach public attributes of an entity: "
                    f"rename it to _{name}, or keep it in the state"
                )
    for hook in options.hooks:
        _check_hook(cls, hook)
    declaration = Declaration(cls, options, handlers, scope)
    declaration.try_resolve()
    return declaration


def snake_case(name: str) -> str:
    """Return a class name in snake case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def attach_options(function: Callable[..., Any], options: HandlerOptions) -> None:
    """Attach the options of `@handler(...)` to the function.

    Raises:
        TypeError: An option is not valid, or the function is private and therefore not a handler.
    """
    name = getattr(function, "__qualname__", repr(function))
    if options.timeout is not None and options.timeout <= timedelta(0):
        raise TypeError(f"{name}: timeout={options.timeout} must be more than zero")
    if getattr(function, "__name__", "").startswith("_"):
        raise TypeError(
            f"{name}: @handler on a private method, which callers cannot reach: rename it, or drop @handler"
        )
    _check_durable(name, options)
    setattr(function, _OPTIONS, options)


def attach_cron(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Attach the options of `@cron(...)` to the function.

    Raises:
        TypeError: A value is not valid, or the function is private and therefore not a handler.
    """
    where = getattr(function, "__qualname__", repr(function))
    if getattr(function, "__name__", "").startswith("_"):
        raise TypeError(f"{where}: @cron on a private method, which is not a handler: rename it")
    try:
        options = CronOptions(**values)
    except (TypeError, ValueError) as exc:
        raise TypeError(f"{where}: @cron: {exc}") from exc
    setattr(function, _CRONS, [*getattr(function, _CRONS, []), options])


def _retention(options: HandlerOptions, crons: tuple[CronOptions, ...]) -> timedelta | None:
    """Return how long keys are kept. The key of a fire time is kept until the fire time is too old to run."""
    least = max((cron.skip_if_older_than + _KEY_MARGIN for cron in crons), default=None)
    return options.retention if least is None else max(least, options.retention or least)


def _check_durable(where: str, options: HandlerOptions) -> None:
    if not options.durable:
        for name in ("retry", "retention"):
            if getattr(options, name) is not None:
                raise TypeError(f"{where}: {name}=... is for durable handlers: add durable=True, or remove {name}")
        return
    if options.readonly:
        raise TypeError(
            f"{where}: a durable handler commits its reply, so it cannot be readonly: remove durable or readonly"
        )
    if options.reentrant:
        raise TypeError(
            f"{where}: a durable handler has a commit of its own, so it cannot run within another handler: "
            "remove durable or reentrant"
        )
    retention = options.retention
    if retention is not None and not timedelta(0) < retention <= _LONGEST_RETENTION:
        raise TypeError(
            f"{where}: retention={retention} must be more than zero, and at most {_LONGEST_RETENTION.days} days"
        )


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


def _user_classes(cls: type) -> list[type]:
    return [c for c in cls.__mro__ if c is not object and c.__module__ not in (*OURS, "typing", "typing_extensions")]


def _check_options(cls: type, options: EntityOptions | SingletonOptions) -> None:
    where = cls.__name__
    if not _ENTITY_NAME.fullmatch(options.name):
        raise TypeError(f"{where}: name={options.name!r} must be a letter, then up to 99 letters, digits, _ . or -")
    if not NAME_PATTERN.fullmatch(options.shard_group):
        raise TypeError(f"{where}: shard_group={options.shard_group!r} must match {NAME_PATTERN.pattern}")
    if options.mailbox_capacity < 1:
        raise TypeError(f"{where}: mailbox_capacity={options.mailbox_capacity} must be at least 1")
    if isinstance(options, SingletonOptions):
        if options.state_ttl is not None and options.state_ttl <= timedelta(0):
            raise TypeError(f"{where}: state_ttl={options.state_ttl} must be more than zero")
        return
    if options.concurrency < 1:
        raise TypeError(f"{where}: concurrency={options.concurrency} must be at least 1")
    if options.max_idle <= timedelta(0):
        raise TypeError(f"{where}: max_idle={options.max_idle} must be more than zero")


def _check_hook(cls: type, name: str) -> None:
    function = getattr(cls, name)
    if not inspect.iscoroutinefunction(function) or len(inspect.signature(function).parameters) != 1:
        raise TypeError(f"{cls.__name__}.{name} must be `async def {name}(self) -> None`")
    for mark, attribute in (("@handler", _OPTIONS), ("@cron", _CRONS)):
        if hasattr(function, attribute):
            raise TypeError(f"{cls.__name__}.{name}: {mark} is for handlers, and {name} is a hook: use another name")


def _check_public(cls: type, name: str, value: object) -> None:
    where = f"{cls.__name__}.{name}"
    if name in ("state", "save"):
        raise TypeError(f"{where}: this name belongs to Entity: choose another one")
    if name.isupper():
        return
    if not inspect.isfunction(value):
        raise TypeError(
            f"{where}: public names of an entity are handlers (async methods) or UPPER_CASE constants: "
            f"write `async def {name}(self, ...)`, or rename it to _{name}"
        )
    if not (inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value)):
        raise TypeError(f"{where} is not async: write `async def {name}(...)`, or rename it to _{name}")
    parameters = list(inspect.signature(value).parameters.values())
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise TypeError(f"{where}: its first parameter must be self")
    for parameter in parameters[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{where}: *{parameter.name} cannot be sent over the wire: name each parameter")
        if parameter.annotation is parameter.empty:
            raise TypeError(
                f"{where}: annotate {parameter.name}, for example `{parameter.name}: str`: arguments are validated"
            )
    if inspect.signature(value).return_annotation is inspect.Signature.empty:
        raise TypeError(f"{where}: annotate the result, for example `-> None`: results are validated")
