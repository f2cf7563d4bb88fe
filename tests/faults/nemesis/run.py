"""One run of the nemesis: faults, on top of each other, and after each heap of them how long it took to recover."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.faults.cluster.faults import KINDS, Faults, Injected, Injection, explained_faults
from tests.faults.cluster.processes import ClusterProcesses
from tests.faults.durable.faults import DURABLE_KINDS
from tests.faults.durable.records import make_witness_table
from tests.faults.leaders.hub import TABLES
from tests.faults.nemesis.hub import hub
from tests.faults.nemesis.workloads import Workloads
from tests.faults.sagas.payments import payment_service

ALL_KINDS: Final[Mapping[str, Injection]] = {**DURABLE_KINDS, **KINDS}
TOGETHER: Final = "several on top of each other"
LOCKS: Final = os.environ.get("ACTORHUB_LOCKS", "session")
"""How runners hold their shards; they have the same environment."""


@dataclass(frozen=True)
class Plan:
    """What is to happen."""

    seed: int
    """Decides what comes when."""
    count: int
    """Faults."""
    kinds: Mapping[str, Injection] = field(default_factory=lambda: ALL_KINDS)
    longest: float = 3.0
    """Seconds that one lasts at most."""
    shortest: float = 0.15
    """Seconds that one lasts at least."""
    overlap: float = 0.3
    """How often one comes on top of the one before."""
    station: int = 100
    """Faults between two stations."""
    patience: float = 15.0
    """Seconds after the end of faults within which everything answers."""


@dataclass
class Outcome:
    """What a run was like."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter[str])
    recoveries: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Seconds from the end of a fault until everything had answered, by kind; of faults on top of each other as one."""
    acknowledged: Counter[str] = field(default_factory=Counter[str])
    reads: int = 0
    seconds: float = 0.0
    failed_starts: int = 0
    errors: Counter[str] = field(default_factory=Counter[str])
    """What calls failed with."""
    found: list[str] = field(default_factory=list[str])
    """Broken promises."""


async def run_nemesis(processes: ClusterProcesses, plan: Plan) -> Outcome:
    """Inject faults, and judge everything at each station and in the end."""
    outcome = Outcome(plan.seed)
    began = time.monotonic()
    with payment_service() as service:
        for runner in processes.runners:
            runner.environment["SAGA_PAYMENTS"] = service.url
        await make_witness_table(processes)
        async with processes.connection() as connection:
            await connection.execute(TABLES)
        await processes.start()
        async with (
            explained_faults(processes, plan.seed, plan.longest, plan.kinds, plan.shortest) as faults,
            hub.connect(gateway=processes.gateways) as cluster,
        ):
            workloads = Workloads(processes, cluster, service, plan.seed, plan.patience)
            async with workloads.going_on():
                while len(faults.done) < plan.count:
                    async with workloads.generation():
                        goal = min(plan.count, len(faults.done) + plan.station)
                        await _until(faults, workloads, outcome, goal, plan.overlap)
                    seconds, acknowledged = time.monotonic() - began, dict(workloads.acknowledged)
                    print(f"{seconds:.0f} s, {len(faults.done)} faults: {acknowledged}")
                    print(*workloads.found, sep="\n")
    outcome.faults = Counter(fault.kind for fault in faults.done)
    outcome.acknowledged, outcome.reads, outcome.found = workloads.acknowledged, workloads.reads, workloads.found
    outcome.errors = workloads.errors
    outcome.seconds, outcome.failed_starts = time.monotonic() - began, faults.failed_starts
    return outcome


async def _until(faults: Faults, workloads: Workloads, outcome: Outcome, count: int, overlap: float) -> None:
    """Go on until there were so many faults; in the end all runners are well."""
    async with asyncio.TaskGroup() as tasks:
        while len(faults.done) < count:
            heap = [await _inject(faults, workloads)]
            while len(faults.done) < count and faults.has_victim and faults.chance.random() < overlap:
                heap.append(await _inject(faults, workloads))
            faults.undo()
            ended = time.monotonic()
            tasks.create_task(faults.revive())
            seconds = await workloads.all_answer(ended)
            kind = heap[0].kind if len(heap) == 1 else TOGETHER
            outcome.recoveries.setdefault(kind, []).append(seconds)
            print(f"{ended:.2f} {'; '.join(fault.text for fault in heap)}: recovered after {seconds:.2f} s")
    await faults.mend()


async def _inject(faults: Faults, workloads: Workloads) -> Injected:
    """Inject a fault; what a runner should not have done meanwhile is a broken promise like any other."""
    try:
        return await faults.inject()
    except AssertionError as error:
        workloads.found.append(f"{faults.done[-1]}: {error}")
        return faults.done[-1]
