"""The author of another storage or transport runs the suites as the package says."""

import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from actorhub import conformance
from tests.testing.sessions import run

# The implementations stand for somebody else's: what the examples import, made from what this package has.
MY_STORAGE = """
from actorhub.core.clock import SystemClock
from actorhub.storage.memory import MemoryStorage as MyStorage, MemoryStore
from actorhub.storage.memory.key_values import MemoryKeyValues as MyKeyValues


def empty_store() -> MemoryStore:
    return MemoryStore(SystemClock())
"""
MY_TRANSPORT = "from actorhub.transport.grpc import GrpcTransport as MyTransport\n"
FORGETFUL = """
from actorhub.storage.memory import MemoryStorage
import my_storage


class MyStorage(MemoryStorage):
    async def load_state(self, *key):
        return None


my_storage.MyStorage = MyStorage
"""


def examples() -> dict[str, str]:
    """Return the modules that the package's docstring shows, by file name."""
    text = inspect.cleandoc(conformance.__doc__ or "")
    shown = re.findall(r"^Example:\n((?:    .*\n|\n)+)", f"{text}\n", re.MULTILINE)
    modules = [textwrap.dedent(block).strip() + "\n" for block in shown]
    return {module.splitlines()[0].removeprefix("# "): module for module in modules}


def suites() -> Iterator[type]:
    """Yield every suite of the package."""
    for found in pkgutil.iter_modules(conformance.__path__):
        module = importlib.import_module(f"{conformance.__name__}.{found.name}")
        for name, value in vars(module).items():
            if name.endswith("Suite") and value.__module__ == module.__name__:
                yield value


def promises(suite: type) -> list[str]:
    """Return the names of a suite's tests."""
    return [name for name in vars(suite) if name.startswith("test_")]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose author follows the package's docstring."""
    for name, text in {**examples(), "my_storage.py": MY_STORAGE, "my_transport.py": MY_TRANSPORT}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_example_subclasses_every_suite() -> None:
    """Nobody who copies the docstring forgets one."""
    named = set(re.findall(r"\w+\.(\w+Suite)\b", "".join(examples().values())))
    assert named == {suite.__name__ for suite in suites()}


@pytest.mark.parametrize("name", ["test_my_storage.py", "test_my_transport.py"])
def test_the_examples_run_every_promise(project: Path, name: str) -> None:
    """Each test of each suite of the port is collected and passes, without a warning."""
    session = run(project, name)
    assert session.status == 0, session.output
    passed = {place.partition("[")[0].rpartition("::")[2] for place in session.passed}
    expected = {promise for suite in suites() if suite.__name__ in examples()[name] for promise in promises(suite)}
    assert len(expected) > 20
    assert expected - passed == set()


def test_an_implementation_that_breaks_a_promise_fails(project: Path) -> None:
    """A storage that forgets states is found out."""
    (project / "conftest.py").write_text(FORGETFUL, encoding="utf-8")
    session = run(project, "test_my_storage.py", "-k", "TestState")
    assert session.status == 1, session.output
    assert "FAILED test_my_storage.py::TestState::" in session.output


def test_no_two_suites_that_are_run_together_share_a_test(project: Path) -> None:
    """A class that inherits two tests of one name would run only one of them."""
    for name in ("test_my_storage.py", "test_my_transport.py"):
        for bases in re.findall(r"^class Test\w+\((.*)\)", (project / name).read_text(encoding="utf-8"), re.MULTILINE):
            wanted = [base.rpartition(".")[2] for base in bases.split(", ")]
            names = [test for suite in suites() if suite.__name__ in wanted for test in promises(suite)]
            assert len(names) == len(set(names)), bases
