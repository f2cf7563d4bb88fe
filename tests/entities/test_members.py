"""The methods of a class: what only looks like a handler or a hook is refused where it is written."""

import abc
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, Final, Generic, TypeVar, cast

import msgspec
import pytest

from actorhub import ConfigurationError, Entity, Hub, Singleton, cron, handler
from actorhub.engine.model.spec import HandlerSpec

S = TypeVar("S")


def _hidden(function: Callable[..., Awaitable[Any]]) -> Any:  # noqa: ANN401
    async def inner(self: object, number: int) -> int:
        return int(await function(self, number))

    return inner


def _blocking(function: Callable[..., Any]) -> Any:  # noqa: ANN401
    @functools.wraps(function)
    def inner(*args: Any) -> Any:  # noqa: ANN401
        return function(*args)

    return inner


def _awaiting(function: Callable[..., Any]) -> Any:  # noqa: ANN401
    @functools.wraps(function)
    async def inner(*args: Any) -> Any:  # noqa: ANN401
        return await function(*args)

    return inner


async def _async(self: object) -> None:
    pass


async def _one(self: object, number: int) -> int:
    return number


async def _stream(self: object, number: int) -> AsyncIterator[int]:
    yield number


async def _no_stream(self: object) -> AsyncIterator[int]:
    return cast("AsyncIterator[int]", None)


def _sync(self: object) -> int:
    return 1


async def _tick(self: object, at: datetime) -> None:
    pass


async def _text_for_number(self: object, number: int = cast("int", "3")) -> int:
    return number


async def _unset(self: object, number: int | msgspec.UnsetType = msgspec.UNSET) -> int:
    return 1


async def _object(self: object, anything: Any = Ellipsis) -> int:  # noqa: ANN401
    return 1


async def _with_argument(self: object, much: int) -> None:
    pass


class Several:
    """Bases to derive from."""

    class Number(Entity[int]):
        pass

    class Text(Entity[str]):
        pass

    class Placed(Entity, shard_group="eu"):
        pass

    class Keyed(Entity, shard_key=str.lower):
        pass


ENTITY: Final[tuple[type, ...]] = (Entity,)
SINGLETON: Final[tuple[type, ...]] = (Singleton,)


