"""The store's answers, which come as futures."""

import asyncio
from asyncio import Future
from typing import Any

from actorhub.core.errors import ActorhubError, PersistenceError
from actorhub.engine.model.records import HostedShard


class Unanswered(asyncio.CancelledError):
    """A run was cancelled whose commit may come to pass; nothing may be sent that depends on it."""


def store_error(outcome: "Future[Any]") -> ActorhubError | None:
    """Return the error with which a request to the store failed, if it did; asyncio notes that it was retrieved."""
    error = PersistenceError("the store was closed") if outcome.cancelled() else outcome.exception()
    if error is None or isinstance(error, ActorhubError):
        return error
    return PersistenceError(f"the store failed: {error!r}", possibly_executed=True)


async def until_answered(future: "Future[Any]", shard: HostedShard) -> bool:
    """Wait for the answer through any cancellation, and return whether there was one.

    Who is cancelled in the middle of a commit must still learn its outcome: the commit goes on, and what this process
    believes to be committed depends on it. Once the shard is lost nothing does: the next owner asks the store. Then a
    store that does not answer must not hold up what comes after the run, such as `on_lose_leadership`, for which the
    next leader does not wait long.

    Raises:
        Unanswered: It was cancelled, and the shard is lost.
    """
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            if shard.is_lost:
                future.add_done_callback(store_error)
                raise Unanswered from None
            cancelled = True
    return cancelled
