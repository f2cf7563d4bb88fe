"""The hub of the tests of registers: entities that remember what was applied to them."""

import asyncio
import time
from datetime import timedelta

import msgspec

from actorhub import Entity, Hub, current, handler
from tests.faults.cluster.notes import Notes

notes = Notes()


class Applied(msgspec.Struct, array_like=True):
    """One operation in a register's state."""

    number: int
    epoch: int


class Applications(msgspec.Struct):
    """Every operation that was committed, in order."""

    done: list[Applied] = []


class Register(Entity[Applications], name="register"):
    """Remembers the operations that it applied."""

    async def apply(self, number: int, hold_ms: int, block_ms: int = 0) -> int:
        """Append an operation and return how many there are, after waiting, or after blocking the event loop."""
        here = current()
        notes.add(time.monotonic(), here.entity_id, number, here.epoch)
        self.state.done.append(Applied(number, here.epoch))
        if hold_ms:
            await asyncio.sleep(hold_ms / 1000)
        if block_ms:
            time.sleep(block_ms / 1000)  # noqa: ASYNC251 - on purpose: a handler that computes
        return len(self.state.done)

    @handler(readonly=True)
    async def applied(self) -> list[Applied]:
        """Return the operations in order."""
        return self.state.done


class Relay(Entity, name="relay"):
    """Calls registers from inside the cluster."""

    async def forward(self, key: str, number: int, hold_ms: int) -> int:
        """Apply an operation to the register of `key`, wherever it lives."""
        return await current().client(Register)(key).apply(number, hold_ms)

    async def forward_many(self, keys: list[str], number: int, block_ms: int) -> int:
        """Apply an operation to registers at the same time; the first of them blocks the event loop."""
        register = current().client(Register).options(timeout=timedelta(seconds=20))
        async with asyncio.TaskGroup() as tasks:
            for index, key in enumerate(keys):
                tasks.create_task(_apply(register(key), number + index, 0 if index else block_ms))
        return len(keys)


async def _apply(register: Register, number: int, block_ms: int) -> None:
    await register.apply(number, 0, block_ms)


hub = Hub()
hub.register(Register)
hub.register(Relay)
