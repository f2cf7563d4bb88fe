"""What the engine knows of a declared entity type: values, made once from the user's class."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from actorhub.core.codec import Codec
from actorhub.core.cron import CronOptions
from actorhub.core.errors import MalformedMessage, UnknownHandler
from actorhub.core.retry import DEFAULT_RETRY, Retry


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerSpec:
    """One handler: how to call it, and what its arguments and result look like."""

    entity_type: str
    name: str
    function: Callable[..., Any]
    """The plain function of the class; takes the instance, then the positional arguments."""
    parameters: tuple[str, ...]
    defaults: tuple[Any, ...]
    """Values of the last parameters when the caller leaves them out."""
    by_position: int
    """How many arguments may be given by position."""
    bind: Callable[..., tuple[Any, ...]]
    """Turns any legal call's arguments into the full positional tuple; raises `TypeError` otherwise."""
    arguments: Codec[tuple[Any, ...]]
    """Decodes the full tuple."""
    leading: tuple[Codec[tuple[Any, ...]], ...]
    """Decodes the tuples that older callers send, which leave out 1, 2, … of the parameters that have defaults."""
    named: Codec[Any]
    """JSON form: one parameter is its value, several are an object by parameter name."""
    result: Codec[Any]
    """The result, or one item of a stream."""
    stream: bool = False
    readonly: bool = False
    reentrant: bool = False
    timeout: float | None = None
    """Seconds that one run may take."""
    durable: bool = False
    """Its messages are stored before they are acknowledged."""
    retry: Retry = DEFAULT_RETRY
    """How often a durable message is run, and how long apart."""
    retention: float | None = None
    """Seconds that a durable message's reply and key are kept; `None`: the cluster's setting."""
    interleaved: bool = False
    """Others get the entity's turn while a run waits; it goes on when the turn is free again."""
    singleton: bool = False
    """It belongs to a singleton."""
    crons: tuple[CronOptions, ...] = ()
    """The schedules that run it; their names are filled in."""

    @property
    def cron(self) -> str | None:
        """Name of the (first) schedule that runs it; `None` for other handlers."""
        return self.crons[0].name if self.crons else None

    def decode_arguments(self, body: bytes) -> tuple[Any, ...]:
        """Return the full positional arguments in `body`, with defaults where an older caller left them out.

        Raises:
            MalformedMessage: names the parameter that does not fit.
        """
        try:
            return self.arguments.decode(body)
        except MalformedMessage as error:
            for missing, codec in enumerate(self.leading, start=1):
                try:
                    return (*codec.decode(body), *self.defaults[-missing:])
                except MalformedMessage:
                    continue  # an even older caller left out more; the first error is the one to report
            raise MalformedMessage(self._with_names(error.message)) from error

    def decode_json_arguments(self, text: bytes) -> tuple[Any, ...]:
        """Return the full positional arguments in JSON: one parameter's value itself, several as an object by name.

        Raises:
            MalformedMessage: names what does not fit.
        """
        if not self.parameters:
            if text.strip() not in (b"", b"{}", b"[]", b"null"):
                raise MalformedMessage(f"{self.entity_type}.{self.name} takes no arguments: send nothing, or {{}}")
            return ()
        if not text.strip() and len(self.defaults) == len(self.parameters):
            return self.defaults
        value = self.named.decode_json(text)
        return (value,) if len(self.parameters) == 1 else tuple(getattr(value, name) for name in self.parameters)

    def _with_names(self, message: str) -> str:
        for number, name in enumerate(self.parameters):
            message = message.replace(f"`$[{number}]", f"`{name}")
        return message


@dataclass(frozen=True, slots=True, kw_only=True)
class EntitySpec:
    """One entity type."""

    name: str
    handlers: Mapping[str, HandlerSpec]
    state: Codec[Any] | None
    """`None`: the entity keeps no durable state."""
    initial_state: Callable[[], Any]
    shard_group: str = "default"
    mailbox_capacity: int = 4096
    concurrency: int = 1
    max_idle: timedelta = timedelta(minutes=1)
    shard_key: Callable[[str], str] | None = None
    on_activate: HandlerSpec | None = None
    """The hook, where the class has one of its own; it takes the instance alone."""
    on_deactivate: HandlerSpec | None = None
    singleton_id: str | None = None
    """Of a singleton: the one id that it has; the fields below are a singleton's, too."""
    state_ttl: float | None = None
    """Seconds after which a state that was not written is forgotten."""
    on_become_leader: HandlerSpec | None = None
    on_lose_leadership: HandlerSpec | None = None
    main_loop: HandlerSpec | None = None
    """Its `run`."""

    @property
    def crons(self) -> dict[str, HandlerSpec]:
        """The handlers that schedules run, by the schedule's name."""
        return {str(cron.name): handler for handler in self.handlers.values() for cron in handler.crons}

    def handler(self, name: str) -> HandlerSpec:
        """Return the handler called `name`.

        Raises:
            UnknownHandler: there is none; the text lists those that there are.
        """
        spec = self.handlers.get(name)
        if spec is None:
            known = ", ".join(sorted(self.handlers)) or "none"
            raise UnknownHandler(f"{self.name} has no handler {name!r}: it has {known}")
        return spec


def operation_spec(subject: str, name: str) -> HandlerSpec:
    """Return what stands where a call's handler does: the operation belongs to no entity."""
    anything: Codec[Any] = Codec(Any, f"{subject}: {name}")

    def nothing(*_arguments: object) -> tuple[object, ...]:
        return ()

    return HandlerSpec(
        entity_type=subject,
        name=name,
        function=nothing,
        parameters=(),
        defaults=(),
        by_position=0,
        bind=nothing,
        arguments=anything,
        leading=(),
        named=anything,
        result=anything,
    )
