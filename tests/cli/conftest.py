"""Fixtures of the command's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Processes


@pytest.fixture
def processes(tmp_path: Path, postgres_url: str) -> Iterator[Processes]:
    """Commands on an empty database."""
    with Processes(tmp_path, ACTORHUB_DATABASE_URL=postgres_url) as processes:
        yield processes


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Processes]:
    """Commands without a database."""
    with Processes(tmp_path) as commands:
        yield commands
