"""The forms in which earlier releases may have hashed arguments: without what has its default now, or untyped."""

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice, product
from typing import Any, Final, TypeAlias, cast

import msgspec

from actorhub.core.fidelity import first_difference
from actorhub.core.fields import Field, fields_of
from actorhub.engine.model.spec import HandlerSpec

_MOST_FORMS: Final = 160
_MOST_BYTES: Final = 1 << 20
"""Of all forms together: to make and hash them keeps the event loop."""
_MOST_PLANS: Final = 4096


class Numbers(enum.IntEnum):
    """Where a float is declared."""

    DECODED = 0
    """All floats."""
    DEFAULTS_AS_WRITTEN = 1
    """What has its default is as it stands in the class, such as the int 0, and has not been decoded."""
    WHOLE_AS_INTS = 2


class Omitted(enum.IntEnum):
    """Which fields are not encoded because they have their defaults."""

    AS_DECLARED = 0
    NONE = 1
    ALL = 2


_Drops: TypeAlias = Mapping[type[Any], int]
"""How many of its last fields are left out of each class."""
_StandIns: TypeAlias = dict[tuple[Any, ...], type[msgspec.Struct]]
"""By class and names of the fields that are kept."""


def earlier_forms(spec: HandlerSpec, arguments: tuple[Any, ...], size: int) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments themselves, and then without last parameters and fields that have their defaults.

    All of that also with other numbers, and with defaults omitted or not. The forms that differ least come first.

    Args:
        spec: The handler.
        arguments: All of its arguments, of the declared types.
        size: What they take, encoded. It bounds the number of forms.
    """
    yield arguments
    survey = _Survey()
    survey.visit(arguments)
    names = tuple(survey.spare)
    ranges = (range(1 + _spare(arguments, spec.defaults)), *(range(1 + survey.spare[name]) for name in names))
    numbers = Numbers if survey.has_whole_floats else [Numbers.DECODED]
    omitted = Omitted if survey.has_defaults else [Omitted.AS_DECLARED]
    stand_ins: _StandIns = {}
    plans = sorted(islice(product(numbers, omitted, *ranges), _MOST_PLANS), key=sum)
    for number, omit, left_out, *drops in plans[: min(_MOST_FORMS, _MOST_BYTES // (size + 1))]:
        form = _Form(dict(zip(names, drops, strict=True)), Numbers(number), Omitted(omit), stand_ins)
        yield tuple(form.of(argument) for argument in arguments[: len(arguments) - left_out])


def with_all_fields(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what is encoded like the arguments, but with the fields that have their defaults, whatever is declared."""
    return tuple(map(_Form({}, Numbers.DECODED, Omitted.NONE, {}).of, arguments))


class _Survey:
    """What could be left out of some arguments."""

    def __init__(self) -> None:
        self.spare: dict[type[Any], int] = {}
        """By class, how many of its last fields have their defaults in every instance."""
        self.has_whole_floats = False
        """Or an int that is a default."""
        self.has_defaults = False

    def visit(self, value: object) -> None:
        """Look at a value, and at everything in it."""
        kind: type[Any] = type(value)
        fields = fields_of(kind)
        if fields is not None:
            values = [getattr(value, field.name) for field in fields]
            defaults = [_default_of(field) for field in fields]
            self.has_defaults |= any(map(_is_default, values, defaults))
            spare = _spare(values, defaults)
            self.spare[kind] = min(spare, self.spare.get(kind, spare))
            self._visit_all(values)
        elif isinstance(value, Mapping):
            for pair in cast("Mapping[object, object]", value).items():
                self._visit_all(pair)
        elif isinstance(value, list | tuple | AbstractSet):
            self._visit_all(cast("Iterable[object]", value))
        elif isinstance(value, float):
            self.has_whole_floats |= _is_whole(value)

    def _visit_all(self, values: Iterable[object]) -> None:
        for value in values:
            self.visit(value)


class _Form:
    """One way to change arguments into an earlier form.

    Args:
        drops: What is left out.
        numbers: What the numbers become.
        omitted: What is left out besides.
        stand_ins: Classes that were made for other forms: to make one takes a hundred times as long as to use it.
    """

    def __init__(self, drops: _Drops, numbers: Numbers, omitted: Omitted, stand_ins: _StandIns) -> None:
        self._drops = drops
        self._numbers = numbers
        self._omitted = omitted
        self._stand_ins = stand_ins

    def of(self, value: object) -> Any:
        """Return what stands for `value`: it is encoded as an earlier release would have encoded it."""
        fields = fields_of(type(value))
        if fields is not None:
            return self._of_fields(value, fields)
        match value:
            case Mapping():
                return {self.of(key): self.of(item) for key, item in cast("Mapping[object, object]", value).items()}
            case list() | tuple():
                return tuple(self.of(item) for item in cast("Iterable[object]", value))
            case AbstractSet():
                return frozenset(self.of(item) for item in cast("Iterable[object]", value))
            case float() if self._numbers is Numbers.WHOLE_AS_INTS and _is_whole(value):
                return int(value)
            case _:
                return value

    def _of_fields(self, value: object, fields: Sequence[Field]) -> Any:
        kind: type[Any] = type(value)
        kept = fields[: len(fields) - self._drops.get(kind, 0)]
        if self._omits(value):
            kept = [field for field in kept if not _is_default(getattr(value, field.name), _default_of(field))]
        name = (kind, *(field.name for field in kept))
        stand_in = self._stand_ins.get(name) or self._stand_ins.setdefault(name, _stand_in(kind, kept))
        return stand_in(*(self.of(self._content(value, field)) for field in kept))

    def _omits(self, value: object) -> bool:
        if not isinstance(value, msgspec.Struct) or self._omitted is Omitted.NONE:
            return False
        config = value.__struct_config__
        return config.omit_defaults if self._omitted is Omitted.AS_DECLARED else not config.array_like

    def _content(self, value: object, field: Field) -> object:
        content = getattr(value, field.name)
        if self._numbers is Numbers.DEFAULTS_AS_WRITTEN and _is_default(content, default := _default_of(field)):
            return default
        return content


def _stand_in(kind: type[Any], kept: Sequence[Field]) -> type[msgspec.Struct]:
    """Return a class that is encoded like `kind` would be with these fields only, in their order."""
    config = kind.__struct_config__ if issubclass(kind, msgspec.Struct) else None
    return msgspec.defstruct(
        kind.__name__,
        [(field.name, Any) for field in kept],
        frozen=True,
        rename={field.name: field.encoded for field in kept},
        tag=None if config is None else config.tag,
        tag_field=None if config is None else config.tag_field,
        array_like=config is not None and config.array_like,
    )


def _default_of(field: Field) -> Any:
    return field.default if field.factory is msgspec.NODEFAULT else field.factory()


def _spare(values: Sequence[Any], defaults: Sequence[Any]) -> int:
    """Return how many of the last values are the defaults, which stand for the last values."""
    spare = 0
    for value, default in zip(reversed(values), reversed(defaults), strict=False):
        if not _is_default(value, default):
            break
        spare += 1
    return spare


def _is_default(value: Any, default: Any) -> bool:
    return default is not msgspec.NODEFAULT and first_difference(value, default) is None


def _is_whole(value: float) -> bool:
    return value.is_integer() and abs(value) < 2**63
