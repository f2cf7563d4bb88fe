"""Ways to register a class with a hub."""

from actorhub import Entity, Hub
from actorhub.testing import MemoryCluster

hub = Hub()


@hub.register
class Counter(Entity[int]):
    async def add(self) -> int:
        self.state += 1
        return self.state


async def test_register_above_a_class_leaves_the_class_there() -> None:
    """As a decorator it registers the class, and type checkers still know its handlers."""
    async with MemoryCluster(hub) as memory:
        await memory.start_runner()
        client = await memory.client()
        assert await client.client(Counter)("a").add() == 1
