"""A process that is cut off from one runner, and from nobody else."""

from actorhub import Cluster
from actorhub.cluster import part_of
from actorhub.engine.routing.peers import Peer
from actorhub.testing import MemoryCluster, until
from tests.partitions.entities import Desk


class Cut:
    """A caller that is cut off from the owner of `far`, and from nobody else."""

    def __init__(self, memory: MemoryCluster, caller: Cluster, owner: Cluster, third: Cluster) -> None:
        self.memory = memory
        self.caller = caller
        self.owner = owner
        self.third = third
        self.far = next(name for name in (f"e{n}" for n in range(400)) if owner.is_local(Desk, name))
        self.near = next(name for name in (f"e{n}" for n in range(400)) if third.is_local(Desk, name))

    def heal(self) -> None:
        """Make the network whole again."""
        for runner in self.memory.runners:
            if runner is not self.caller:
                self.memory.heal(self.caller, runner)

    def link(self) -> Peer | None:
        """Return over which link the caller calls the owner."""
        return part_of(self.caller).node.peers.linked.get(part_of(self.owner).node.incarnation)

    async def goes_around(self) -> None:
        """Wait until there is a link through the third process."""
        await until(lambda: (link := self.link()) is not None and link.via is not None, "a way around")

    async def is_direct(self) -> None:
        """Wait until there is a direct link."""
        await until(lambda: (link := self.link()) is not None and link.via is None, "a direct link")


async def cut_off(memory: MemoryCluster, who: str) -> Cut:
    """Start three runners and a client, and cut one of them, the `runner` or the `client`, off from one of the others.

    The client is also cut off from the second runner, so that there is one way around and no other.
    """
    one, owner, third = [await memory.start_runner() for _ in range(3)]
    client = await memory.client()
    await memory.settled()
    cut = Cut(memory, one if who == "runner" else client, owner, third)
    memory.cut(cut.caller, owner)
    if who == "client":
        memory.cut(client, one)
    return cut
