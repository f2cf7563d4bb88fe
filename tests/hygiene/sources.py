"""What the hygiene tests look at: the project's files, parsed once."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, TypeAlias

ROOT: Final = Path(__file__).resolve().parent.parent.parent
CODE: Final = ("actorhub", "tests", "examples", "benchmarks", "protos")
TEXT: Final = frozenset(
    {".ci", ".cfg", ".ini", ".md", ".proto", ".py", ".pyi", ".sh", ".sql", ".toml", ".yaml", ".yml"}
)

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def modules(*folders: str) -> tuple[Path, ...]:
    """Return the hand-written Python files under `folders` (default: all code), in order."""
    found = (path for folder in folders or CODE for path in (ROOT / folder).rglob("*.py"))
    return tuple(sorted(path for path in found if "_pb" not in path.parts))


@cache
def texts() -> tuple[Path, ...]:
    """Return every hand-written text file of the project."""
    top = [path for path in ROOT.iterdir() if path.is_file() and (path.suffix in TEXT or path.name == "Makefile")]
    deep = [path for folder in (*CODE, ".ci", "docs") for path in (ROOT / folder).rglob("*") if path.is_file()]
    kept = [path for path in deep if "_pb" not in path.parts and (path.suffix in TEXT or path.name == "run")]
    return tuple(sorted([*top, *kept]))


@cache
def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def functions(path: Path) -> Iterator[Function]:
    """Yield each function and method of a file, nested ones too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def place(path: Path, line: int = 0) -> str:
    """Return `path:line` as an editor understands it, relative to the project."""
    return f"{path.relative_to(ROOT)}:{line}" if line else str(path.relative_to(ROOT))


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` for a chain of names, or an empty string."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{dotted(value)}.{name}"
        case ast.Call(func=callee):
            return dotted(callee)
        case _:
            return ""
