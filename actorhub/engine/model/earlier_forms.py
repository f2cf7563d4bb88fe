"""The forms in which earlier releases may have hashed arguments: without what has its default now, or untyped."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice, product
from typing import Any, Final, TypeAlias, cast

import msgspec

from actorhub.core.fidelity import first_difference
from actorhub.core.fields import Field, fields_of
from actorhub.engine.model.spec import HandlerSpec

_MOST_FORMS: Final = 64
_MOST_BYTES: Final = 1 << 20
"""Of all forms together: to make and hash them keeps the event loop."""
_MOST_PLANS: Final = 4096

_Drops: TypeAlias = Mapping[type[Any], int]
"""How many of its last fields are left out of each class."""


def earlier_forms(spec: HandlerSpec, arguments: tuple[Any, ...], size: int) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments themselves, and then without last parameters and fields that have their defaults.

    All of that once more with each whole float as an int. The forms that differ least come first.

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
    plans = sorted(islice(product(range(1 + survey.has_whole_floats), *ranges), _MOST_PLANS), key=sum)
    for whole, left_out, *drops in plans[1 : max(1, min(_MOST_FORMS, _MOST_BYTES // (size + 1)))]:
        form = _Form(dict(zip(names, drops, strict=True)), is_whole=bool(whole))
        yield tuple(form.of(argument) for argument in arguments[: len(arguments) - left_out])


class _Survey:
    """What could be left out of some arguments."""

    def __init__(self) -> None:
        self.spare: dict[type[Any], int] = {}
        """By class, how many of its last fields have their defaults in every instance."""
        self.has_whole_floats = False

    def visit(self, value: object) -> None:
        """Look at a value, and at everything in it."""
        kind: type[Any] = type(value)
        fields = fields_of(kind)
        if fields is not None:
            values = [getattr(value, field.name) for field in fields]
            defaults = [_default_of(field) for field in fields]
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
        is_whole: Whether whole floats become ints.
    """

    def __init__(self, drops: _Drops, *, is_whole: bool) -> None:
        self._drops = drops
        self._is_whole = is_whole
        self._stand_ins: dict[tuple[Any, ...], type[msgspec.Struct]] = {}

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
            case float() if self._is_whole and _is_whole(value):
                return int(value)
            case _:
                return value

    def _of_fields(self, value: object, fields: Sequence[Field]) -> Any:
        kind: type[Any] = type(value)
        kept = fields[: len(fields) - self._drops.get(kind, 0)]
        if isinstance(value, msgspec.Struct) and value.__struct_config__.omit_defaults:
            kept = [field for field in kept if not _is_default(getattr(value, field.name), _default_of(field))]
        name = (kind, *(field.name for field in kept))
        stand_in = self._stand_ins.get(name) or self._stand_ins.setdefault(name, _stand_in(kind, kept))
        return stand_in(*(self.of(getattr(value, field.name)) for field in kept))


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
