"""No exception is swallowed, and broad handlers stand at the borders alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.hygiene.sources import CODE, dotted, modules, place, tree

BORDERS = ("user code", "supervised loop", "RPC server")
"""Where `except Exception` may stand; its line says which one: `# noqa: BLE001 - user code: ...`."""

BROAD = {"Exception", "BaseException"}


def _handlers(path: Path) -> Iterator[ast.ExceptHandler]:
    yield from (node for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler))


def _is_broad(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or dotted(kind).rpartition(".")[2] in BROAD for kind in kinds)


def _reraises(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.body[-1], ast.Raise)


def test_an_except_clause_does_something_or_says_why_not() -> None:
    """An except clause that only passes has a comment that gives the reason."""
    found: list[str] = []
    for path in modules():
        lines = path.read_text(encoding="utf-8").splitlines()
        for handler in _handlers(path):
            clause = lines[handler.lineno - 1 : handler.body[-1].end_lineno]
            silent = all(isinstance(step, ast.Pass | ast.Continue) for step in handler.body)
            if silent and not any("#" in line for line in clause):
                found.append(place(path, handler.lineno))
    assert found == []


def test_broad_handlers_stand_at_the_three_borders_alone() -> None:
    """Exception and BaseException are caught to be raised again, or where the line names one of the three borders."""
    found: list[str] = []
    for path in modules("actorhub"):
        lines = path.read_text(encoding="utf-8").splitlines()
        for handler in _handlers(path):
            _, _, reason = lines[handler.lineno - 1].partition("# noqa: BLE001 - ")
            if _is_broad(handler) and not _reraises(handler) and not reason.startswith(BORDERS):
                found.append(f"{place(path, handler.lineno)} must say: # noqa: BLE001 - {' | '.join(BORDERS)}: why")
    assert found == []


def test_nothing_suppresses_every_exception() -> None:
    """contextlib.suppress names what it expects: neither Exception nor BaseException."""
    found = [
        place(path, node.lineno)
        for path in modules(*CODE)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and dotted(node.func).endswith("suppress")
        if any(dotted(argument) in BROAD for argument in node.args)
    ]
    assert found == []
