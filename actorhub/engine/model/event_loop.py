"""Everything of a connection happens in one event loop: that in which it was made."""

import asyncio

from actorhub.core.errors import NotConnected


def check_loop(loop: asyncio.AbstractEventLoop, what: str) -> None:
    """Refuse what runs anywhere else than in `loop`.

    Raises:
        NotConnected: It runs in another event loop, in another thread, in none, or in a forked process.
    """
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        raise elsewhere(what) from None
    if here is not loop:
        raise elsewhere(what)


def elsewhere(what: str) -> NotConnected:
    """Return the error of what was called elsewhere than in the event loop of its connection."""
    return NotConnected(
        f"{what}: this is not the event loop, thread or process of the connection, and nothing was sent: in a thread, "
        "use asyncio.run_coroutine_threadsafe(call, loop) with the loop of the connection; in another process, connect "
        "there, and start it by multiprocessing's spawn instead of a fork"
    )
