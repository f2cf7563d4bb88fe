"""Several runners' ownership in one process, with a ledger that judges every grant."""

import asyncio
import selectors
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from actorhub.core.address import RunnerAddress, RunnerInfo, ShardId, ShardOwner
from actorhub.core.clock import Clock, SystemClock
from actorhub.engine.model.lease import Lease
from actorhub.engine.ownership.loop import Ownership
from actorhub.engine.supervision import Supervisor
from actorhub.storage.memory import MemoryStorage, MemoryStore
from actorhub.storage.ports import LiveRunner, Storage
from actorhub.storage.postgres.dedicated import DedicatedSession

T = TypeVar("T")
SHARDS = 30


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits: where a loop would sleep, its time jumps."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("everything waits for everything: a deadlock in virtual time")
        # At least a little, as real time does: else what is due in less than a float can add would never be due.
        self.now += max(1e-9, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer; for code without real I/O."""

    def __init__(self) -> None:
        self.selector = _JumpingSelector()
        super().__init__(self.selector)

    def time(self) -> float:
        return float(self.selector.now)


class VirtualClock(SystemClock):
    """The clock of a `VirtualLoop`."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self.time = lambda: 1e9 + loop.time()
        self.monotonic = loop.time


def in_virtual_time(scenario: Callable[["Cluster", MemoryStore], Coroutine[Any, Any, T]]) -> T:
    """Run a scenario on a memory store where seconds cost nothing."""
    loop = VirtualLoop()
    clock = VirtualClock(loop)
    store = MemoryStore(clock)
    cluster = Cluster(lambda: MemoryStorage(store), clock)

    async def run() -> T:
        try:
            async with asyncio.timeout(1000):
                return await scenario(cluster, store)
        finally:
            await cluster.aclose()

    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


@dataclass
class Tenure:
    """One runner's time with one shard."""

    shard: ShardId
    incarnation: str
    epoch: int
    since: float
    until: float | None = None


@dataclass
class Ledger:
    """Who acted for which shard when: tenures of a shard never overlap, and its epochs strictly grow."""

    clock: Clock
    tenures: list[Tenure] = field(default_factory=list)
    current: dict[ShardId, Tenure] = field(default_factory=dict)
    last_epoch: dict[ShardId, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def begins(self, shard: ShardId, incarnation: str, epoch: int) -> None:
        if shard in self.current:
            self.wrong.append(f"{incarnation} got {shard} from under {self.current[shard].incarnation}")
        if epoch <= self.last_epoch.get(shard, 0):
            self.wrong.append(f"{incarnation} got {shard} at epoch {epoch} after {self.last_epoch[shard]}")
        self.last_epoch[shard] = epoch
        self.current[shard] = Tenure(shard, incarnation, epoch, self.clock.monotonic())
        self.tenures.append(self.current[shard])

    def ends(self, shard: ShardId, incarnation: str) -> None:
        tenure = self.current.get(shard)
        if tenure is not None and tenure.incarnation == incarnation:
            tenure.until = self.clock.monotonic()
            del self.current[shard]

    def dies(self, incarnation: str) -> None:
        """End all tenures of a runner that is gone and so can tell nobody."""
        for shard, tenure in list(self.current.items()):
            if tenure.incarnation == incarnation:
                self.ends(shard, incarnation)


class RecordingHost:
    """Records what it is told, and can take its time to drain."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self.events: list[tuple[str, frozenset[ShardId]]] = []
        self.drain_seconds: dict[ShardId, float] = {}
        self.drain_default = 0.0
        self.members: Sequence[LiveRunner] = ()
        self.reasons: list[str] = []

    async def prepare(self) -> None:
        """Nothing: what it records needs nothing."""

    def is_prepared(self) -> bool:
        return True

    def on_granted(self, shards: Mapping[ShardId, int]) -> None:
        self.events.append(("granted", frozenset(shards)))
        for shard, epoch in shards.items():
            self._node.cluster.ledger.begins(shard, self._node.incarnation, epoch)
        self._node.cluster.changed.set()

    def on_revoked(self, shards: Collection[ShardId], reason: str) -> None:
        self.events.append(("revoked", frozenset(shards)))
        self.reasons.append(reason)
        for shard in shards:
            self._node.cluster.ledger.ends(shard, self._node.incarnation)
        self._node.cluster.changed.set()

    def hasten(self, shard: ShardId, grace: float) -> None:
        """Drains of this host end when a test says so."""

    async def drain(self, shard: ShardId, grace: float) -> None:
        self.events.append(("drain", frozenset([shard])))
        await asyncio.sleep(self.drain_seconds.get(shard, self.drain_default))
        self.events.append(("drained", frozenset([shard])))
        self._node.cluster.ledger.ends(shard, self._node.incarnation)

    async def spare(self, shards: Collection[ShardId]) -> None:
        self.events.append(("spared", frozenset(shards)))

    def observe_time(self, now: float) -> None:
        """Time does not matter here."""

    def on_members_changed(self, runners: Sequence[LiveRunner]) -> None:
        self.members = runners
        self._node.cluster.changed.set()

    def on_released(self, shards: Mapping[ShardId, RunnerAddress | None]) -> None:
        self.events.append(("released", frozenset(shards)))
        for node in self._node.cluster.nodes:
            theirs = [shard for shard, owner in shards.items() if owner == node.info.runner]
            if theirs and node is not self._node and not node.dead:
                node.ownership.nudge(theirs)

    async def has_let_go(self, owner: RunnerAddress, tenures: Sequence[ShardOwner], seconds: float) -> bool:
        """Ask the former owner, if there is a way to it."""
        cluster = self._node.cluster
        cluster.asked.append((self._node.info.runner.address, owner.address))
        await asyncio.sleep(0)
        former = next((node for node in cluster.nodes if node.info.runner == owner), None)
        if former is None or former.dead:
            return True
        return owner not in cluster.unreachable and await former.ownership.let_go(tenures, self._node.incarnation)

    async def is_dead(self, runner: RunnerAddress) -> bool:
        """Look whether its process is there."""
        await asyncio.sleep(0)
        found = next((node for node in self._node.cluster.nodes if node.info.runner == runner), None)
        return found is None or found.dead

    def order(self, shard: ShardId) -> list[str]:
        """Return what happened to `shard`, in order."""
        return [event for event, shards in self.events if shard in shards]


class Node:
    """One runner's ownership with a supervisor and a storage of its own."""

    def __init__(self, cluster: "Cluster", info: RunnerInfo, handover_grace: float) -> None:
        self.cluster = cluster
        self.info = info
        self.dead = False
        self.host = RecordingHost(self)
        self.storage = cluster.make_storage()
        self.supervisor = Supervisor(cluster.clock)
        self.ownership = Ownership(
            storage=self.storage,
            clock=cluster.clock,
            info=info,
            shards_per_group=SHARDS,
            lease=Lease(cluster.clock),
            host=self.host,
            supervisor=self.supervisor,
            handover_grace=handover_grace,
        )

    @property
    def incarnation(self) -> str:
        return self.info.runner.incarnation

    @property
    def shards(self) -> set[ShardId]:
        return set(self.ownership.owned)

    def hang_up(self) -> None:
        """Close the connection of the lock session, as the system does for a process that has died."""
        held = self.ownership._holdings.session
        if held is not None and isinstance(held._session, DedicatedSession):
            held._session._lose("its process has died")


class Cluster:
    """The runners of one test."""

    def __init__(
        self, make_storage: Callable[[], Storage], clock: Clock, *, sessions_outlive_processes: bool = False
    ) -> None:
        self.make_storage = make_storage
        self._sessions_outlive_processes = sessions_outlive_processes
        self.clock = clock
        self.ledger = Ledger(clock)
        self.changed = asyncio.Event()
        self.nodes: list[Node] = []
        self.unreachable: set[RunnerAddress] = set()
        """Runners that nobody reaches, but for the store."""
        self.asked: list[tuple[str, str]] = []
        """Who asked which former owner to let go."""

    def node(self, address: str, *, weight: float = 1.0, handover_grace: float = 10.0) -> Node:
        """Prepare a runner."""
        runner = RunnerAddress(address, self.clock.token())
        node = Node(self, RunnerInfo(runner=runner, weight=weight), handover_grace)
        self.nodes.append(node)
        return node

    async def start(self, *addresses: str, handover_grace: float = 10.0) -> list[Node]:
        """Start runners one after the other."""
        nodes = [self.node(address, handover_grace=handover_grace) for address in addresses]
        for node in nodes:
            await node.storage.open()
            await node.ownership.start()
        return nodes

    async def balanced(self, *nodes: Node, deadline: float = 20.0) -> None:
        """Wait until `nodes` own everything in fair shares and nothing moves."""

        def fair() -> bool:
            counts = [len(node.shards) for node in nodes]
            statistics = [node.ownership.statistics() for node in nodes]
            still = not any(one.shards_draining or one.shards_acquiring for one in statistics)
            return still and sum(counts) == SHARDS and max(counts) - min(counts) <= 1

        await self.until(fair, deadline)

    async def until(self, condition: Callable[[], bool], deadline: float = 20.0) -> None:
        """Wait until `condition` holds."""
        try:
            async with asyncio.timeout(deadline):
                while not condition():
                    await asyncio.sleep(0.005)
        except TimeoutError:
            owned = {node.info.runner.address: len(node.shards) for node in self.nodes if not node.dead}
            raise AssertionError(f"not reached within {deadline} s; shards owned: {owned}") from None

    async def kill(self, node: Node, *, seen: bool = True) -> None:
        """End a runner as SIGKILL does, and its session if the store does so; `seen`: its peers' streams break."""
        node.dead = True
        await node.supervisor.aclose(1.0)
        self.ledger.dies(node.incarnation)
        survivor = next(other for other in self.nodes if not other.dead)
        if self._sessions_outlive_processes:
            node.hang_up()
        else:
            await survivor.storage.terminate_sessions(node.incarnation)
        if seen:
            for other in self.nodes:
                if not other.dead:
                    other.ownership.suspect(node.incarnation)

    async def aclose(self) -> None:
        """End everything that still runs."""
        for node in self.nodes:
            if not node.dead:
                node.dead = True
                await node.ownership.leave(0.0)
            await node.supervisor.aclose(2.0)
            await node.storage.aclose()
