"""Hooks run like handlers: they know where they are, their changes are committed, their tells leave after that."""

from datetime import timedelta

from actorhub import Cluster, Entity, Hub, current
from actorhub.testing import MemoryCluster, until
from tests.support.gates import failure

told: list[str] = []


class Diary(Entity[list[str]], max_idle=timedelta(milliseconds=60)):
    """Writes down what its hooks see."""

    async def on_activate(self) -> None:
        here = current()
        self.state.append(f"{here.entity_type}/{here.entity_id} in epoch {here.epoch}")
        await here.tell(here.client(Listener)("one").hear(f"{here.entity_id} woke up"))

    async def on_deactivate(self) -> None:
        self.state.append(f"{current().entity_id} goes to sleep")
        await self.save()
        self.state.append("good night")

    async def pages(self) -> list[str]:
        return self.state


class Listener(Entity):
    """Hears of what others do."""

    async def hear(self, what: str) -> None:
        told.append(what)


class Restless(Entity[int]):
    """Tells of itself, and then cannot be made."""

    async def on_activate(self) -> None:
        await current().tell(current().client(Listener)("one").hear("never"))
        raise ValueError("not today")

    async def value(self) -> int:
        return self.state


hub = Hub()
for entity in (Diary, Listener, Restless):
    hub.register(entity)


async def test_a_hook_knows_its_entity(cluster: Cluster) -> None:
    """current() works in on_activate, and what it appended is there for the first handler."""
    told.clear()
    assert await cluster.client(Diary)("ada").pages() == ["diary/ada in epoch 1"]
    await until(lambda: told == ["ada woke up"], "the hook's tell")


async def test_what_on_deactivate_changes_is_committed(memory: MemoryCluster, cluster: Cluster) -> None:
    """State that changes at passivation, saved or not, is there at the next activation."""
    diary = cluster.client(Diary)("bob")
    await diary.pages()

    def slept() -> bool:
        stored = memory.stored("diary", "bob")
        return stored is not None and b"good night" in stored.data

    await until(slept, "passivation")
    assert await diary.pages() == [
        "diary/bob in epoch 1",
        "bob goes to sleep",
        "good night",
        "diary/bob in epoch 1",
    ]


async def test_a_hook_that_fails_tells_nobody(cluster: Cluster) -> None:
    """A tell of an activation that never came to be does not leave."""
    told.clear()
    assert "not today" in str(await failure(cluster.client(Restless)("eve").value()))
    await cluster.client(Listener)("one").hear("last")
    assert told == ["last"]
