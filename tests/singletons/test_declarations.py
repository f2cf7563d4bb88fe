"""Declarations of singletons and schedules: each mistake is a `TypeError` at class definition that says what to do."""

import inspect
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta

import msgspec
import pytest

from actorhub import Breaker, Entity, Hub, Retry, Singleton, cron, handler


class State(msgspec.Struct):
    number: int = 0


class Whole(Singleton[State], name="whole", shard_group="other", mailbox_capacity=7, state_ttl=timedelta(days=30)):
    """Everything that a singleton may have."""

    LIMIT = 3

    async def on_activate(self) -> None: ...
    async def on_become_leader(self) -> None: ...
    async def on_lose_leadership(self) -> None: ...
    async def on_deactivate(self) -> None: ...
    async def run(self) -> None: ...

    @cron("*/5 * * * *", timezone="Europe/Berlin", skip_if_older_than=timedelta(minutes=10))
    @cron("@daily", from_previous=True, jitter=timedelta(seconds=3), breaker=Breaker())
    async def sweep(self, at: datetime) -> int:
        """Return a number."""
        return self.state.number

    @cron("0 0 3 * * *", overlap="allow", retry=Retry(attempts=2))
    @handler(timeout=timedelta(seconds=5))
    async def nightly(self, at: datetime) -> None: ...

    @handler(durable=True)
    async def process(self, text: str) -> None: ...

    async def status(self) -> State:
        return self.state


def test_everything_is_in_the_declaration() -> None:
    """Id, state, hooks, and which handlers are run by which schedules."""
    spec = Whole.__declaration__.spec
    assert (spec.name, spec.singleton_id, spec.shard_group, spec.mailbox_capacity) == ("whole", "whole", "other", 7)
    assert spec.state_ttl == 30 * 86400
    assert spec.main_loop is not None
    assert spec.main_loop.interleaved
    for hook in (spec.on_activate, spec.on_become_leader, spec.on_lose_leadership, spec.on_deactivate):
        assert hook is not None
    assert set(spec.handlers) == {"sweep", "nightly", "process", "status"}
    assert {name: (c.expression, c.timezone) for h in spec.handlers.values() for c in h.crons for name in [c.name]} == {
        "sweep": ("*/5 * * * *", "Europe/Berlin"),
        "sweep-2": ("@daily", "UTC"),
        "nightly": ("0 0 3 * * *", "UTC"),
    }
    assert spec.crons["sweep-2"] is spec.handlers["sweep"]
    assert spec.handlers["sweep"].durable
    assert not spec.handlers["sweep"].interleaved
    assert spec.handlers["nightly"].interleaved
    assert spec.handlers["nightly"].retry == Retry(attempts=2)
    assert spec.handlers["nightly"].timeout == 5


def test_what_a_class_does_not_override_is_no_hook() -> None:
    """A bare singleton has no hooks, no `run`, and is named after its class."""

    class BareOne(Singleton):
        """Nothing."""

    spec = BareOne.__declaration__.spec
    assert spec.name == "bare_one"
    assert spec.state is None
    hooks = (spec.on_activate, spec.on_become_leader, spec.on_lose_leadership, spec.on_deactivate, spec.main_loop)
    assert hooks == (None,) * 5


def test_an_inherited_hook_and_schedule_count() -> None:
    """What a base class of the user has, its subclasses have."""

    class Base(Singleton[State], name="base"):
        async def run(self) -> None: ...

        @cron("@hourly")
        async def tick(self, at: datetime) -> None: ...

    class Derived(Base, name="derived"):
        """Nothing of its own."""

    spec = Derived.__declaration__.spec
    assert spec.main_loop is not None
    assert spec.main_loop.entity_type == "derived"
    assert list(spec.crons) == ["tick"]


def test_the_decorator_leaves_the_function_alone() -> None:
    """A test may call it like any method, with its signature and its documentation."""
    assert list(inspect.signature(Whole.sweep).parameters) == ["self", "at"]
    assert Whole.sweep.__doc__ == "Return a number."
    assert inspect.iscoroutinefunction(Whole.sweep)


def _sync_method() -> None:
    class Wrong(Singleton):
        def status(self) -> int:
            return 1