@pytest.mark.parametrize(
    ("bases", "body", "text"),
    [
        (
            ENTITY,
            lambda: {"one": _hidden(_copy(_one))},
            r"Wrong\.one is the function _hidden\.<locals>\.inner.*functools\.wraps",
        ),
        (ENTITY, lambda: {"pay": _blocking(_one)}, r"Wrong\.pay: its decorator .* `async def` with `await`"),
        (ENTITY, lambda: {"pay": _awaiting(_stream)}, r"Wrong\.pay: its decorator .* `async def` with `yield`"),
        (
            ENTITY,
            lambda: {"pay": cast("Any", handler)(_copy(_one))},
            r"write @handler\(durable=True\), or @handler\(\) without",
        ),
        (
            ENTITY,
            lambda: {"pay": handler()(cast("Any", staticmethod(_copy(_one))))},
            r"staticmethod: remove @staticmethod",
        ),
        (ENTITY, lambda: {"pay": handler()(cast("Any", classmethod(_one)))}, r"classmethod: remove @classmethod"),
        (ENTITY, lambda: {"pay": handler()(cast("Any", property(_sync)))}, r"property: remove @property"),
        (ENTITY, lambda: {"pay": handler()(cast("Any", functools.partial(_one)))}, r"partial: write `async def`"),
        (ENTITY, lambda: {"pay": handler()(cast("Any", _sync))}, r"_sync is not async: write `async def`"),
        (
            ENTITY,
            lambda: {"pay": handler()(_blocking(_copy(_one)))},
            r"one is not async: .* also in a decorator between",
        ),
        (
            ENTITY,
            lambda: {"pay": handler()(handler()(_copy(_one)))},
            r"one: two @handler on one method: give all options in one",
        ),
        (
            ENTITY,
            lambda: {"Meta": handler()(cast("Any", type("Meta", (), {})))},
            r"this is a class: put it on the methods",
        ),
        (
            ENTITY,
            lambda: {"on_activated": _async},
            r"Wrong\.on_activated looks like the hook on_activate, .* rename it to",
        ),
        (ENTITY, lambda: {"on_deactive": _async}, r"Wrong\.on_deactive looks like the hook on_deactivate"),
        (ENTITY, lambda: {"onActivate": _async}, r"Wrong\.onActivate looks like the hook on_activate"),
        (SINGLETON, lambda: {"on_become_leder": _async}, r"on_become_leder looks like the hook on_become_leader"),
        (SINGLETON, lambda: {"on_lost_leadership": _async}, r"looks like the hook on_lose_leadership"),
        (ENTITY, lambda: {"on_become_leader": _async}, r"only a Singleton has the hook on_become_leader"),
        (ENTITY, lambda: {"on_activate": _with_argument}, r"Wrong\.on_activate must be `async def on_activate\(self\)"),
        (ENTITY, lambda: {"on_activate": _sync}, r"Wrong\.on_activate must be `async def on_activate\(self\)"),
        (ENTITY, lambda: {"on_activate": staticmethod(_async)}, r"must be `async def on_activate\(self\)"),
        (ENTITY, lambda: {"on_activate": None}, r"must be `async def on_activate\(self\)"),
        (SINGLETON, lambda: {"run": _with_argument}, r"Wrong\.run must be `async def run\(self\) -> None`"),
        (SINGLETON, lambda: {"run": _stream}, r"Wrong\.run must be `async def run\(self\) -> None`"),
        (
            ENTITY,
            lambda: {"on_activate": handler()(_copy(_async))},
            r"@handler is for handlers, and on_activate is a hook",
        ),
        (ENTITY, lambda: {"__init__": _async}, r"Wrong\.__init__ cannot be async: await what it needs in on_activate"),
        (ENTITY, lambda: {"__annotations__": {"state": int}}, r"Wrong\.state: this name belongs to Entity"),
        (ENTITY, lambda: {"x" * 256: _async}, r"a handler's name has at most 255 characters"),
        (
            ENTITY,
            lambda: {"pay": _text_for_number},
            r"wrong\.pay: number='3': Expected `int`, got `str`: give it a default",
        ),
        (ENTITY, lambda: {"pay": _unset}, r"wrong\.pay: number=UNSET: .* or annotate it `\| None = None`"),
        (ENTITY, lambda: {"pay": _object}, r"wrong\.pay: anything=Ellipsis: "),
        (ENTITY, lambda: {"pay": _no_stream}, r"wrong\.pay is annotated as a stream but has no `yield`"),
        (ENTITY, lambda: {"tick": cron("@daily")(_copy(_tick))}, r"@cron is for methods of a Singleton"),
        (SINGLETON, lambda: {"tick": cast("Any", cron)(_tick)}, r'write @cron\("\*/5 \* \* \* \*"\)'),
        (
            SINGLETON,
            lambda: {"tick": cron("*/90 * * * *")(_copy(_tick))},
            r"tick: @cron: .*minute '\*/90' has a step of 90",
        ),
        (SINGLETON, lambda: {"tick": cron("10-2 * * * *")(_copy(_tick))}, r"write 10-59,0-2 instead of 10-2"),
        (
            (Several.Number, Several.Text),
            dict,
            r"Wrong: it inherits Entity twice, of int and of str: keep one",
        ),
        ((Entity, Singleton), dict, r"Wrong is both an Entity and a Singleton: derive it from one of them"),
        (
            (Several.Placed,),
            dict,
            r"Wrong: its base class has shard_group='eu', .* write class Wrong\(\.\.\., shard_group=",
        ),
        ((Several.Keyed,), dict, r"Wrong: its base class has shard_key=<.*not inherited: write class Wrong"),
    ],
)
def test_a_member_that_would_fail_or_be_ignored_later_is_refused_at_once(
    bases: tuple[type, ...], body: Callable[[], dict[str, object]], text: str
) -> None:
    """The class statement fails, or a decorator in it, and says what to write instead."""
    with pytest.raises(TypeError, match=text):
        type("Wrong", bases, {"__module__": __name__, **body()})


