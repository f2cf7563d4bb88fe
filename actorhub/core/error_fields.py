"""The fields of a program's own errors: what can be declared, and as what they are decoded."""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from actorhub.core.fidelity import first_difference
from actorhub.core.sendable import check_sendable
from actorhub.core.type_hints import (
    Bases,
    ClassScope,
    UnknownName,
    bases_of,
    free_variables,
    resolved,
    substitute,
    type_arguments,
)

_FIELDS: Final = "__actorhub_fields__"
_NO_MEMBERS: Final[tuple[Mapping[str, Any], Bases]] = ({}, [])


class ErrorFields:
    """The fields of one class of errors.

    Their types are checked at class definition if all names in them are known by then, or else when they are first
    needed, which is at the latest when an error is made.
    """

    def __init__(self, cls: type, scope: ClassScope) -> None:
        """Make the class a dataclass, and check what it declares.

        Raises:
            TypeError: A field cannot be sent, a default does not fit, or the class is not made from its fields alone.
        """
        self._cls = cls
        self._scope = scope
        self._members: tuple[Mapping[str, Any], Bases] | None = None
        self._decoders: dict[str, Callable[[bytes], Any]] | None = None
        for name in ("__init__", "__new__"):
            if name in vars(cls):
                raise TypeError(
                    f"{cls.__name__}.{name}: an EntityError is made from its fields, at its callers too: annotate the "
                    "fields, and compute other attributes in __post_init__"
                )
        self._mutable_defaults: dict[str, Any] = {
            name: default
            for name in inspect.get_annotations(cls)
            if isinstance(default := vars(cls).get(name), list | dict | set)
        }
        for name, default in self._mutable_defaults.items():
            setattr(cls, name, dataclasses.field(default_factory=functools.partial(copy.deepcopy, default)))
        dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)
        self._fields = dataclasses.fields(cls)
        self.names = tuple(field.name for field in self._fields)
        """Inherited ones first."""
        self.parameters = tuple(field.name for field in self._fields if field.init)
        """Those that the constructor takes."""
        for name in list(inspect.signature(cls).parameters):
            if name not in self.names:
                raise TypeError(f"{cls.__name__}.{name}: an InitVar does not reach the caller: make it a field")
        setattr(cls, _FIELDS, self)
        try:
            self.decoders()
        except UnknownName:
            return

    def decoders(self) -> Mapping[str, Callable[[bytes], Any]]:
        """Return what decodes each field.

        Raises:
            UnknownName: An annotation contains a name that is not defined (yet), or a type variable.
            TypeError: A type cannot be sent, or a default does not fit.
        """
        if self._decoders is None:
            self._decoders = {field.name: self._decoder(field) for field in self._fields}
        return self._decoders

    def _decoder(self, field: dataclasses.Field[Any]) -> Callable[[bytes], Any]:
        cls = self._cls
        owner = next(c for c in cls.__mro__ if field.name in _members_of(c)[0])
        arguments = type_arguments(cls, lambda base: _members_of(base)[1])
        type_ = substitute(_members_of(owner)[0][field.name], arguments[owner])
        what = f"{cls.__name__}.{field.name}"
        for variable in free_variables(type_):
            raise UnknownName(
                f"{what}: {cls.__name__} is generic: raise a subclass that says what {variable.__name__} is, such as "
                f"`class Some{cls.__name__}({cls.__name__}[int])`"
            )
        check_sendable(type_, what)
        decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(type_).decode
        default = self._mutable_defaults.get(field.name, field.default)
        if default is not dataclasses.MISSING:
            _check_default(default, decode, what)
        return decode

    def members(self) -> tuple[Mapping[str, Any], Bases]:
        """Return the types of the fields that the class itself declares, and its bases.

        Raises:
            UnknownName: An annotation contains a name that is not defined (yet).
        """
        if self._members is None:
            cls, names = self._cls, self._scope.names()
            types = {
                name: resolved(cls, {name: type_}, names=names, what=f"{cls.__name__}.{name}")[name]
                for name, type_ in inspect.get_annotations(cls).items()
                if name in self.names
            }
            self._members = types, bases_of(cls, names)
            self._scope.forget()
        return self._members


def _members_of(owner: type) -> tuple[Mapping[str, Any], Bases]:
    fields = fields_of(owner)
    return _NO_MEMBERS if fields is None else fields.members()


def _check_default(default: object, decode: Callable[[bytes], Any], what: str) -> None:
    try:
        problem = first_difference(default, decode(msgspec.msgpack.encode(default)))
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as exc:
        problem = str(exc)
    if problem is not None:
        raise TypeError(f"{what}: its default {default!r} does not fit: {problem}")


def fields_of(cls: type) -> ErrorFields | None:
    """Return the fields of a class of errors; `None` if it is not one that a program has declared."""
    return vars(cls).get(_FIELDS)
