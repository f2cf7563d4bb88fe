"""The report of a run of the nemesis, for people."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks._harness import environment, percentile
from tests.faults.nemesis.run import TOGETHER, Outcome

_INTRODUCTION: Final = """# Faults

What `make nemesis` found: three runners in processes of their own, a Postgres that flushes, all workloads of
`tests/faults` at once, and faults of every kind, which come fast and on top of each other. All that was acknowledged is
judged against what is stored. The time to recover is from the end of a fault (a kill is its own end) until every number
has answered a call that began after it, and 24 books that nobody else uses.
"""
_PACKAGES: Final = ("asyncpg", "grpcio", "msgspec")


def write(path: Path, outcome: Outcome, locks: str, postgres: str) -> None:
    """Put the run into the report, in the place of an earlier one with the same locks."""
    text = path.read_text(encoding="utf-8") if path.exists() else _INTRODUCTION
    heading = f"## Locks: {locks or 'by default'}"
    section = "\n".join([heading, "", *_lines(outcome, postgres)])
    others = [part for part in re.split(r"\n(?=## )", text) if not part.startswith(f"{heading}\n")]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(part.rstrip("\n") + "\n" for part in [*others, section]), encoding="utf-8")


def _lines(outcome: Outcome, postgres: str) -> Iterator[str]:
    faults, acknowledged = outcome.faults.total(), outcome.acknowledged.total()
    yield (
        f"{faults:,} faults of {len(outcome.faults)} kinds in {outcome.seconds / 60:.0f} minutes, {acknowledged:,} "
        f"acknowledged messages, {outcome.reads:,} judged reads: **{len(outcome.found)} broken promises**."
    )
    yield ""
    yield from (f"- {text.splitlines()[0]}" for text in outcome.found)
    yield from (f"- {name}: {value}" for name, value in _facts(outcome, postgres))
    yield from ("", "| acknowledged | |", "|---|---|")
    yield from (f"| {what} | {count:,} |" for what, count in sorted(outcome.acknowledged.items()))
    yield ""
    yield "| fault | times | alone | recovered after, p50 | p99 | longest |"
    yield "|---|---|---|---|---|---|"
    yield from (_row(outcome, kind, f"{count}") for kind, count in sorted(outcome.faults.items()))
    yield _row(outcome, TOGETHER, "")


def _row(outcome: Outcome, kind: str, times: str) -> str:
    seconds = outcome.recoveries.get(kind, [])
    figures = [f"{percentile(seconds, share):.2f} s" for share in (0.5, 0.99, 1.0)] if seconds else [""] * 3
    return f"| {' | '.join([kind, times, str(len(seconds)), *figures])} |"


def _facts(outcome: Outcome, postgres: str) -> Iterator[tuple[str, object]]:
    found = environment(_PACKAGES)
    yield "seed", outcome.seed
    yield "commit", found["commit"]
    yield "machine", f"{found['machine']['cores']} cores, {found['machine']['processor']}, {found['system']}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    yield "Postgres", postgres
    yield "processes that faults ended while they started", outcome.failed_starts