def _public_attribute() -> None:
    class Wrong(Singleton):
        limit = 3


def _annotated_attribute() -> None:
    class Wrong(Singleton):
        limit: int


def _sync_run() -> None:
    class Wrong(Singleton):
        def run(self) -> None:  # type: ignore[override]
            """Not async."""


def _run_as_a_stream() -> None:
    class Wrong(Singleton):
        async def run(self) -> AsyncIterator[int]:  # type: ignore[override]
            yield 1


def _sync_hook() -> None:
    class Wrong(Singleton):
        def on_become_leader(self) -> None:  # type: ignore[override]
            """Not async."""


def _run_with_a_parameter() -> None:
    class Wrong(Singleton):
        async def run(self, text: str) -> None:  # type: ignore[override]
            """Nobody would give it one."""


def _hook_with_a_parameter() -> None:
    class Wrong(Singleton):
        async def on_lose_leadership(self, why: str) -> None:  # type: ignore[override]
            """Nobody would give it one."""


def _cron_on_run() -> None:
    class Wrong(Singleton):
        @cron("@daily")  # type: ignore[type-var]
        async def run(self) -> None:
            """It is not a handler."""


def _handler_on_run() -> None:
    class Wrong(Singleton):
        @handler(durable=True)
        async def run(self) -> None:
            """It is not a handler."""


def _state_as_a_name() -> None:
    class Wrong(Singleton):
        async def state(self) -> None:  # type: ignore[override]
            """Taken."""


def _bad_name() -> None:
    class Wrong(Singleton, name="no spaces, please"):
        """Wrong name."""


def _bad_group() -> None:
    class Wrong(Singleton, shard_group="Über"):
        """Wrong group."""


def _no_mailbox() -> None:
    class Wrong(Singleton, mailbox_capacity=0):
        """No room."""


def _no_time() -> None:
    class Wrong(Singleton[State], state_ttl=timedelta(0)):
        """No time."""


def _concurrency() -> None:
    class Wrong(Singleton, concurrency=3):  # type: ignore[arg-type]
        """It has no such keyword."""


def _cron_on_an_entity() -> None:
    class Wrong(Entity):
        @cron("@daily")
        async def tick(self, at: datetime) -> None: ...


def _cron_without_fire_time() -> None:
    class Wrong(Singleton):
        @cron("@daily")  # type: ignore[type-var]
        async def tick(self) -> None: ...


def _cron_with_text() -> None:
    class Wrong(Singleton):
        @cron("@daily")  # type: ignore[type-var]
        async def tick(self, at: str) -> None: ...


def _cron_with_two() -> None:
    class Wrong(Singleton):
        @cron("@daily")
        async def tick(self, at: datetime, force: bool = False) -> None: ...


def _cron_stream() -> None:
    class Wrong(Singleton):
        @cron("@daily")  # type: ignore[type-var]
        async def tick(self, at: datetime) -> AsyncIterator[int]:
            yield 1


def _cron_sync() -> None:
    class Wrong(Singleton):
        @cron("@daily")  # type: ignore[type-var]
        def tick(self, at: datetime) -> None: ...


def _cron_private() -> None:
    class Wrong(Singleton):
        @cron("@daily")
        async def _tick(self, at: datetime) -> None: ...


def _cron_readonly() -> None:
    class Wrong(Singleton):
        @cron("@daily")
        @handler(readonly=True)
        async def tick(self, at: datetime) -> None: ...


def _cron_reentrant() -> None:
    class Wrong(Singleton):
        @cron("@daily")
        @handler(reentrant=True)
        async def tick(self, at: datetime) -> None: ...


def _cron_two_retries() -> None:
    class Wrong(Singleton):
        @cron("@daily")
        @handler(durable=True, retry=Retry(attempts=2))
        async def tick(self, at: datetime) -> None: ...


def _cron_two_overlaps() -> None:
    class Wrong(Singleton):
        @cron("@daily", overlap="skip")
        @cron("@hourly", overlap="allow")
        async def tick(self, at: datetime) -> None: ...


def _four_fields() -> None:
    cron("* * * *")(_tick)


def _bad_minute() -> None:
    cron("61 * * * *")(_tick)


