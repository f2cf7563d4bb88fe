"""What the body of a class may contain: each public method is a handler or a hook, and each is checked at once."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from types import CellType
from typing import Any, Final

from actorhub._options import HOOKS, mark_on
from actorhub._resolution import OURS

_ALIKE: Final = 0.8
"""How similar the name of a method must be to that of a hook to be taken for a misspelt one."""
_LONGEST_NAME: Final = 255
_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def handlers_of(cls: type, hooks: Iterable[str]) -> dict[str, Callable[..., Any]]:
    """Check the body of a class, and of its bases, and return the handlers by name.

    Raises:
        TypeError: A member cannot be what it is. The text names it, and says what to write instead.
    """
    handlers: dict[str, Callable[..., Any]] = {}
    for owner in reversed(user_classes(cls)):
        for name, value in vars(owner).items():
            if not name.startswith("_") and name not in hooks:
                if name.isupper() and not _is_async(value):
                    continue  # a constant
                handlers[name] = _checked_handler(cls, name, value)
                _check_not_misspelt(cls, name, handlers[name], hooks)
        if inspect.iscoroutinefunction(vars(owner).get("__init__")):
            raise TypeError(f"{cls.__name__}.__init__ cannot be async: await what it needs in on_activate")
        _check_annotations(cls, owner, handlers)
    for hook in hooks:
        _check_hook(cls, hook)
    return handlers


def user_classes(cls: type) -> list[type]:
    """Return the classes that users wrote, from the class itself to its bases."""
    return [c for c in cls.__mro__ if c is not object and c.__module__ not in (*OURS, "typing", "typing_extensions")]


def _check_annotations(cls: type, owner: type, handlers: dict[str, Callable[..., Any]]) -> None:
    for name in inspect.get_annotations(owner):
        if name in ("state", "save"):
            raise TypeError(
                f"{cls.__name__}.{name}: this name belongs to Entity: its type is what stands in Entity[...]"
            )
        if not name.startswith("_") and not name.isupper() and name not in handlers:
            raise TypeError(
                f"{cls.__name__}.{name}: callers cannot reach public attributes of an entity: "
                f"rename it to _{name}, or keep it in the state"
            )


def _check_hook(cls: type, name: str) -> None:
    where = f"{cls.__name__}.{name}"
    function = inspect.getattr_static(cls, name)
    if mark := mark_on(function):
        raise TypeError(f"{where}: {mark} is for handlers, and {name} is a hook: use another name")
    if not inspect.iscoroutinefunction(function) or not _takes_self_alone(function):
        raise TypeError(f"{where} must be `async def {name}(self) -> None`")


def _takes_self_alone(function: Callable[..., Any]) -> bool:
    return len(inspect.signature(function).parameters) == 1


def _check_not_misspelt(cls: type, name: str, function: Callable[..., Any], hooks: Iterable[str]) -> None:
    """Refuse a handler that looks as if it was meant to be a hook: actorhub would never call it."""
    plain = name.replace("_", "").lower()
    if not plain.startswith("on") or not _takes_self_alone(function) or inspect.isasyncgenfunction(function):
        return
    similar = {
        hook: difflib.SequenceMatcher(None, plain, hook.replace("_", "")).ratio() for hook in HOOKS if hook != "run"
    }
    nearest = max(similar, key=similar.__getitem__)
    if similar[nearest] < _ALIKE:
        return
    if nearest in hooks:
        raise TypeError(
            f"{cls.__name__}.{name} looks like the hook {nearest}, but is a handler, which only callers call: "
            f"rename it to {nearest}, or if it is a handler, give it a name that is not so similar"
        )
    raise TypeError(
        f"{cls.__name__}.{name}: only a Singleton has the hook {nearest}: use on_activate, or derive from Singleton"
    )


def _checked_handler(cls: type, name: str, value: object) -> Callable[..., Any]:
    where = f"{cls.__name__}.{name}"
    if name in ("state", "save"):
        raise TypeError(f"{where}: this name belongs to Entity: choose another one")
    if len(name) > _LONGEST_NAME:
        raise TypeError(f"{where[:80]}…: a handler's name has at most {_LONGEST_NAME} characters: choose a shorter one")
    if not inspect.isfunction(value):
        raise TypeError(
            f"{where}: public names of an entity are handlers (async methods) or UPPER_CASE constants: "
            f"write `async def {name}(self, ...)`, or rename it to _{name}"
        )
    _check_decorators(where, name, value)
    if not _is_async(value):
        raise TypeError(f"{where} is not async: write `async def {name}(...)`, or rename it to _{name}")
    _check_signature(where, inspect.signature(value))
    return value


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _check_decorators(where: str, name: str, function: Callable[..., Any]) -> None:
    """Refuse what a decorator made of a method, where the method can no longer be seen behind it."""
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is not None:
        for is_kind, kind in ((inspect.iscoroutinefunction, "await"), (inspect.isasyncgenfunction, "yield")):
            if is_kind(wrapped) and not is_kind(function):
                raise TypeError(
                    f"{where}: its decorator makes another kind of function of it: in the decorator, write the inner "
                    f"function as an `async def` with `{kind}`, as the method is one"
                )
    elif function.__name__ != name and any(_name_in(cell) == name for cell in function.__closure__ or ()):
        raise TypeError(
            f"{where} is the function {function.__qualname__}, so its decorator hides the method: in the decorator, "
            "put @functools.wraps(function) before the inner function"
        )


def _name_in(cell: CellType) -> str | None:
    try:
        return getattr(cell.cell_contents, "__name__", None)
    except ValueError:
        return None  # not assigned yet


def _check_signature(where: str, signature: inspect.Signature) -> None:
    parameters = list(signature.parameters.values())
    if not parameters or parameters[0].kind not in _POSITIONAL:
        raise TypeError(f"{where}: its first parameter must be self")
    for parameter in parameters[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{where}: *{parameter.name} cannot be sent over the wire: name each parameter")
        if parameter.annotation is parameter.empty:
            raise TypeError(
                f"{where}: annotate {parameter.name}, for example `{parameter.name}: str`: arguments are validated"
            )
    if signature.return_annotation is inspect.Signature.empty:
        raise TypeError(f"{where}: annotate the result, for example `-> None`: results are validated")