def _copy(function: Any) -> Any:  # noqa: ANN401
    """Return a public function of its own, so that a decorator marks no other test's."""
    copied = type(function)(function.__code__, function.__globals__, function.__name__.lstrip("_"))
    copied.__annotations__ = function.__annotations__
    copied.__qualname__ = copied.__name__
    return copied


@pytest.mark.parametrize(
    ("base", "keyword", "text"),
    [
        (Entity, "max_ilde", r"Wrong: max_ilde= is not a class keyword .*: did you mean max_idle\?"),
        (Entity, "state_ttl", r"Wrong: state_ttl= is not a class keyword"),
        (Singleton, "state_tll", r"Wrong: state_tll= .*: did you mean state_ttl\?"),
        (
            Singleton,
            "max_idle",
            r"Wrong: max_idle= is not a class keyword of a Singleton, only of an Entity: use one of name",
        ),
        (Singleton, "colour", r"Wrong: colour= is not a class keyword .*: use one of name, shard_group"),
    ],
)
def test_a_misspelt_class_keyword_is_named_with_the_near_one(base: type, keyword: str, text: str) -> None:
    """Nothing is taken for an option that is none."""
    with pytest.raises(TypeError, match=text):
        type("Wrong", (base,), {}, **{keyword: timedelta(minutes=1)})


