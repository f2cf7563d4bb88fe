"""What documents point to in the code, as `file`: `name`, `name`, or as `name` in `file`; and whether it is there.

Instead of a file a folder may stand: then the name is defined in one of its files.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from tests.docs.documents import ROOT

_PATH: Final = r"`((?:actorhub|benchmarks|docs|examples|protos|tests)/[\w./]*\w)`"
_NAMES_AFTER: Final = re.compile(_PATH + r": (`[\w.]+`(?:(?:, | and )`[\w.]+`)*)")
_NAME_BEFORE: Final = re.compile(r"`([\w.]+)` in " + _PATH)
_SQL_DEFINITION: Final = re.compile(r"(?:\bfunction|--\s*name:|\btable(?: if not exists)?)\s+(\w+)", re.IGNORECASE)


def pointers(text: str) -> Iterator[tuple[str, str]]:
    """Yield file or folder and name of everything that a text points to."""
    for found in _NAMES_AFTER.finditer(text):
        for name in re.findall(r"`([\w.]+)`", found[2]):
            yield found[1], name
    for found in _NAME_BEFORE.finditer(text):
        yield found[2], found[1]


def complaints(text: str) -> list[str]:
    """Return what a text points to that is not there, and where it is now."""
    found: list[str] = []
    for place, name in pointers(text):
        if not (ROOT / place).exists():
            found.append(f"{place} does not exist ({name} is in {_now(name)})")
        elif name.rpartition(".")[2] not in _defined_below(ROOT / place):
            found.append(f"{place} does not define {name}, which is in {_now(name)}")
    return found


def _now(name: str) -> str:
    word = name.rpartition(".")[2]
    files = (path for folder in ("actorhub", "tests") for path in _sources(ROOT / folder) if word in _defined(path))
    return ", ".join(str(path.relative_to(ROOT)) for path in files) or "no file"


def _sources(path: Path) -> Iterator[Path]:
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    return (one for one in found if one.suffix in (".py", ".sql", ".proto") and "_pb" not in one.parts)


def _defined_below(path: Path) -> set[str]:
    return {name for one in _sources(path) for name in _defined(one)}


@cache
def _defined(path: Path) -> frozenset[str]:
    """Return every function, class, method, variable and attribute that a file defines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sql":
        return frozenset(_SQL_DEFINITION.findall(text))
    if path.suffix == ".proto":
        return frozenset(re.findall(r"\b(?:message|rpc|service|enum) (\w+)", text))
    return frozenset(_names(ast.parse(text)))


def _names(code: ast.Module) -> Iterator[str]:
    for node in ast.walk(code):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case _:
                pass
