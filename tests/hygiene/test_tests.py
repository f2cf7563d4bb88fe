"""Tests are sentences that say what they hold true."""

import ast

from tests.hygiene.sources import functions, modules, place

MIN_WORDS = 3

TESTS = [
    (path, function)
    for path in modules("tests")
    if path.name.startswith("test_")
    for function in functions(path)
    if function.name.startswith("test_")
]


def test_every_test_has_a_one_sentence_docstring() -> None:
    """A test's docstring is one sentence that ends with a full stop."""
    found: list[str] = []
    for path, function in TESTS:
        text = " ".join((ast.get_docstring(function) or "").split())
        if not text.endswith(".") or ". " in text.replace("e.g. ", "").replace("i.e. ", ""):
            found.append(f"{place(path, function.lineno)} {function.name}: {text!r}")
    assert found == []


def test_every_test_is_named_by_a_sentence() -> None:
    """A test's name has at least three words after test_."""
    assert [
        f"{place(path, function.lineno)} {function.name}"
        for path, function in TESTS
        if len(function.name.removeprefix("test_").split("_")) < MIN_WORDS
    ] == []


def test_no_two_tests_of_a_file_share_a_name() -> None:
    """A second test of the same name would silently replace the first."""
    found: list[str] = []
    for path in modules("tests"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef):
                names = [step.name for step in node.body if isinstance(step, ast.FunctionDef | ast.AsyncFunctionDef)]
                found += [
                    f"{place(path)} {name}" for name in names if name.startswith("test_") and names.count(name) > 1
                ]
    assert found == []
