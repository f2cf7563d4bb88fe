"""How a method with `@cron` is called: its schedule decides whether the instant is run, and notes what became of it."""

import functools
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

from actorhub.engine.message import running

Method = Callable[..., Coroutine[Any, Any, Any]]


def cron_function(method: Method) -> Method:
    """Return what runs instead of the method; a skipped instant returns `None`."""

    @functools.wraps(method)
    async def run(instance: object, at: datetime) -> Any:
        message = running.get()
        assert message is not None
        assert message.cell is not None
        led = message.cell.shard.host.singletons.led_in(message.cell)
        return await led.schedules.run(message, at, functools.partial(method, instance, at))

    return run
