"""What plain type checkers, without a plugin, say of programs that use actorhub."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actorhub import Hub
from actorhub.entity import Declared

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RIGHT = ("right.py", "right_declarations.py", "right_tests.py")
WRONG = {
    "wrong.py.txt": 75,
    "wrong_declarations.py.txt": 65,
    "wrong_program.py.txt": 85,
    "wrong_tests.py.txt": 30,
}
"""Programs with mistakes, and how many each has at least."""
CASES = (*RIGHT, *WRONG, "signature.py.txt")
"""Programs with mistakes do not end in `.py`, so that the project's own checks pass them by."""

Report = dict[tuple[str, int], str]
"""Messages by file name and line."""


def _saved(case: str) -> str:
    """Return the name that a case has where it is checked."""
    return case.removesuffix(".txt")


def _mypy(directory: Path) -> Report:
    options = (
        "--strict",
        "--no-error-summary",
        "--hide-error-context",
        "--no-pretty",
        "--config-file",
        "pyproject.toml",
    )
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *map(str, sorted(directory.glob("*.py")))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MYPYPATH": str(directory)},
    )
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    found = re.findall(r"^(\S+\.py):(\d+):(?:\d+:)? error: (.*)$", ran.stdout, re.MULTILINE)
    return {(Path(file).name, int(line)): text for file, line, text in found}


def _pyright(directory: Path) -> Report:
    settings = {"include": ["."], "extraPaths": [str(ROOT)], "pythonVersion": "3.11", "typeCheckingMode": "strict"}
    (directory / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    pyright = Path(sys.executable).parent / "pyright"
    ran = subprocess.run(
        [str(pyright), "--pythonpath", sys.executable, "--outputjson", "--project", str(directory)],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
    )
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    return {
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1): one["message"]
        for one in json.loads(ran.stdout)["generalDiagnostics"]
        if one["severity"] == "error"
    }


@pytest.fixture(scope="module", params=["mypy", "pyright"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """What one checker says of all cases; each runs once."""
    directory = tmp_path_factory.mktemp(request.param)
    for case in CASES:
        shutil.copyfile(HERE / case, directory / _saved(case))
    return _mypy(directory) if request.param == "mypy" else _pyright(directory)


def _lines(case: str, marker: str) -> dict[int, str]:
    lines = (HERE / case).read_text(encoding="utf-8").splitlines()
    return {number: line.partition(marker)[2] for number, line in enumerate(lines, 1) if marker in line}


@pytest.mark.parametrize("case", RIGHT)
def test_everything_that_users_may_write_is_accepted(report: Report, case: str) -> None:
    """The right program has no errors, and each value has the type that is written there."""
    assert {place: text for place, text in report.items() if place[0] == case} == {}


@pytest.mark.parametrize("case", RIGHT)
def test_everything_that_users_may_write_is_accepted_at_definition(case: str) -> None:
    """What no checker refuses here, no class statement refuses, and a hub takes it."""
    program = vars(importlib.import_module(f"tests.typing.{case.removesuffix('.py')}"))
    hub = Hub()
    classes: list[type[Any]] = [value for value in program.values() if isinstance(value, type)]
    for cls in {found for found in classes if "__declaration__" in vars(found)} - {Declared}:
        if not getattr(cls, "__parameters__", ()):
            hub.register(cls, lambda: None)


@pytest.mark.parametrize("case", WRONG)
def test_every_mistake_is_reported(report: Report, case: str) -> None:
    """Each line with a mistake is reported by both checkers."""
    expected = _lines(case, "# expect: ")
    assert len(expected) > WRONG[case]
    assert {line: what for line, what in expected.items() if (_saved(case), line) not in report} == {}


@pytest.mark.parametrize("case", WRONG)
def test_nothing_but_the_mistakes_is_reported(report: Report, case: str) -> None:
    """No line without a mistake is reported."""
    expected = _lines(case, "# expect: ")
    assert {p: text for p, text in report.items() if p[0] == _saved(case) and p[1] not in expected} == {}


def test_the_handler_decorator_keeps_the_signature(report: Report) -> None:
    """Where a handler is revealed it shows the parameters and the result of the method as it is written."""
    wrong = _lines("signature.py.txt", "# expect: ")
    assert len(_lines("signature.py.txt", "# signature")) == 3
    assert len(wrong) == 4
    assert {line for name, line in report if name == "signature.py"} == set(wrong)
