"""How long placement takes, and how many shards move when one runner joins or leaves.

Prints one JSON object. Every timed call is cold: placement keeps nothing between calls.
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections import Counter
from pathlib import Path

from actorhub.engine.placement import PLACEMENT_VERSION, Candidate, place


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


def cluster_of(count: int, seed: int) -> list[Candidate]:
    """Return `count` equal runners at addresses that depend on `seed`."""
    return [Candidate(address=f"10.{seed}.0.{index}:7700") for index in range(count)]


def measure(count: int, shards: int, clusters: int) -> dict[str, object]:
    """Return times, balance and moved ratios over `clusters` different clusters of `count` runners."""
    times: list[float] = []
    joins: list[float] = []
    leaves: list[float] = []
    farthest = 0.0
    for seed in range(clusters):
        cluster = cluster_of(count + 1, seed)
        layouts: dict[int, tuple[str | None, ...]] = {}
        for size in (count - 1, count, count + 1):
            started = time.perf_counter()
            layouts[size] = place("default", shards, cluster[:size])
            if size == count:
                times.append((time.perf_counter() - started) * 1000)
            loads = Counter(layouts[size])
            farthest = max(farthest, *(abs(load - shards / size) for load in loads.values()))
        joins.append(_moved(layouts[count], layouts[count + 1]) / (shards / (count + 1)))
        leaves.append(_moved(layouts[count], layouts[count - 1]) / (shards / count))
    times.sort()
    return {
        "runners": count,
        "shards": shards,
        "clusters": clusters,
        "ms_p50": round(statistics.median(times), 2),
        "ms_p99": round(times[min(len(times) - 1, int(len(times) * 0.99))], 2),
        "farthest_from_fair_share": round(farthest, 3),
        "moved_on_join_to_ideal": {"mean": round(statistics.mean(joins), 3), "max": round(max(joins), 3)},
        "moved_on_leave_to_ideal": {"mean": round(statistics.mean(leaves), 3), "max": round(max(leaves), 3)},
    }


def _moved(before: tuple[str | None, ...], after: tuple[str | None, ...]) -> int:
    return sum(old != new for old, new in zip(before, after, strict=True))


def main() -> None:
    """Measure the sizes that matter and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clusters", type=int, default=100, help="different clusters per size")
    arguments = parser.parse_args()
    sizes = [(3, 300), (10, 300), (10, 10_000), (20, 10_000), (50, 10_000)]
    report = {
        "benchmark": "placement",
        "commit": commit(),
        "machine": f"{platform.machine()} {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "algorithm": PLACEMENT_VERSION,
        "results": [measure(count, shards, arguments.clusters) for count, shards in sizes],
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
