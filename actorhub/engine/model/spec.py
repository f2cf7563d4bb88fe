"""What the engine knows about a declared entity type: values, made once from the user's class."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from actorhub.core.address import check_entity_id
from actorhub.core.codec import Codec
from actorhub.core.cron import CronOptions
from actorhub.core.errors import MalformedMessage, UnknownHandler
from actorhub.core.meaning import in_order, meaning_hash
from actorhub.core.retry import DEFAULT_RETRY, Retry
from actorhub.core.texts import summary_of

DEFAULT_CANCEL_GRACE: Final = timedelta(seconds=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerSpec:
    """One handler: how to call it, and what its arguments and result look like."""

    entity_type: str
    name: str
    function: Callable[..., Any]
    """The plain function of the class; takes the instance, then the positional arguments."""
    parameters: tuple[str, ...]
    defaults: tuple[Any, ...]
    """Values of the last parameters, of their types, used where the caller leaves them out.

    They are used as copies, since a handler may change them.
    """
    by_position: int
    """How many arguments may be given by position."""
    bind: Callable[..., tuple[Any, ...]]
    """Turns the arguments of a valid call into the full positional tuple; raises `TypeError` for any other."""
    arguments: Codec[tuple[Any, ...]]
    """Decodes the full tuple."""
    leading: tuple[Codec[tuple[Any, ...]], ...]
    """Decode the shorter tuples of older callers: without the last parameter that has a default, the last two, …"""
    named: Codec[Any]
    """The arguments as JSON: of one parameter its value, of several an object by parameter name."""
    result: Codec[Any]
    """The result, or one item of a stream."""
    stream: bool = False
    readonly: bool = False
    reentrant: bool = False
    timeout: float | None = None
    """Seconds that one run may take, or one step of a stream."""
    durable: bool = False
    """Its messages are stored before they are acknowledged."""
    retry: Retry = DEFAULT_RETRY
    """How often a durable message is run, and the pauses between the runs."""
    cancel_grace: float = DEFAULT_CANCEL_GRACE.total_seconds()
    """Seconds that a run has to clean up once its durable message is cancelled."""
    retention: float | None = None
    """Seconds for which a durable message's reply and key are kept; `None`: the cluster's setting."""
    interleaved: bool = False
    """While a run waits, others get the entity's turn; the run goes on when the turn is free again."""
    singleton: bool = False
    """It belongs to a singleton."""
    crons: tuple[CronOptions, ...] = ()
    """The schedules that run it, with their names filled in."""

    @property
    def cron(self) -> str | None:
        """Name of the (first) schedule that runs it; `None` for other handlers."""
        return self.crons[0].name if self.crons else None

    def for_stored(self) -> "HandlerSpec":
        """Return the handler as it runs messages that are stored, whatever it declares.

        Each of those has a commit of its own, so it does not run within another run.
        """
        return self if self.durable else dataclasses.replace(self, durable=True, reentrant=False)

    def decode_arguments(self, body: bytes) -> tuple[Any, ...]:
        """Return the full positional arguments that `body` encodes, with defaults for what an older caller left out.

        Raises:
            MalformedMessage: names the parameter that does not fit.
        """
        try:
            return self.arguments.decode(body)
        except MalformedMessage as error:
            for missing, codec in enumerate(self.leading, start=1):
                try:
                    return (*codec.decode(body), *copy.deepcopy(self.defaults[-missing:]))
                except MalformedMessage:
                    continue  # an even older caller left out more; the first error is the one to report
            raise MalformedMessage(self._with_names(error.message)) from error

    def meaning_of(self, arguments: tuple[Any, ...]) -> bytes:
        """Return a hash of what the arguments of a call mean; see `meaning_hash`.

        Raises:
            MalformedMessage: They cannot be encoded, or do not fit.
        """
        try:
            ordered = tuple(map(in_order, arguments))
            return meaning_hash(self.decode_arguments(self.arguments.encode(ordered)), self.defaults)
        except MalformedMessage:
            raise
        except BaseException as exc:
            raise MalformedMessage(f"{self.arguments.what}: {summary_of(exc)}") from exc

    def decode_json_arguments(self, text: bytes) -> tuple[Any, ...]:
        """Return the full positional arguments that JSON `text` holds: one value, or several in an object by name.

        Raises:
            MalformedMessage: names what does not fit.
        """
        if not self.parameters:
            if text.strip() not in (b"", b"{}", b"[]", b"null"):
                raise MalformedMessage(f"{self.entity_type}.{self.name} takes no arguments: send nothing, or {{}}")
            return ()
        if not text.strip() and len(self.defaults) == len(self.parameters):
            return copy.deepcopy(self.defaults)
        try:
            value = self.named.decode_json(text)
        except MalformedMessage as error:
            raise MalformedMessage(f"{error.message} (it takes {self._wanted()})") from error
        return (value,) if len(self.parameters) == 1 else tuple(getattr(value, name) for name in self.parameters)

    def _wanted(self) -> str:
        if len(self.parameters) == 1:
            return f"{self.parameters[0]} as JSON"
        least = len(self.parameters) - len(self.defaults)
        return "a JSON object with " + ", ".join(
            name if place < least else f"{name} (optional)" for place, name in enumerate(self.parameters)
        )

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
    """`None`: the entity has no stored state."""
    initial_state: Callable[[], Any]
    shard_group: str = "default"
    mailbox_capacity: int = 4096
    concurrency: int = 1
    max_idle: timedelta = timedelta(minutes=1)
    shard_key: Callable[[str], str] | None = None
    on_activate: HandlerSpec | None = None
    """The hook, if the class defines one; it takes the instance only."""
    on_deactivate: HandlerSpec | None = None
    singleton_id: str | None = None
    """The one id of a singleton; `None` for other types. The fields below belong to singletons, too."""
    state_ttl: float | None = None
    """Seconds without a write after which the stored state is ignored."""
    on_become_leader: HandlerSpec | None = None
    on_lose_leadership: HandlerSpec | None = None
    main_loop: HandlerSpec | None = None
    """Its `run`."""

    @property
    def crons(self) -> dict[str, HandlerSpec]:
        """The handlers that schedules run, by the schedule's name."""
        return {str(cron.name): handler for handler in self.handlers.values() for cron in handler.crons}

    def check_id(self, entity_id: object, max_bytes: int) -> str:
        """Return `entity_id` if an entity of this type can have it.

        Raises:
            MalformedMessage: it is not valid, or is another than the one id of a singleton.
        """
        checked = check_entity_id(entity_id, max_bytes)
        if self.singleton_id is not None and checked != self.singleton_id:
            raise MalformedMessage(
                f"{self.name} is a singleton: its only entity id is {self.singleton_id!r}, not {checked!r}"
            )
        return checked

    def handler(self, name: str) -> HandlerSpec:
        """Return the handler called `name`.

        Raises:
            UnknownHandler: there is none; the text lists the handlers that exist.
        """
        spec = self.handlers.get(name)
        if spec is None:
            known = ", ".join(sorted(self.handlers)) or "none"
            raise UnknownHandler(f"{self.name} has no handler {name!r}: it has {known}")
        return spec


def operation_spec(subject: str, name: str) -> HandlerSpec:
    """Return the spec of an operation that belongs to no entity; it stands where a call has its handler."""
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
