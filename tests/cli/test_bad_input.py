"""What is wrong with a command's input ends it with one line that names the thing and the remedy."""

import asyncio
import socket
import sys
from pathlib import Path

import pytest

from actorhub.cli.program import load_hub
from actorhub.core.errors import ConfigurationError
from tests.storage.pooler import transaction_pooler
from tests.support.processes import SHOP, Finished, Processes


def _one_error(finished: Finished, code: int, *texts: str) -> None:
    assert finished.code == code, finished.err
    assert finished.out == ""
    assert "Traceback" not in finished.err
    (line,) = (line for line in finished.err.splitlines() if " INFO " not in line)
    assert line.startswith("Error: ")
    for text in texts:
        assert text in line


@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        (("--weight", "heavy"), ("weight = 'heavy' (from flag --weight) is not valid", "0.001 to 1000")),
        (("--workers", "0"), ("workers = '0' (from flag --workers) is not valid", "1 to 1024")),
        (("--database", "mysql://x:secret@y/z"), ("mysql://x:***@y/z", "postgresql://user:password@host")),
        (("--listen", "0.0.0.0:0"), ("0.0.0.0:0 (from flag --listen)", "--insecure")),
        (("--tls-cert", "c.pem"), ("mutual TLS needs tls_cert, tls_key and tls_ca",)),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
async def test_a_wrong_setting_is_a_usage_error(
    commands: Processes, flags: tuple[str, ...], texts: tuple[str, ...]
) -> None:
    """Exit code 2, and the line names the value, where it came from and what is allowed."""
    _one_error(await commands.run("serve", SHOP, *flags), 2, *texts)


async def test_a_wrong_variable_and_a_wrong_file_are_named(commands: Processes) -> None:
    """What the environment and actorhub.toml say is checked like flags."""
    _one_error(await commands.run("runners", ACTORHUB_GRACE="never"), 2, "from environment ACTORHUB_GRACE")
    (commands.directory / "actorhub.toml").write_text("wieght = 2\n")
    _one_error(await commands.run("runners"), 2, "actorhub.toml: unknown setting 'wieght': did you mean 'weight'?")


@pytest.mark.parametrize("command", [("nonsense",), ("serve",), ("serve", SHOP, "--nonsense"), ("call", "orders")])
async def test_wrong_usage_ends_with_code_2(commands: Processes, command: tuple[str, ...]) -> None:
    """Unknown commands and flags, and missing arguments, are explained by a usage line."""
    finished = await commands.run(*command)
    assert (finished.code, finished.out) == (2, "")
    assert finished.err.startswith("Usage: actorhub ")


@pytest.mark.parametrize(
    ("reference", "texts"),
    [
        ("broken", ("'broken' is not MODULE:HUB, such as shop:hub",)),
        ("dir/broken.py", ("did you mean dir.broken:hub?",)),
        ("nowhere:hub", ("there is no module 'nowhere' in ", "PYTHONPATH")),
        ("broken.inner:hub", ("importing broken.inner failed: ZeroDivisionError: division by", "broken.py, line 2")),
        ("broken:hub", ("importing broken failed: ZeroDivisionError: division by zero", "broken.py, line 2")),
        ("lacking:hub", ("failed: ModuleNotFoundError: No module named 'lacked'", "lacking.py, line 1")),
        ("wrong:hub", ("importing wrong failed: SyntaxError:", "wrong.py, line 1")),
        ("leaving:hub", ("importing leaving failed: SystemExit: 3", "leaving.py, line 1")),
        ("fine:hub", ("module fine has no 'hub': it has fine:centre",)),
        ("fine:Hub", ("fine:Hub is a type, not a Hub: its module has fine:centre",)),
        ("empty:hub", ("module empty has no 'hub': write `hub = Hub()` there",)),
    ],
)
def test_a_hub_reference_that_does_not_lead_to_a_hub_is_explained(
    reference: str, texts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way to be wrong has its own text, with the file and line of what the import raised."""
    modules = {
        "broken": "x = 0\ny = 1 / x\n",
        "lacking": "import lacked\n",
        "wrong": "def f(:\n",
        "leaving": "raise SystemExit(3)\n",
        "fine": "from actorhub import Hub\ncentre = Hub()\n",
        "empty": "",
    }
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        with pytest.raises(ConfigurationError) as caught:
            load_hub(reference)
    finally:
        for name in modules:
            sys.modules.pop(name, None)
    for text in texts:
        assert text in str(caught.value)


async def test_a_hub_reference_that_does_not_import_ends_the_command(commands: Processes) -> None:
    """Exit code 1 with one line, whether one runner or several workers are asked for."""
    _one_error(await commands.run("serve", "nowhere:hub"), 1, "there is no module 'nowhere'", "PYTHONPATH")


async def test_a_database_that_is_not_there_is_named_with_the_remedy(commands: Processes) -> None:
    """An unreachable server, and a database that does not exist, end the command before anything is served."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    url = f"postgresql://u:secret@127.0.0.1:{port}/shop"
    remedy = "check that the server runs, and host and port in the database URL"
    _one_error(await commands.run("serve", SHOP, "--database", url), 1, f"127.0.0.1:{port}/shop", remedy)
    _one_error(await commands.run("migrate", "--database", url), 1, f"127.0.0.1:{port}/shop", remedy)


async def test_a_database_that_does_not_exist_is_named_with_the_remedy(processes: Processes, postgres_url: str) -> None:
    """The server is there, the database is not."""
    missing = postgres_url.replace("?", "missing?")
    _one_error(await processes.run("serve", SHOP, "--database", missing), 1, "create the database")


async def test_a_pooler_under_the_lock_session_is_refused(processes: Processes, postgres_url: str) -> None:
    """A connection that changes server sessions ends the command with advice."""
    assert (await processes.run("migrate")).code == 0
    async with transaction_pooler(postgres_url) as url:
        started = await processes.run("serve", SHOP, "--listen", "127.0.0.1:0", "--database", url)
    _one_error(started, 1, "a pooler in transaction mode", "--lock-database URL", "--locks lease")


async def test_a_second_runner_disturbs_nobody_when_it_is_refused(processes: Processes) -> None:
    """A used port and another shard count are named; the first runner keeps its shards at their epochs."""
    first = await processes.serve()
    taken, other = await asyncio.gather(
        processes.run("serve", SHOP, "--listen", first.address),
        processes.run("serve", SHOP, "--listen", "127.0.0.1:0", "--shards-per-group", "10"),
    )
    _one_error(taken, 1, f"cannot listen on {first.address}", "choose another --listen")
    _one_error(other, 1, "shards_per_group is 300, this runner has 10", "another namespace")
    shards = (await processes.run("shards", "--json", "--admin", first.address)).json
    assert {(row["state"], row["runner"], row["epoch"]) for row in shards} == {("owned", first.address, 1)}


async def test_an_admin_address_where_nobody_answers_is_named(commands: Processes) -> None:
    """Commands that ask a runner say which one they asked, and how to name another."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    remedy = "name another with --admin HOST:PORT"
    _one_error(await commands.run("runners", "--admin", address), 1, f"{address} cannot be reached", remedy)
    _one_error(await commands.run("call", "a", "b", "c", ACTORHUB_ADMIN=address), 1, address, remedy)
