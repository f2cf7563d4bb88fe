"""Callers of one release, until SIGTERM: prints each call that was acknowledged, and each error, as a line of JSON.

Runs as a program of its own, beside `shop`, with this release of the library and with the one before.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

from actorhub import Cluster
from tests.deploys import shop

ENTITIES = 12
PATIENCE = timedelta(seconds=20)
SOON = timedelta(seconds=1.5)


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)


class Load:
    """One caller: each round it calls each handler of one entity."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self._entity: Any = shop.Account if shop.RELEASE == 1 else shop.NextAccount
        self._client: Any = cluster.client(self._entity).options(timeout=PATIENCE)
        self._name = name
        self._round = 0

    async def run(self) -> None:
        while True:
            self._round += 1
            account: Any = self._client(f"a{self._round % ENTITIES}")
            op = f"{self._name}-{self._round}"
            await self._try("ask", f"{op}-add", account.add(f"{op}-add"))
            await self._tell(f"{op}-told", account.add(f"{op}-told"))
            for _ in range(2):
                await self._try("pay", f"{op}-becomes", account.becomes_durable(shop.Order(f"{op}-becomes")))
                await self._try("pay", f"{op}-stops", account.stops_being_durable(shop.Order(f"{op}-stops")))
            if shop.RELEASE == 1:
                await self._tell(f"{op}-removed", account.is_removed(f"{op}-removed"), delay=SOON)
                await self._tell(f"{op}-else", account.takes_something_else(f"{op}-else", 5), delay=SOON)
            else:
                await self._tell(f"{op}-added", account.is_added(f"{op}-added"))
                await self._tell(f"{op}-else", account.takes_something_else(f"{op}-else", {"eur": 5}), delay=SOON)
            if shop.RELEASE == 1 and self._round % 10 == 1:
                await self._try("all", op, self._cluster.tell(self._client.active().is_told_to_all()))

    async def _tell(self, op: str, call: Awaitable[object], delay: timedelta | None = None) -> None:
        await self._try("tell", op, self._cluster.tell(call, delay=delay))

    async def _try(self, kind: str, op: str, call: Awaitable[object]) -> None:
        entity_id = f"a{self._round % ENTITIES}"
        try:
            result = await call
        except Exception as error:  # noqa: BLE001 - whoever judges them sees all
            text = f"{getattr(error, 'type', '')} {error}"
            say(kind="error", op=op, error=type(error).__name__, text=text[:300])
        else:
            say(kind=kind, op=op, entity_id=entity_id, message_id=result if kind == "tell" else 0)


async def main() -> None:
    gateways, name = sys.argv[1].split(","), sys.argv[2]
    until = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, until.set)
    async with shop.hub.connect(gateway=gateways) as cluster:
        say(kind="begun")
        async with asyncio.TaskGroup() as tasks:
            load = tasks.create_task(Load(cluster, name).run())
            await until.wait()
            load.cancel()  # What it waits for is not acknowledged.


if __name__ == "__main__":
    asyncio.run(main())