def test_a_class_between_may_take_keywords_of_its_own() -> None:
    """What a mixin takes is not actorhub's to refuse, on whichever side it stands."""
    found: list[str] = []

    class Tagged:
        def __init_subclass__(cls, *, tag: str = "", **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            found.append(tag)

    class First(Tagged, Singleton, tag="a", mailbox_capacity=3):
        pass

    assert First.__declaration__.spec.mailbox_capacity == 3
    type("Second", (Singleton, Tagged), {}, tag="b")
    assert found == ["a", "b"]


def test_class_keywords_are_inherited_except_the_name() -> None:
    """A subclass that says nothing is as large, as patient and as lasting as its base; what it says is its own."""

    class Base(Entity, max_idle=timedelta(hours=1), mailbox_capacity=7, concurrency=2):
        pass

    class Same(Base):
        pass

    class Other(Same, mailbox_capacity=8):
        pass

    class Lasting(Singleton, state_ttl=timedelta(days=1), shard_group="eu"):
        pass

    class Longer(Lasting, shard_group="default"):
        pass

    specs = [cls.__declaration__.spec for cls in (Base, Same, Other)]
    assert [spec.name for spec in specs] == ["base", "same", "other"]
    assert [spec.mailbox_capacity for spec in specs] == [7, 7, 8]
    assert {(spec.max_idle, spec.concurrency) for spec in specs} == {(timedelta(hours=1), 2)}
    longer = Longer.__declaration__.spec
    assert (longer.state_ttl, longer.shard_group) == (86400.0, "default")


def test_an_override_keeps_its_schedule() -> None:
    """A schedule does not end because a subclass has another body for it."""

    class Nightly(Singleton):
        @cron("@daily")
        @handler(timeout=timedelta(minutes=1))
        async def sweep(self, at: datetime) -> None:
            pass

    class Thorough(Nightly):
        async def sweep(self, at: datetime) -> None:
            pass

    class Weekly(Nightly):
        @cron("@weekly")
        async def sweep(self, at: datetime) -> None:
            pass

    def facts(spec: HandlerSpec) -> tuple[list[str], float | None, bool]:
        return [one.expression for one in spec.crons], spec.timeout, spec.durable

    found = [facts(cls.__declaration__.spec.handlers["sweep"]) for cls in (Nightly, Thorough, Weekly)]
    assert found == [(["@daily"], 60.0, True), (["@daily"], 60.0, True), (["@weekly"], 60.0, True)]


def test_what_only_resembles_a_hook_is_a_handler() -> None:
    """Handlers of events, verbs, and names that are further from a hook's are nobody's mistake."""

    class Fine(Entity):
        async def activate(self) -> None:
            pass

        async def on_activated(self, at: int) -> None:
            pass

        async def on_payment(self) -> None:
            pass

        async def run(self) -> int:
            return 1

        async def once(self) -> int:
            return 1

    assert len(Fine.__declaration__.spec.handlers) == 5


def test_decorators_that_let_the_method_be_seen_are_fine() -> None:
    """With `functools.wraps`, above or below `@handler`, and where the inner function makes a sync method async."""

    class Fine(Entity):
        @_awaiting
        @handler(readonly=True)
        async def above(self, number: int) -> int:
            return number

        @handler(readonly=True)
        @_awaiting
        async def below(self, number: int) -> int:
            return number

        PRICE = staticmethod(_sync)

    def made() -> Any:  # noqa: ANN401
        async def inner(self: object, number: int) -> int:
            return number

        return inner

    class Copied(Entity):
        first = _one
        second = first
        third = made()

    handlers = Fine.__declaration__.spec.handlers
    assert [(name, spec.readonly, spec.parameters) for name, spec in handlers.items()] == [
        ("above", True, ("number",)),
        ("below", True, ("number",)),
    ]
    assert sorted(Copied.__declaration__.spec.handlers) == ["first", "second", "third"]


class Stranger:
    """Is not an entity."""


class Plain(Entity):
    pass


class Kept(Entity[S], Generic[S]):
    pass


class Abstract(Plain, abc.ABC):
    @abc.abstractmethod
    async def pay(self) -> int: ...


class Concrete(Abstract):
    async def pay(self) -> int:
        return 1


def _stranger() -> Stranger:
    return Stranger()


def _nothing() -> None:
    pass


def _base() -> Entity:
    return Plain()


@pytest.mark.parametrize(
    ("entity", "factory", "text"),
    [
        (Entity, None, r"Entity is not a class of entities: give a subclass of Entity or Singleton"),
        (Stranger, None, r"Stranger is not a class of entities"),
        (7, None, r"7 is not a class of entities"),
        (None, None, r"None is not a class of entities"),
        (Plain(), None, r"an instance of Plain was given: give the class, Plain"),
        (Kept[int], None, r"Kept\[int\] has no name: declare a class of it, as in class Name\(.*Kept\[int\]\)"),
        (
            Plain,
            Plain(),
            r"the factory of Plain is one Plain, but every id needs its own: .*hub\.register\(Plain, lambda: Plain",
        ),
        (
            Plain,
            _stranger,
            r"the factory of Plain returns a Stranger, as its annotation says: .*lambda: Plain\(\.\.\.\)",
        ),
        (Plain, _nothing, r"the factory of Plain returns a NoneType"),
        (Plain, "Plain", r"the factory of Plain cannot be called, it is 'Plain'"),
        (Abstract, None, r"Abstract is abstract, it lacks pay: register a subclass that has these methods"),
        (Plain, Abstract, r"Abstract is abstract, it lacks pay"),
    ],
)
def test_what_cannot_be_hosted_is_refused_when_it_is_registered(entity: Any, factory: Any, text: str) -> None:  # noqa: ANN401
    """Not with the first call, and whatever is given."""
    with pytest.raises(TypeError, match=text):
        Hub().register(entity, factory)


def test_what_can_be_hosted_is_registered() -> None:
    """A subclass, a factory of one, and one whose annotation says less than it makes."""
    hub = Hub()
    hub.register(Abstract, Concrete)  # type: ignore[type-abstract]
    hub.register(Concrete)
    hub.register(Plain, cast("Callable[[], Plain]", _base))
    with pytest.raises(ConfigurationError, match=r"Plain is registered twice: remove one of the two"):
        hub.register(Plain)


def test_a_default_that_a_handler_changes_is_the_same_for_the_next_call() -> None:
    """Also where the default is filled in on the runner: for older callers, and for arguments as JSON."""

    class Lists(Entity):
        async def add(self, first: int = 1, items: list[int] = []) -> int:  # noqa: B006
            return first

        async def one(self, items: list[int] = []) -> int:  # noqa: B006
            return 1

    spec, one = (Lists.__declaration__.spec.handlers[name] for name in ("add", "one"))
    for _ in range(2):
        for arguments in (
            spec.decode_arguments(b"\x91\x01"),
            spec.decode_json_arguments(b'{"first": 2}'),
            spec.decode_json_arguments(b""),
            one.decode_json_arguments(b""),
        ):
            assert arguments[-1] == []
            arguments[-1].append(1)
