"""The code in the documents runs and passes the type checker."""

import ast
import asyncio
import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FunctionType
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import msgspec
import pytest

from actorhub import Hub
from actorhub.conformance.transport_pair import Recorder, RecordingAcceptor, hello
from actorhub.storage.postgres.schema import migrate
from actorhub.testing import MemoryCluster
from actorhub.transport.grpc import GrpcTransport, TlsFiles
from tests.docs.documents import DOCUMENTS, ROOT, blocks
from tests.support.postgres_server import PostgresServer

WITH_MODULES = [path for path in DOCUMENTS if any(block.file_name for block in blocks(path, "python"))]
each_document = pytest.mark.parametrize("document", WITH_MODULES, ids=lambda path: path.name)


def save(document: Path, directory: Path) -> list[str]:
    """Write the document's modules to `directory`; return their names without suffix."""
    found = [block for block in blocks(document, "python") if block.file_name]
    for block in found:
        (directory / block.file_name).write_text(block.text, encoding="utf-8")
    return [block.file_name.removesuffix(".py") for block in found]


@contextmanager
def imported(document: Path, directory: Path) -> Iterator[dict[str, Any]]:
    """Import the document's modules; yield every public name in them; forget the modules afterwards."""
    names = save(document, directory)
    sys.path.insert(0, str(directory))
    try:
        modules = [importlib.import_module(name) for name in names]
        # What an earlier module calls something, fragments mean by it.
        every = [vars(module) for module in reversed(modules)]
        yield {name: value for each in every for name, value in each.items() if not name.startswith("_")}
    finally:
        sys.path.remove(str(directory))
        for name in names:
            sys.modules.pop(name, None)


def session(document: Path, first: str) -> list[tuple[str, str]]:
    """Return the commands of the console block that begins with `first`, each with what it is shown to print."""
    (block,) = [block for block in blocks(document, "console") if block.text.startswith(f"$ {first}\n")]
    steps = [step.partition("\n") for step in f"\n{block.text}".split("\n$ ")[1:]]
    return [(command, output.strip()) for command, _, output in steps]


@each_document
def test_modules_pass_the_type_checker(document: Path, tmp_path: Path) -> None:
    """Each block that names its file is clean under mypy --strict."""
    save(document, tmp_path)
    config = f"--config-file={ROOT / 'pyproject.toml'}"
    cache = f"--cache-dir={ROOT / '.mypy_cache' / 'docs'}"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", config, cache, "."],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@each_document
