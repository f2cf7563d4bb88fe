"""Answers of the store, which come as futures."""

import asyncio
from asyncio import Future
from typing import Any

from actorhub.core.errors import ActorhubError, PersistenceError


def store_error(outcome: "Future[Any]") -> ActorhubError | None:
    """Return what a request to the store failed with; that it was looked at is noted."""
    error = PersistenceError("the store was closed") if outcome.cancelled() else outcome.exception()
    if error is None or isinstance(error, ActorhubError):
        return error
    return PersistenceError(f"the store failed: {error!r}", possibly_executed=True)


async def settled(future: "Future[Any]") -> bool:
    """Wait for a commit through cancellations, and return whether there was one.

    Whoever is cancelled in the middle of a commit must still learn its outcome: the commit goes on, and what is known
    of the entity's state depends on it.
    """
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            cancelled = True
    return cancelled
