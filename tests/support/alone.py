"""Keeps tests that are marked `alone` apart from every other test of the run, in whatever worker of xdist that is."""

import fcntl
from collections.abc import Generator
from pathlib import Path

import pytest

_locks = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Find the place of the locks, which is one for all workers of a run; without workers there is nothing to do."""
    if hasattr(config, "workerinput"):
        config.stash[_locks] = Path(config.getoption("basetemp")).parent


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let tests share the turn, and one that is alone have it.

    Who comes takes the gate before the turn, and gives the gate back with the turn in hand. So one that waits to be
    alone keeps the others out, and cannot be passed over for as long as they come. Both locks end with their process.
    """
    if (place := item.config.stash.get(_locks, None)) is None:
        return (yield)
    is_alone = item.get_closest_marker("alone") is not None
    with (place / "gate.lock").open("w") as gate, (place / "turn.lock").open("w") as turn:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(turn, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        return (yield)
