"""What annotations mean: names are looked up where a class was written, type variables are what its subclasses set."""

import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeAlias, TypeVar

from typing_extensions import NoDefault, get_original_bases

WHAT_TO_DO: Final = "define it, or import it outside of `if TYPE_CHECKING:`, before the hub registers the class"

Bases: TypeAlias = list[tuple[type, tuple[Any, ...]]]
"""The bases in a class statement, each with its type arguments."""
TypeArguments: TypeAlias = Mapping[type, Mapping[Any, Any]]
"""What a class, and each class above it, has in place of its type variables."""


class UnknownName(TypeError):
    """An annotation contains a name that is not defined yet, or a type variable that subclasses are yet to set."""


class ClassScope:
    """The names around a class statement.

    Those of a function are looked up only when they are needed, so that a class can name one that is defined further
    down. Until `forget` it keeps the frame of the function.
    """

    def __init__(self, cls: type, frame: types.FrameType | None) -> None:
        """Find the class statement among the callers.

        Args:
            cls: A class that is just being made.
            frame: The frame that makes it: the one of its class statement, or that of a metaclass or a subclass's
                `__init_subclass__`, which the class statement calls.
        """
        self._places: list[types.FrameType | Mapping[str, Any]] = [
            found if found.f_code.co_flags & inspect.CO_OPTIMIZED else found.f_locals
            for found in _frames_around(cls, frame)
        ]

    def names(self) -> dict[str, Any]:
        """Return the names, as they are now."""
        names: dict[str, Any] = {}
        for place in reversed(self._places):
            names.update(place.f_locals if isinstance(place, types.FrameType) else place)
        return names

    def forget(self) -> None:
        """Let the frames go. There are no names from then on."""
        self._places.clear()


def _frames_around(cls: type, frame: types.FrameType | None) -> list[types.FrameType]:
    """Return the frame of the class statement, after that of its type parameters (PEP 695) if it has some."""
    around = cls.__qualname__.rpartition(".")[0].removesuffix(".<locals>") or "<module>"
    found: list[types.FrameType] = []
    caller = frame
    while caller is not None:
        code = caller.f_code
        if code.co_name == f"<generic parameters of {cls.__name__}>":
            found.append(caller)
        elif code.co_qualname == around and caller.f_globals.get("__name__") == cls.__module__:
            return [*found, caller]
        caller = caller.f_back
    return [frame] if frame is not None else []


def resolved(
    owner: type,
    annotations: Mapping[str, Any],
    *,
    names: Mapping[str, Any],
    what: str,
    module: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return annotations of a class with every name in them looked up, quoted or not, at any depth.

    Args:
        owner: The class. The classes within it and its type parameters are known by their names.
        annotations: By name.
        names: Names around the class.
        what: What the annotations belong to, for error messages.
        module: Names of the module in which they were written; by default of the class's.

    Raises:
        UnknownName: A name is not defined (yet).
        TypeError: An annotation is not valid.
    """
    if module is None:
        module = vars(sys.modules[owner.__module__]) if owner.__module__ in sys.modules else {}
    known = {name: value for name, value in vars(owner).items() if isinstance(value, type)} | dict(names)
    known |= {parameter.__name__: parameter for parameter in getattr(owner, "__type_params__", ())}
    known[owner.__name__] = owner
    holder = type("holder", (), {"__annotations__": dict(annotations)})
    try:
        return typing.get_type_hints(holder, dict(module), known, include_extras=True)
    except (NameError, AttributeError) as exc:
        raise UnknownName(f"{what}: {exc}: {WHAT_TO_DO}") from exc
    except Exception as exc:
        raise TypeError(f"{what}: {exc}") from exc


def bases_of(owner: type, names: Mapping[str, Any]) -> Bases:
    """Return the bases in a class statement.

    Raises:
        UnknownName: A type argument contains a name that is not defined (yet).
    """
    found: Bases = []
    for base in get_original_bases(owner):
        origin = typing.get_origin(base) or base
        if isinstance(origin, type) and origin not in (Generic, Protocol):
            arguments = {str(place): argument for place, argument in enumerate(typing.get_args(base))}
            found.append((origin, tuple(resolved(owner, arguments, names=names, what=owner.__name__).values())))
    return found


def type_arguments(cls: type, bases: Callable[[type], Bases]) -> TypeArguments:
    """Return what a class has in place of the type variables of the classes above it. It keeps its own ones.

    Raises:
        TypeError: One of the classes above it would have two different arguments, or has a kind of type variable that
            stands for more than one type.
    """
    found: dict[type, dict[Any, Any]] = {}
    given: set[type] = {cls}
    """Classes whose type variables are set by an argument, not by a default."""

    def visit(owner: type, known: dict[Any, Any]) -> None:
        found[owner] = known
        for base, arguments in bases(owner):
            is_given = owner in given and bool(arguments or not getattr(base, "__parameters__", ()))
            if base in found and not is_given:
                continue
            values = _values_of(base, arguments, known)
            if base in given and values != found[base]:
                one, other = (" and ".join(map(type_name, by.values())) for by in (found[base], values))
                raise TypeError(f"{cls.__name__}: it inherits {base.__name__} twice, of {one} and of {other}: keep one")
            if is_given:
                given.add(base)
            visit(base, values)

    visit(cls, _values_of(cls, (), {}))
    return found


def _values_of(cls: type, arguments: tuple[Any, ...], known: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return what the type variables of a generic class stand for: an argument, a default, or still themselves."""
    variables: tuple[Any, ...] = getattr(cls, "__parameters__", ())
    values: dict[Any, Any] = {}
    for place, variable in enumerate(variables):
        if not isinstance(variable, TypeVar):
            raise TypeError(f"{cls.__name__}: {variable} stands for more than one type: use a TypeVar for each")
        if place < len(arguments):
            values[variable] = substitute(arguments[place], known)
        else:
            default = getattr(variable, "__default__", NoDefault)
            values[variable] = variable if default is NoDefault else substitute(default, values)
    return values


def substitute(type_: Any, values: Mapping[Any, Any]) -> Any:
    """Return a type with its type variables replaced."""
    if isinstance(type_, TypeVar):
        return values.get(type_, type_)
    variables = free_variables(type_)
    return type_[tuple(values.get(variable, variable) for variable in variables)] if variables else type_


def free_variables(type_: Any) -> tuple[Any, ...]:
    """Return the type variables in a type."""
    if isinstance(type_, TypeVar | ParamSpec):
        return (type_,)
    return () if isinstance(type_, type) else tuple(getattr(type_, "__parameters__", ()))


def type_name(type_: Any) -> str:
    """Return a type as it is written."""
    return type_.__qualname__ if isinstance(type_, type) and not typing.get_args(type_) else repr(type_)
