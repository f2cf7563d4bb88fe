"""The store's answers, which come as futures."""

import asyncio
from asyncio import Future
from typing import Any

from actorhub.core.errors import ActorhubError, PersistenceError


def store_error(outcome: "Future[Any]") -> ActorhubError | None:
    """Return the error with which a request to the store failed, if it did; asyncio notes that it was retrieved."""
    error = PersistenceError("the store was closed") if outcome.cancelled() else outcome.exception()
    if error is None or isinstance(error, ActorhubError):
        return error
    return PersistenceError(f"the store failed: {error!r}", possibly_executed=True)


async def until_answered(future: "Future[Any]") -> bool:
    """Wait for the answer through any cancellation, and return whether there was one.

    Who is cancelled in the middle of a commit must still learn its outcome: the commit goes on, and what this process
    believes to be committed depends on it.
    """
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            cancelled = True
    return cancelled
