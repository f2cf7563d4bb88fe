"""The named SQL statements of `queries.sql`."""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Final

_NAME: Final = re.compile(r"^-- name: ([a-z_]+)$", re.MULTILINE)


@cache
def queries() -> Mapping[str, str]:
    """Return every statement by its name; descriptions are left out."""
    text = resources.files(__package__ or "").joinpath("queries.sql").read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return MappingProxyType({name: _statement(body) for name, body in zip(parts[::2], parts[1::2], strict=True)})


def quoted(name: str) -> str:
    """Return a checked name as an SQL identifier: unquoted, names such as `user` or `order` would be keywords."""
    return f'"{name}"'


def statement_in(namespace: str, name: str) -> str:
    """Return the statement that calls the function of its own name, for connections with another search path."""
    schema = quoted(namespace)
    text = queries()[name].replace(f"select {name}(", f"select {schema}.{name}(")
    return text.replace(" log_position(", f" {schema}.log_position(")


def _statement(body: str) -> str:
    lines = [line for line in body.strip().splitlines() if not line.startswith("--")]
    return "\n".join(lines).rstrip(";")
