"""Functions and files stay small enough to be read in one go."""

import ast

from tests.hygiene.sources import Function, functions, modules, place

MAX_FILE_LINES = 500
MAX_BODY_LINES = 60
MAX_POSITIONAL = 4


def _body_lines(function: Function) -> int:
    body = function.body
    if (
        isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    ):
        body = body[1:]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_no_file_is_longer_than_500_lines() -> None:
    """A hand-written Python file has at most 500 lines."""
    lengths = {place(path): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_body_is_longer_than_60_lines() -> None:
    """A function's body, its docstring not counted, spans at most 60 lines."""
    lengths = {
        f"{place(path, function.lineno)} {function.name}": _body_lines(function)
        for path in modules()
        for function in functions(path)
    }
    assert {name: length for name, length in lengths.items() if length > MAX_BODY_LINES} == {}


def test_five_parameters_or_more_are_given_by_keyword() -> None:
    """A function of the package takes at most four positional parameters beside self or cls."""
    found: list[str] = []
    for path in modules("actorhub"):
        for function in functions(path):
            names = [arg.arg for arg in (*function.args.posonlyargs, *function.args.args)]
            if len(names) - (names[:1] in (["self"], ["cls"])) > MAX_POSITIONAL:
                found.append(f"{place(path, function.lineno)} {function.name}")
    assert found == []
