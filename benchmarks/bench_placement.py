"""How long does placement take, and how many shards move when one runner joins or leaves?

Prints one JSON object. Every timed call is cold, because placement keeps nothing between calls. Times are CPU times,
because other work may share the machine.
"""

import argparse
import json
import platform
import random
import statistics
import subprocess
import time
from collections import Counter
from pathlib import Path

from actorhub.engine.ownership.placement import PLACEMENT_VERSION, Candidate, place


def commit() -> str:
    """Return the commit that is measured, or `unknown` outside a repository."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def measure(count: int, shards: int, holes: int, clusters: int) -> dict[str, object]:
    """Return times, balance and moved ratios of `clusters` clusters of `count` runners with `holes` at random slots."""
    times: list[float] = []
    joins: list[float] = []
    leaves: list[float] = []
    farthest = 0.0
    group = ""
    for seed in range(clusters):
        chance = random.Random(seed)
        group = f"group {seed}"
        slots = sorted(chance.sample(range(count + holes), count))
        started = time.process_time()
        layout = place(group, shards, _runners(group, slots))
        times.append((time.process_time() - started) * 1000)
        farthest = max(farthest, *(abs(load - shards / count) for load in Counter(layout).values()))
        lowest = min(set(range(count + 1)) - set(slots))
        joined = place(group, shards, _runners(group, [*slots, lowest]))
        joins.append(_moved(layout, joined) / (shards / (count + 1)))
        gone = chance.choice(slots)
        left = place(group, shards, _runners(group, [slot for slot in slots if slot != gone]))
        leaves.append(_moved(layout, left) / (shards / count))
    times.sort()
    return {
        "runners": count,
        "shards": shards,
        "holes": holes,
        "clusters": clusters,
        "cpu_ms_p50": round(statistics.median(times), 2),
        "cpu_ms_p99": round(times[min(len(times) - 1, int(len(times) * 0.99))], 2),
        "farthest_from_fair_share": round(farthest, 3),
        "moved_on_join_to_ideal": {"mean": round(statistics.mean(joins), 3), "max": round(max(joins), 3)},
        "moved_on_leave_to_ideal": {"mean": round(statistics.mean(leaves), 3), "max": round(max(leaves), 3)},
    }


def _runners(group: str, slots: list[int]) -> list[Candidate]:
    return [Candidate(address=f"10.0.0.{slot}:7700", slot=slot, groups=(group,)) for slot in slots]


def _moved(before: tuple[str | None, ...], after: tuple[str | None, ...]) -> int:
    return sum(old != new for old, new in zip(before, after, strict=True))


def main() -> None:
    """Measure the sizes that matter and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clusters", type=int, default=100, help="different clusters per size")
    arguments = parser.parse_args()
    sizes = [(3, 300), (10, 300), (30, 300), (50, 10_000)]
    report = {
        "benchmark": "placement",
        "commit": commit(),
        "machine": f"{platform.machine()} {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "algorithm": PLACEMENT_VERSION,
        "results": [
            measure(count, shards, holes, arguments.clusters)
            for count, shards in sizes
            for holes in (0, 1, 5)
            if holes < count
        ],
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
