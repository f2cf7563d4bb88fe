"""Code that all benchmarks share: the environment, percentiles, event loops, fresh processes, and the JSON output."""

import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
LOOPS = ("asyncio", "uvloop")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of `values` lie, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def latencies(seconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p99 and p99.9 in microseconds."""
    shares = {"p50_us": 0.5, "p99_us": 0.99, "p999_us": 0.999}
    return {name: round(percentile(seconds, share) * 1e6, 1) for name, share in shares.items()}


def rss_bytes() -> int:
    """Return the largest resident size that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Return the present resident size of this process, or its largest if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return rss_bytes()
    return pages * resource.getpagesize()


def run(main: Coroutine[Any, Any, T], loop: str) -> T:
    """Run `main` on the event loop with this name."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop  # noqa: PLC0415 - the `speed` extra may be absent

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


@contextmanager
def peer(*command: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a Python script in a fresh process. Yield the process and its first line of output, and end it afterwards."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def result_of(*command: str) -> dict[str, Any]:
    """Run a Python script in a fresh process, and return the JSON that it prints last."""
    done = subprocess.run(
        [sys.executable, *command],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the median of each figure over `rounds`."""
    return {name: round(statistics.median(one[name] for one in rounds), 3) for name in rounds[0]}


def environment(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Return on what a benchmark runs: commit, machine, system and versions."""
    return {
        "commit": _commit(),
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "system": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
    }


def report(benchmark: str, results: Mapping[str, object], packages: Sequence[str] = ()) -> None:
    """Print the JSON document of a benchmark."""
    print(json.dumps({"benchmark": benchmark, **environment(packages), **results}, indent=2))


def _commit() -> str:
    found = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(
        ["git", "-C", str(ROOT), "status", "--porcelain"], capture_output=True, text=True, check=False
    )
    return (found.stdout.strip() if found.returncode == 0 else "none") + ("+changes" if changed.stdout.strip() else "")
