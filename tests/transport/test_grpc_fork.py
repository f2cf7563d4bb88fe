"""gRPC in a forked process: it works if it was not used before the fork, and else that is said at once."""

import asyncio
import sys


async def _said(when: str) -> list[str]:
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.transport.forking", when, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, _ = await program.communicate()
    assert program.returncode == 0
    return [line for line in out.decode().splitlines() if line.startswith(("link:", "connect:"))]


async def test_a_process_that_is_forked_before_grpc_is_used_has_links() -> None:
    """A server that loads its program and then forks its workers can connect in each of them."""
    assert await _said("before") == ["link: works"]


async def test_a_process_that_is_forked_afterwards_learns_why_it_has_none() -> None:
    """A child of a process that was connected fails to connect at once, and the text says what to do."""
    link, connect = await _said("after")
    assert link.startswith("link: gRPC was used before this process was forked")
    assert "spawn" in link
    assert connect.startswith("connect: ConfigurationError gRPC was used before this process was forked")
