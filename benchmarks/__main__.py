"""Run benchmarks, each in a fresh process. Print a table, and write the JSON documents."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks._harness import LOOPS, ROOT
from benchmarks._session import database

PLAIN: Final = ("placement", "stream")
"""These benchmarks have their own options, and need no database."""
QUICK: Final = {"placement": ("--clusters", "5"), "stream": ("--rounds", "1", "--asks", "30000")}


def known() -> list[str]:
    """Return the names of all benchmarks."""
    return sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def run(name: str, options: argparse.Namespace, url: str) -> dict[str, Any] | None:
    """Return the result of one benchmark, or `None` if it failed. It has explained the failure on standard error."""
    command = [sys.executable, "-m", f"benchmarks.bench_{name}"]
    if name in PLAIN:
        command += QUICK[name] if options.quick else ()
    else:
        command += ["--database", url, "--loop", options.loop, *(["--quick"] if options.quick else [])]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    if done.returncode:
        return None
    found: dict[str, Any] = json.loads(done.stdout)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / f"{name}.json").write_text(done.stdout)
    return found


def rows(name: str, found: dict[str, Any] | None) -> list[tuple[str, ...]]:
    """Return the rows of the table for one benchmark."""
    if found is None:
        return [(name, "", "it failed", "", "", "no")]
    lines: list[tuple[str, ...]] = []
    for one in found.get("targets", []):
        bound = f"≥ {one['at_least']:g}" if "at_least" in one else f"≤ {one['at_most']:g}"
        verdict = "yes" if one["met"] else "no"
        lines.append((name, one.get("loop", ""), one["what"], f"{one['reached']:g}", bound, verdict))
    for loop in LOOPS:
        for part, values in found.get(loop, {}).items():
            if isinstance(values, dict) and "skipped" in values:
                lines.append((name, loop, f"{part}: {values['skipped']}", "skipped", "", ""))
    return lines or [(name, "", "without targets: see its JSON", "", "", "")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(known())}")
    parser.add_argument("--quick", action="store_true", help="short samples, which only prove that the benchmarks run")
    parser.add_argument(
        "--output", type=Path, metavar="DIRECTORY", help="directory for the NAME.json of each benchmark"
    )
    parser.add_argument("--loop", choices=(*LOOPS, "both"), default="both")
    parser.add_argument("--database", metavar="URL", default=os.environ.get("ACTORHUB_DATABASE_URL"))
    options = parser.parse_args()
    if unknown := set(options.names) - set(known()):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(known())}")
    table = Table("benchmark", "loop", "what", "reached", "target", "met")
    failed = 0
    with database(options.database) as url:
        for name in options.names or known():
            print(f"{name} …", file=sys.stderr, flush=True)
            found = run(name, options, url)
            failed += found is None
            for row in rows(name, found):
                table.add_row(*row)
    Console().print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
