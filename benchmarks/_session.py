"""Code that the runs of a benchmark share: options, a database, fresh processes, targets, and the JSON output."""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from actorhub.storage.postgres.embedded import EmbeddedPostgres
from benchmarks._harness import LOOPS, report, result_of, run

Measure = Callable[[argparse.Namespace], Coroutine[Any, Any, dict[str, Any]]]
PACKAGES = ("asyncpg", "grpcio", "msgspec", "protobuf", "uvloop")


def parse(
    text: str | None, *, rounds: int, extend: Callable[[argparse.ArgumentParser], None] | None = None
) -> argparse.Namespace:
    """Return the options. `quick` shortens everything and only proves that the benchmark runs."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help=f"samples of each side (default {rounds}, quick: 2)")
    parser.add_argument("--quick", action="store_true", help="short samples, which only prove that the benchmark runs")
    parser.add_argument("--loop", choices=(*LOOPS, "both"), default="both")
    parser.add_argument("--database", metavar="URL", default=os.environ.get("ACTORHUB_DATABASE_URL"),
                        help="Postgres to use (default: $ACTORHUB_DATABASE_URL, else an embedded one)")  # fmt: skip
    parser.add_argument("--child", help=argparse.SUPPRESS)
    if extend is not None:
        extend(parser)
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else rounds)
    return options


def loops(options: argparse.Namespace) -> Sequence[str]:
    """Return the names of the event loops to measure."""
    return LOOPS if options.loop == "both" else (options.loop,)


@contextlib.contextmanager
def database(url: str | None) -> Iterator[str]:
    """Yield the URL of a Postgres: the given one, or an embedded one in its own directory."""
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="actorhub-bench-") as directory:
        Path(directory).chmod(0o755)  # Else a server that root starts, as another user, keeps its data elsewhere.
        server = EmbeddedPostgres(Path(directory))
        # One event loop for both, since the server belongs to the one that started it.
        with asyncio.Runner() as runner:
            try:
                yield runner.run(server.start())
            finally:
                runner.run(server.stop())


@contextlib.contextmanager
def namespace(url: str) -> Iterator[str]:
    """Yield an unused schema name. Afterwards, drop that schema and all whose names begin with it."""
    name = f"bench_{secrets.token_hex(6)}"
    try:
        yield name
    finally:
        asyncio.run(_drop(url, name))


async def _drop(url: str, beginning: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for row in await connection.fetch("select nspname from pg_namespace where starts_with(nspname, $1)", beginning):
            await connection.execute(f"drop schema {row[0]} cascade")
    finally:
        await connection.close()


async def _server_version(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        return str(await connection.fetchval("show server_version"))
    finally:
        await connection.close()


def target(what: str, reached: float, *, at_least: float | None = None, at_most: float | None = None) -> dict[str, Any]:
    """Return a figure together with its target."""
    bound = {"at_least": at_least} if at_least is not None else {"at_most": at_most}
    met = reached >= at_least if at_least is not None else at_most is not None and reached <= at_most
    return {"what": what, "reached": reached, **bound, "met": met}


def fresh(module: str, options: argparse.Namespace, loop: str, url: str = "", *more: str) -> dict[str, Any]:
    """Measure in a fresh process: run `module` with the same options and `--child`."""
    command = ["-m", module, *sys.argv[1:], "--child", "yes", "--loop", loop, "--rounds", str(options.rounds), *more]
    if url:
        command += ["--database", url]
    if options.quick:
        command.append("--quick")
    try:
        return result_of(*command)
    except subprocess.CalledProcessError as error:
        print(error.stderr, file=sys.stderr)
        raise


def measured(
    name: str, options: argparse.Namespace, measure: Measure, targets: Callable[[dict[str, Any]], list[dict[str, Any]]]
) -> None:
    """Measure in a fresh process per event loop, and print the document. In such a process, print its result."""
    if options.child:
        print(json.dumps(run(measure(options), options.loop)))
        return
    results: dict[str, Any] = {}
    reached: list[dict[str, Any]] = []
    with database(options.database) as url:
        server = asyncio.run(_server_version(url))
        for loop in loops(options):
            with namespace(url) as schema:
                results[loop] = fresh(f"benchmarks.{name}", options, loop, url, "--namespace", schema)
            reached += [{"loop": loop, **one} for one in targets(results[loop])]
    report(
        name.removeprefix("bench_"),
        {"postgres": server, "quick": options.quick, "targets": reached, **results},
        PACKAGES,
    )


def with_namespace(parser: argparse.ArgumentParser) -> None:
    """Add the option with the schema that the parent process made."""
    parser.add_argument("--namespace", default="", help=argparse.SUPPRESS)


def with_peer(parser: argparse.ArgumentParser) -> None:
    """Add the option that skips the peer."""
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="do not run Effect's cluster")
