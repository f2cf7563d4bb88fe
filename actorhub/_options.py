"""What may be declared besides types: the options of `@handler`, `@cron` and class statements, each checked at once."""

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import msgspec

from actorhub.core.address import NAME_PATTERN
from actorhub.core.cron import CronOptions
from actorhub.core.option_types import LONGEST, check_duration, check_record
from actorhub.core.retry import Retry

_OPTIONS: Final = "__actorhub_handler__"
_CRONS: Final = "__actorhub_crons__"
_ENTITY_HOOKS: Final = ("on_activate", "on_deactivate")
HOOKS: Final = (*_ENTITY_HOOKS, "on_become_leader", "on_lose_leadership", "run")
"""Methods of a singleton that actorhub calls; those of an entity are the first two."""
_ENTITY_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
_LONGEST_GRACE: Final = timedelta(hours=1)
_MOST_MESSAGES: Final = 1_000_000_000
_PLACEMENT: Final = ("shard_group", "shard_key")
"""Where the entities of a class live. A change of these moves all of them, so nothing changes them in silence."""

OptionsT = TypeVar("OptionsT", "EntityOptions", "SingletonOptions")


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerOptions:
    """The options of `@handler(...)`."""

    durable: bool = False
    retry: Retry | None = None
    retention: timedelta | None = None
    cancel_grace: timedelta | None = None
    readonly: bool = False
    reentrant: bool = False
    timeout: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityOptions:
    """The options in the class statement of an entity."""

    name: str
    shard_group: str = "default"
    mailbox_capacity: int = 4096
    concurrency: int = 1
    max_idle: timedelta = timedelta(minutes=1)
    shard_key: Callable[[str], str] | None = None

    @property
    def hooks(self) -> tuple[str, ...]:
        """Methods that are not handlers."""
        return _ENTITY_HOOKS


@dataclass(frozen=True, slots=True, kw_only=True)
class SingletonOptions:
    """The options in the class statement of a singleton."""

    name: str
    shard_group: str = "default"
    mailbox_capacity: int = 4096
    state_ttl: timedelta | None = None

    @property
    def hooks(self) -> tuple[str, ...]:
        """Methods that are not handlers."""
        return HOOKS


def class_options(cls: type, kind: type[OptionsT], given: Mapping[str, object]) -> OptionsT:
    """Return the options of a class: what its statement gives, else what its base class has, else the defaults.

    Raises:
        TypeError: An option is not valid, or says nothing of where the entities live though the base class does.
    """
    options: Any = getattr(getattr(cls, "__declaration__", None), "options", None)  # still that of the base class
    base = options if isinstance(options, kind) else None
    values: dict[str, Any] = {"name": snake_case(cls.__name__)} if given["name"] is None else {"name": given["name"]}
    for field in dataclasses.fields(kind)[1:]:
        value = given[field.name]
        if value is msgspec.UNSET and base is not None:
            value = getattr(base, field.name)
            if field.name in _PLACEMENT and value != field.default:
                raise TypeError(
                    f"{cls.__name__}: its base class has {field.name}={value!r}, which says where entities live and is "
                    f"not inherited: write class {cls.__name__}(..., {field.name}=...) with this value or another"
                )
        values[field.name] = field.default if value is msgspec.UNSET else value
    made: OptionsT = kind(**values)
    _check_class_options(cls.__name__, made)
    return made


def check_keywords(cls: type, unknown: Mapping[str, object], kind: type[EntityOptions | SingletonOptions]) -> None:
    """Refuse class keywords that nobody takes.

    Raises:
        TypeError: There are some. The text says what the first one may have meant.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    for name in unknown:
        near = difflib.get_close_matches(name, known, n=1)
        of_entities = name in {field.name for field in dataclasses.fields(EntityOptions)}
        meant = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
        raise TypeError(
            f"{cls.__name__}: {name}= is not a class keyword of "
            f"{'a Singleton, only of an Entity' if of_entities else 'entities and singletons'}: {meant}"
        )


def snake_case(name: str) -> str:
    """Return a class name in snake case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def attach_options(function: Callable[..., Any], options: HandlerOptions) -> None:
    """Attach the options of `@handler(...)` to the function.

    Raises:
        TypeError: An option is not valid, or what is decorated cannot be a handler.
    """
    where = _check_decorated(function, "@handler")
    check_record(where, options)
    if _OPTIONS in vars(function):
        raise TypeError(f"{where}: two @handler on one method: give all options in one")
    _check_in(where, "timeout", options.timeout)
    _check_durable(where, options)
    setattr(function, _OPTIONS, options)


