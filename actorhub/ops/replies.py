"""The border between our errors and gRPC's: every RPC ends in an answer or in a status that says why not."""

import logging
from collections.abc import Awaitable
from typing import Final, NoReturn, Protocol, TypeVar

import grpc

from actorhub.core.errors import (
    ActorhubError,
    AlreadyProcessing,
    CallTimeout,
    ConfigurationError,
    EntityNotAssigned,
    MailboxFull,
    MalformedMessage,
    MessageTooLarge,
    UnknownEntityType,
    UnknownHandler,
    UnknownMessage,
)
from actorhub.engine.runner import LinkAcceptor, Runner

T = TypeVar("T")

_log: Final = logging.getLogger("actorhub.ops")

_LONGEST_TEXT: Final = 2000


class NotServing(ActorhubError):
    """This runner cannot answer (yet, or any more). Seen by the caller; another runner may answer."""


_STATUS: Final[tuple[tuple[type[ActorhubError], grpc.StatusCode], ...]] = (
    (MalformedMessage, grpc.StatusCode.INVALID_ARGUMENT),
    (ConfigurationError, grpc.StatusCode.INVALID_ARGUMENT),
    (MessageTooLarge, grpc.StatusCode.INVALID_ARGUMENT),
    (UnknownEntityType, grpc.StatusCode.NOT_FOUND),
    (UnknownHandler, grpc.StatusCode.NOT_FOUND),
    (EntityNotAssigned, grpc.StatusCode.NOT_FOUND),
    (UnknownMessage, grpc.StatusCode.NOT_FOUND),
    (AlreadyProcessing, grpc.StatusCode.FAILED_PRECONDITION),
    (MailboxFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (CallTimeout, grpc.StatusCode.DEADLINE_EXCEEDED),
)


class Rpc(Protocol):
    """What is used of gRPC's context of one call."""

    async def abort(self, code: grpc.StatusCode, details: str, /) -> NoReturn:
        """End the call with a status."""
        ...


async def answered(rpc: Rpc, work: Awaitable[T]) -> T:
    """Return the result of `work`; an error ends the call with its status instead."""
    try:
        return await work
    except ActorhubError as error:
        await rpc.abort(status_of(error), str(error)[:_LONGEST_TEXT])
    except Exception:  # noqa: BLE001 - RPC server: without a status the caller would learn nothing
        _log.exception("a request failed")
        await rpc.abort(grpc.StatusCode.INTERNAL, "internal error: see the log of this runner")


def status_of(error: ActorhubError) -> grpc.StatusCode:
    """Return the gRPC status that means `error`."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), grpc.StatusCode.UNAVAILABLE)


def runner_of(door: LinkAcceptor) -> Runner:
    """Return the runner behind `door`.

    Raises:
        NotServing: it is still being made.
    """
    if door.runner is None:
        raise NotServing("this runner is starting: ask again, or ask another one")
    return door.runner
