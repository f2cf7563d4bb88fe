"""Fixtures of the tests of deploys."""

import tarfile

import pytest

from tests.deploys.releases import ARCHIVE, Release
from tests.support.gates import closed_gates
from tests.support.starter import ROOT

__all__ = ["closed_gates", "releases"]


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Release, Release]:
    """The release before, and this one."""
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return Release(str(folder), 1), Release(str(ROOT), 2)
