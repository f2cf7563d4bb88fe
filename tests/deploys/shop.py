"""A program in two releases, which runs with this release of the library and with the one before.

`SHOP_RELEASE` says which one: 1 or 2. In the second one handlers have become durable and stopped being so, one is gone
and one is new, another one takes other arguments, a field of the state has another name, and the class has moved here
from another module, as far as its name can tell. `SHOP_PLACEMENT` says in which shards its entities are.
"""

import importlib.util
import os
from typing import Any

import msgspec

from actorhub import Entity, Hub, handler

RELEASE = int(os.environ.get("SHOP_RELEASE", "1"))


def _first(entity_id: str) -> str:
    return entity_id[:2]


PLACEMENTS: dict[str, dict[str, Any]] = {
    "": {},
    "group": {"shard_group": "moved"},
    "key": {"shard_key": _first},
    "both": {"shard_group": "moved", "shard_key": _first},
}
PLACEMENT = PLACEMENTS[os.environ.get("SHOP_PLACEMENT", "")]


class Order(msgspec.Struct, frozen=True):
    op: str

    def primary_key(self) -> str:
        """Its idempotency key."""
        return self.op


class Line(msgspec.Struct):
    op: str
    runs: int = 0


class PricedLine(msgspec.Struct):
    op: str
    runs: int = 0
    price: int = 7


class First(msgspec.Struct):
    ops: dict[str, Line] = {}
    count: int = 0


class Second(msgspec.Struct):
    ops: dict[str, PricedLine] = {}
    total: int = 0


class Account(Entity[First], name="account", **PLACEMENT):
    """The first release."""

    def _note(self, op: str) -> int:
        self.state.ops.setdefault(op, Line(op)).runs += 1
        self.state.count += 1
        return self.state.count

    @handler(durable=True)
    async def add(self, op: str) -> int:
        return self._note(op)

    async def becomes_durable(self, order: Order) -> int:
        return self._note(order.op)

    @handler(durable=True)
    async def stops_being_durable(self, order: Order) -> int:
        return self._note(order.op)

    @handler(durable=True)
    async def takes_something_else(self, op: str, amount: int) -> int:
        return self._note(op)

    @handler(durable=True)
    async def is_removed(self, op: str) -> int:
        return self._note(op)

    async def is_told_to_all(self) -> None: ...

    @handler(readonly=True)
    async def runs(self) -> dict[str, int]:
        return {op: line.runs for op, line in self.state.ops.items()}


class NextAccount(Entity[Second], name="account", **PLACEMENT):
    """The second release."""

    def _note(self, op: str) -> int:
        self.state.ops.setdefault(op, PricedLine(op)).runs += 1
        self.state.total += 1
        return self.state.total

    @handler(durable=True)
    async def add(self, op: str) -> int:
        return self._note(op)

    @handler(durable=True)
    async def becomes_durable(self, order: Order) -> int:
        return self._note(order.op)

    async def stops_being_durable(self, order: Order) -> int:
        return self._note(order.op)

    @handler(durable=True)
    async def takes_something_else(self, op: str, amount: dict[str, int]) -> int:
        return self._note(op)

    @handler(durable=True)
    async def is_added(self, op: str) -> int:
        return self._note(op)

    @handler(durable=True)
    async def is_told_to_all(self) -> None: ...

    @handler(readonly=True)
    async def runs(self) -> dict[str, int]:
        return {op: line.runs for op, line in self.state.ops.items()}


hub = Hub()
hub.register(Account if RELEASE == 1 else NextAccount)

if "SHOP_PATIENCE" in os.environ and importlib.util.find_spec("actorhub.engine.durable.strays") is not None:
    # In the real world a message waits for ten minutes for a release that has its handler.
    strays = importlib.import_module("actorhub.engine.durable.strays")
    vars(strays)["PATIENCE"] = float(os.environ["SHOP_PATIENCE"])
