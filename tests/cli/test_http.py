"""`actorhub serve --http`: probes of one process and of several workers."""

import asyncio
import re
import socket

from tests.support.http_get import http_get
from tests.support.ports import claim_ports
from tests.support.processes import Processes


async def test_a_served_hub_answers_probes_where_the_log_says(processes: Processes) -> None:
    """Port 0 picks a free one; the command still ends with 0 on SIGTERM."""
    runner = await processes.serve("--http", "127.0.0.1:0")
    found = re.search(r"HTTP at http://(\S+)", runner.err)
    assert found is not None
    assert (await http_get(found[1], "/readyz")).text == "ok\n"
    assert (await http_get(found[1], "/healthz")).json["runner"] == runner.address
    assert await runner.terminate(deadline=10) == 0


async def test_each_worker_has_the_next_http_port(processes: Processes) -> None:
    """The first worker has the port that was asked for, and each answers for itself."""
    port = claim_ports(2)
    parent = await processes.serve("--workers", "2", "--http", f"127.0.0.1:{port}")
    answers = [await http_get(f"127.0.0.1:{number}", "/healthz") for number in (port, port + 1)]
    assert sorted(answer.json["runner"] for answer in answers) == sorted(parent.addresses)
    assert await parent.terminate(deadline=10) == 0


async def test_workers_need_a_port_each(commands: Processes) -> None:
    """A first port too close to the end is a mistake in use, said before anything starts."""
    finished = await commands.run("serve", "nowhere:hub", "--workers", "3", "--http", "127.0.0.1:65534")
    assert finished.code == 2
    assert "http = 127.0.0.1:65534: 3 workers take a port each" in finished.err


async def test_a_taken_http_port_ends_the_start_with_one_line(processes: Processes) -> None:
    """It names the setting, and the exit code is 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        http = f"127.0.0.1:{taken.getsockname()[1]}"
        async with asyncio.timeout(30):
            finished = await processes.run("serve", "tests.support.shop:hub", "--listen", "127.0.0.1:0", "--http", http)
    assert finished.code == 1
    assert f"cannot serve http = {http}: " in finished.err
