"""Clients that call registers and write down what they saw."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from actorhub.cluster import Cluster
from actorhub.core.errors import ActorhubError
from tests.faults.registers.history import History, Operation
from tests.faults.registers.hub import Register, Relay

_TIMEOUTS = (1.0, 4.0, 15.0)


class RecordedClients:
    """One client per key, one operation at a time each, with a little pause in between."""

    def __init__(
        self,
        cluster: Cluster,
        keys: int,
        chance: random.Random,
        timeouts: Sequence[float] = _TIMEOUTS,
        prefix: str = "k",
    ) -> None:
        self._timeouts = timeouts
        self.history = History()
        self.keys = [f"{prefix}{number}" for number in range(keys)]
        self._cluster = cluster
        self._chance = chance
        self._stopping = False
        self._last_ok = dict.fromkeys(self.keys, 0.0)

    async def run(self, key: str, *, relayed: bool) -> None:
        """Send operations until `stop`."""
        number = 0
        while not self._stopping:
            number += 1
            await self.send(key, number, relayed=relayed)
            await asyncio.sleep(self._chance.uniform(0.02, 0.08))

    async def send(
        self, key: str, number: int, *, relayed: bool = False, hold_ms: int | None = None, timeout: float | None = None
    ) -> Operation:
        """Send one operation and write down how it ended."""
        hold = self._chance.choice((0, 0, 5, 30)) if hold_ms is None else hold_ms
        limit = timedelta(seconds=timeout or self._chance.choice(self._timeouts))
        operation = Operation(key, number, time.monotonic())
        self.history.operations.append(operation)
        try:
            if relayed:
                relay = self._cluster.client(Relay).options(timeout=limit)(f"via-{key}")
                operation.position = await relay.forward(key, number, hold)
            else:
                operation.position = (
                    await self._cluster.client(Register).options(timeout=limit)(key).apply(number, hold)
                )
        except ActorhubError as error:
            operation.outcome = "unknown" if error.possibly_executed else "failed"
            operation.error = f"{type(error).__name__}: {error}"
        else:
            operation.outcome = "ok"
            self._last_ok[key] = time.monotonic()
        finally:
            operation.completed = time.monotonic()
        return operation

    async def all_served(self, since: float, deadline: float) -> float:
        """Wait until every key had a success that began after `since`; return how long that took."""
        try:
            async with asyncio.timeout(deadline):
                while not all(self._served_since(key, since) for key in self.keys):
                    await asyncio.sleep(0.01)
        except TimeoutError:
            left = [key for key in self.keys if not self._served_since(key, since)]
            errors = [f"{o.key}/{o.number}: {o.outcome} {o.error}" for o in self.history.operations if o.key in left]
            raise AssertionError(f"not served within {deadline} s: {left}: {errors[-10:]}") from None
        return time.monotonic() - since

    def stop(self) -> None:
        """Let every client end after its present operation."""
        self._stopping = True

    def _served_since(self, key: str, since: float) -> bool:
        return self._last_ok[key] > since


@asynccontextmanager
async def recorded_clients(
    cluster: Cluster, keys: int, chance: random.Random, timeouts: Sequence[float] = _TIMEOUTS, prefix: str = "k"
) -> AsyncGenerator[RecordedClients, None]:
    """Run clients of `keys` keys in the background, half of them through another entity; end them with the block."""
    clients = RecordedClients(cluster, keys, chance, timeouts, prefix)
    async with asyncio.TaskGroup() as tasks:
        for index, key in enumerate(clients.keys):
            tasks.create_task(clients.run(key, relayed=index % 2 == 1))
        try:
            yield clients
        finally:
            clients.stop()


def explained(found: Sequence[str], limit: int = 30) -> str:
    """Return violations as text."""
    return "\n".join([f"{len(found)} violations:", *found[:limit]])