def _bad_zone() -> None:
    cron("@daily", timezone="Mars/Olympus")(_tick)


def _never() -> None:
    cron("0 0 30 2 *")(_tick)


def _bad_overlap() -> None:
    cron("@daily", overlap="sometimes")(_tick)  # type: ignore[arg-type]


def _negative_age() -> None:
    cron("@daily", skip_if_older_than=timedelta(0))(_tick)


def _negative_jitter() -> None:
    cron("@daily", jitter=timedelta(seconds=-1))(_tick)


async def tick(self: object, at: datetime) -> None:
    """Run at a fire time."""


_tick = tick


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (_sync_method, r"Wrong\.status is not async: write `async def status"),
        (_public_attribute, r"Wrong\.limit.*async def limit.*rename it to _limit"),
        (_annotated_attribute, r"Wrong\.limit.*rename it to _limit"),
        (_sync_run, r"Wrong\.run must be `async def run\(self\) -> None`"),
        (_run_as_a_stream, r"Wrong\.run must be `async def run\(self\) -> None`"),
        (_run_with_a_parameter, r"Wrong\.run must be `async def run\(self\) -> None`"),
        (_sync_hook, r"Wrong\.on_become_leader must be `async def on_become_leader\(self\) -> None`"),
        (_hook_with_a_parameter, r"Wrong\.on_lose_leadership must be `async def on_lose_leadership\(self\) -> None`"),
        (_cron_on_run, r"Wrong\.run.*@cron"),
        (_handler_on_run, r"Wrong\.run.*@handler"),
        (_state_as_a_name, r"Wrong\.state: this name belongs to"),
        (_bad_name, r"Wrong: name='no spaces, please'"),
        (_bad_group, r"Wrong: shard_group='Über'"),
        (_no_mailbox, r"mailbox_capacity=0 must be at least 1"),
        (_no_time, r"state_ttl=0:00:00 must be more than zero"),
        (_concurrency, r"concurrency"),
        (_cron_on_an_entity, r"Wrong\.tick: @cron is for methods of a Singleton"),
        (_cron_without_fire_time, r"Wrong\.tick: .*`async def tick\(self, at: datetime\)`"),
        (_cron_with_text, r"Wrong\.tick: .*`async def tick\(self, at: datetime\)`"),
        (_cron_with_two, r"Wrong\.tick: .*`async def tick\(self, at: datetime\)`"),
        (_cron_stream, r"Wrong\.tick: .*`async def tick\(self, at: datetime\)`"),
        (_cron_sync, r"Wrong\.tick is not async: write `async def`"),
        (_cron_private, r"Wrong\._tick: @cron on a private method"),
        (_cron_readonly, r"Wrong\.tick: @handler\(readonly, reentrant, retry\) cannot be combined with @cron"),
        (_cron_reentrant, r"Wrong\.tick: @handler\(readonly, reentrant, retry\) cannot be combined with @cron"),
        (_cron_two_retries, r"Wrong\.tick: @handler\(readonly, reentrant, retry\) cannot be combined with @cron"),
        (_cron_two_overlaps, r"Wrong\.tick: all @cron of one method must have the same overlap and retry"),
        (_four_fields, r"tick: @cron: .*'\* \* \* \*'"),
        (_bad_minute, r"tick: @cron: .*minute"),
        (_bad_zone, r"tick: @cron: .*'Mars/Olympus'"),
        (_never, r"tick: @cron: .*day-of-month '30'"),
        (_bad_overlap, r"tick: @cron: .*overlap"),
        (_negative_age, r"tick: @cron: .*skip_if_older_than"),
        (_negative_jitter, r"tick: @cron: .*jitter"),
    ],
)
def test_a_mistake_is_named_at_class_definition(wrong: Callable[[], None], text: str) -> None:
    """The error says which name is wrong, and what to write instead."""
    with pytest.raises(TypeError, match=text):
        wrong()


def test_a_name_that_an_entity_has_is_taken() -> None:
    """Singletons and entities share one space of names."""

    class Two(Entity, name="whole"):
        """Another whole."""

    hub = Hub()
    hub.register(Whole)
    with pytest.raises(Exception, match="'whole'"):
        hub.register(Two)