async def test_fragments_run_one_after_the_other(document: Path, tmp_path: Path) -> None:
    """The blocks without a file run in order, in one scope, on a cluster in memory that hosts the document's hub."""
    fragments = [block for block in blocks(document, "python") if not block.file_name]
    with imported(document, tmp_path) as scope:
        hub = scope.get("hub")
        if not isinstance(hub, Hub):
            assert fragments == []
            return
        async with MemoryCluster(hub) as memory:
            await memory.start_runner()
            scope |= {"cluster": await memory.client(), "timedelta": timedelta}
            for block in fragments:
                code = compile(block.text, f"{document.name}:{block.line}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                running = FunctionType(code, scope)()
                if running is not None:
                    await running


@each_document
async def test_tests_in_the_documents_pass(document: Path, tmp_path: Path) -> None:
    """Each `async def test_…` in a document passes; those that take fixtures are run by tests/testing/test_guide.py."""
    with imported(document, tmp_path) as scope:
        for name in [name for name in scope if name.startswith("test_")]:
            if not inspect.signature(scope[name]).parameters:
                await scope[name]()


async def test_a_state_changes_its_type_as_the_guide_says(tmp_path: Path) -> None:
    """What an older program stored is what the newer one starts from, moved to its new field."""
    guide = ROOT / "docs" / "entities.md"
    with imported(guide, tmp_path):
        shop, later = importlib.import_module("shop"), importlib.import_module("later")
        async with MemoryCluster(shop.hub) as memory:
            older = await memory.start_runner()
            await older.client(shop.Product)("tea").sell("ada", 3)
            await memory.stop(older)
            newer = await memory.start_runner(hub=later.hub)
            assert await newer.client(later.Product)("tea").left() == {"main": 7}
            stored = memory.stored("product", "tea")
    assert stored is not None
    found = msgspec.msgpack.decode(stored.data)
    assert (found["left"], found["left_by_store"]) == (0, {"main": 7})
    assert found["sales"]  # The newer program does not know it, and keeps it for the older one.


async def test_sql_in_a_transaction_is_committed_as_the_guide_says(postgres_url: str, tmp_path: Path) -> None:
    """A booking of the guide's ledger, asked for twice with one key, makes one row, one change and one reply."""
    owner = await asyncpg.connect(postgres_url)
    try:
        await owner.execute("create table booking (entry text, ledger text, cents bigint)")
        with imported(ROOT / "docs" / "messages.md", tmp_path):
            ledger = importlib.import_module("ledger")
            settings = {"database_url": postgres_url, "listen": "127.0.0.1:0", "shards_per_group": 8}
            async with ledger.hub.runner(**settings) as cluster:
                book = cluster.client(ledger.Ledger).options(key="entry 1")("cash").book
                assert [await book("rent", 700), await book("rent", 700)] == [700, 700]
        assert [tuple(row) for row in await owner.fetch("select * from booking")] == [("rent", "cash", 700)]
    finally:
        await owner.close()


async def test_the_first_steps_of_the_readme_work(postgres_url: str, tmp_path: Path) -> None:
    """`actorhub serve shop:hub`, the program beside it, and the commands shown print what they should."""
    save(ROOT / "README.md", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACTORHUB_DATABASE_URL": postgres_url}
    actorhub = [sys.executable, "-m", "actorhub"]
    server = await asyncio.create_subprocess_exec(
        *(*actorhub, "serve", "shop:hub", "--listen", "127.0.0.1:0"),
        cwd=tmp_path,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdout is not None
    try:
        async with asyncio.timeout(60):
            ready = (await server.stdout.readline()).decode()
        found = re.match(r"ready: runner (\S+) owns 300 shards, database ", ready)
        assert found, ready
        environment["ACTORHUB_ADMIN"] = found[1]
        del environment["ACTORHUB_DATABASE_URL"]

        async def said(*command: str) -> str:
            process = await asyncio.create_subprocess_exec(
                *command, cwd=tmp_path, env=environment, stdout=asyncio.subprocess.PIPE
            )
            output, _ = await process.communicate()
            assert process.returncode == 0, command
            return output.decode().strip()

        for command, expected in session(ROOT / "README.md", "python buy.py"):
            program, *arguments = shlex.split(command, comments=True)
            if arguments[0] != "serve":
                start = actorhub if program == "actorhub" else [sys.executable]
                printed = await said(*start, *arguments)
                assert printed == expected or (not expected and "default:299" in printed), command
        server.terminate()
        async with asyncio.timeout(30):
            assert await server.wait() == 0
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


async def test_the_privileges_in_the_guide_suffice(
    postgres_server: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    """A user with exactly these grants runs on a schema that somebody else made, and commits."""
    found = blocks(ROOT / "docs" / "operating.md", "sql")
    (grants,) = [block for block in found if block.text.startswith("grant usage on schema")]
    role = f"r{urlsplit(postgres_url).path[1:]}"
    await migrate(postgres_url, "actorhub")
    owner = await asyncpg.connect(postgres_url)
    try:
        await owner.execute(f'create role "{role}" login')
        await owner.execute(grants.text.replace(" app;", f' "{role}";'))
        with imported(ROOT / "README.md", tmp_path) as scope:
            url = postgres_url.replace("//postgres@", f"//{role}@")
            async with scope["hub"].runner(database_url=url, listen="127.0.0.1:0", shards_per_group=8) as cluster:
                assert await cluster.client(scope["Wallet"])("ada").deposit(5) == 5
        for table in ("runner", "machine_id"):
            assert await owner.fetchval(f"select count(*) from actorhub.{table}") == 0, "it could not clean up"
        await owner.execute(f'drop owned by "{role}"; drop role "{role}"')
    finally:
        await owner.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")
async def test_the_openssl_commands_make_certificates_that_runners_accept(tmp_path: Path) -> None:
    """After the commands of the operators' guide two processes link over mutual TLS."""
    (script,) = blocks(ROOT / "docs" / "operating.md", "bash")
    made = await asyncio.create_subprocess_exec(
        *("bash", "-e", "-c", script.text),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await made.communicate()
    assert made.returncode == 0, output.decode()
    tls = TlsFiles(tmp_path / "runner.pem", tmp_path / "runner.key", tmp_path / "ca.pem")
    accepting = GrpcTransport(hello("accepting"), listen="127.0.0.1:0", tls=tls)
    connecting = GrpcTransport(hello("connecting"), tls=tls)
    try:
        address = await accepting.listen(RecordingAcceptor())
        link = await connecting.connect(address, Recorder(), deadline=10)
        assert link.peer.incarnation == accepting.hello.incarnation
    finally:
        await connecting.aclose(2)
        await accepting.aclose(2)