def attach_cron(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Attach the options of `@cron(...)` to the function.

    Raises:
        TypeError: A value is not valid, or what is decorated cannot be a handler.
    """
    where = _check_decorated(function, "@cron")
    try:
        options = CronOptions(**values)
    except (TypeError, ValueError) as exc:
        raise TypeError(f"{where}: @cron: {exc}") from exc
    setattr(function, _CRONS, [*getattr(function, _CRONS, []), options])


def options_of(cls: type, name: str) -> HandlerOptions:
    """Return the options of a handler: of the nearest definition of the method that has a decorator, base classes last.

    So a method that overrides another keeps its options, unless it has a decorator of its own.
    """
    found: HandlerOptions = _mark_of(cls, name, _OPTIONS, HandlerOptions())
    return found


def crons_of(cls: type, name: str) -> list[CronOptions]:
    """Return the schedules of a method, from top to bottom; an override without a schedule keeps that of its base."""
    return list(reversed(_mark_of(cls, name, _CRONS, [])))


def mark_on(function: object) -> str | None:
    """Return which decorator of ours a function has itself."""
    return next((mark for mark, name in (("@handler", _OPTIONS), ("@cron", _CRONS)) if hasattr(function, name)), None)


def _mark_of(cls: type, name: str, mark: str, default: Any) -> Any:
    definitions = (vars(owner)[name] for owner in cls.__mro__ if name in vars(owner))
    return next((getattr(function, mark) for function in definitions if hasattr(function, mark)), default)


def _check_decorated(function: object, decorator: str) -> str:
    """Return the name of what is decorated, after a check that it can be a handler."""
    where = str(getattr(function, "__qualname__", None) or repr(function))
    if (found := _not_a_function(function)) is not None:
        raise TypeError(f"{where}: {decorator} is for async methods, and this is a {found}")
    if not (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
        raise TypeError(f"{where} is not async: write `async def`, also in a decorator between it and {decorator}")
    if getattr(function, "__name__", "").startswith("_"):
        raise TypeError(
            f"{where}: {decorator} on a private method, which callers cannot reach: rename it, or drop {decorator}"
        )
    return where


def _not_a_function(decorated: object) -> str | None:
    kind = type(decorated).__name__
    if isinstance(decorated, type):
        return "class: put it on the methods"
    if isinstance(decorated, staticmethod | classmethod):
        return f"{kind}: remove @{kind}, since a handler belongs to one entity"
    if isinstance(decorated, property):
        return "property: remove @property, since callers can only call"
    return None if inspect.isfunction(decorated) else f"{kind}: write `async def`"


def _check_in(where: str, name: str, value: timedelta | None) -> None:
    try:
        check_duration(name, value)
    except ValueError as exc:
        raise TypeError(f"{where}: {exc}") from None


def _check_durable(where: str, options: HandlerOptions) -> None:
    if not options.durable:
        for name in ("retry", "retention", "cancel_grace"):
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
    grace = options.cancel_grace
    if grace is not None and not timedelta(0) < grace <= _LONGEST_GRACE:
        raise TypeError(f"{where}: cancel_grace={grace} must be more than zero, and at most {_LONGEST_GRACE}")
    retention = options.retention
    if retention is not None and not timedelta(0) < retention <= LONGEST:
        raise TypeError(f"{where}: retention={retention} must be more than zero, and at most {LONGEST.days} days")


def _check_class_options(where: str, options: EntityOptions | SingletonOptions) -> None:
    check_record(where, options)
    if not _ENTITY_NAME.fullmatch(options.name):
        raise TypeError(f"{where}: name={options.name!r} must be a letter, then up to 99 letters, digits, _ . or -")
    if not NAME_PATTERN.fullmatch(options.shard_group):
        raise TypeError(f"{where}: shard_group={options.shard_group!r} must match {NAME_PATTERN.pattern}")
    _check_count(where, "mailbox_capacity", options.mailbox_capacity)
    if isinstance(options, SingletonOptions):
        _check_in(where, "state_ttl", options.state_ttl)
        return
    _check_count(where, "concurrency", options.concurrency)
    _check_in(where, "max_idle", options.max_idle)
    if options.shard_key is not None:
        _check_shard_key(where, options.shard_key)


def _check_count(where: str, name: str, value: int) -> None:
    if not 1 <= value <= _MOST_MESSAGES:
        raise TypeError(f"{where}: {name}={value} must be at least 1, and at most {_MOST_MESSAGES:,}")


def _check_shard_key(where: str, function: Callable[[str], str]) -> None:
    instead = "write a plain function of the id, as in shard_key=lambda entity_id: entity_id.split('/')[0]"
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"{where}: shard_key={function.__qualname__} returns no text but something to await: {instead}")
    try:
        inspect.signature(function).bind("id")
    except ValueError:
        return  # A built-in without a signature.
    except TypeError as exc:
        raise TypeError(f"{where}: shard_key cannot be called with one id ({exc}): {instead}") from exc
