"""Entities that end their process before a handler starts, for `actorhub serve tests.durable.poison:hub`."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Final

from actorhub import Entity, Hub, Retry, current, handler

DEATHS: Final = "POISON_DEATHS"
"""The environment variable that names the file with a line per death."""
RUNS: Final = 2
_TWICE: Final = Retry(attempts=RUNS, initial=timedelta(milliseconds=10))


def die(where: str) -> None:
    """End this process as the kernel ends one that takes too much memory."""
    with Path(os.environ[DEATHS]).open("a") as deaths:
        deaths.write(f"{where}\n")
    os._exit(9)


class Plain(Entity):
    """Has neither state nor hooks, so its constructor is all that there is to do."""

    def __init__(self) -> None:
        die("plain")

    @handler(durable=True, retry=_TWICE)
    async def work(self) -> int:
        return 1


class Hooked(Entity[int]):
    """Its hook kills, for some ids."""

    async def on_activate(self) -> None:
        if current().entity_id != "healthy":
            die("hooked")

    @handler(durable=True, retry=_TWICE)
    async def work(self) -> int:
        return 1


hub = Hub()
hub.register(Plain)
hub.register(Hooked)
