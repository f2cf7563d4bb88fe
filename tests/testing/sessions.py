"""Sessions of pytest as somebody else runs them: another project, another process."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 110
AUTO = "asyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
"""Settings of a project that uses pytest-asyncio as we advise."""

WITHOUT = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
"""Plugins that only take time."""


class Session:
    """What a session of pytest printed, and which of its tests passed."""

    def __init__(self, status: int, output: str) -> None:
        self.status = status
        self.output = output
        self.passed = re.findall(r"^PASSED (\S+)", output, re.MULTILINE)


def start(
    directory: Path, *options: str, settings: str = AUTO, environment: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Start pytest on the tests in `directory`, which is a project of its own: the settings of this one do not count.

    Args:
        directory: Holds the tests, and is where the session runs.
        options: Of pytest.
        settings: Lines of its `pytest.ini`.
        environment: Variables that differ from this process's.
    """
    (directory / "pytest.ini").write_text(f"[pytest]\n{settings}", encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-rA", "-W", "error", *WITHOUT, *options],
        cwd=directory,
        env={**inherited, "PYTHONPATH": str(ROOT), **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> Session:
    """Return how a session ended; one that does not is killed."""
    try:
        output, _ = process.communicate(timeout=LIMIT_SECONDS)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return Session(process.returncode, output)


def run(directory: Path, *options: str, settings: str = AUTO, environment: Mapping[str, str] | None = None) -> Session:
    """Run pytest on the tests in `directory` to its end."""
    return finish(start(directory, *options, settings=settings, environment=environment))
