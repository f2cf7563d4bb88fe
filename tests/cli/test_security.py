"""Commands and runners that show who they are."""

from pathlib import Path

import pytest

from actorhub.transport.grpc import TlsFiles
from tests.support.processes import Finished, Processes
from tests.transport.certificates import Authority


def _tls(files: TlsFiles) -> dict[str, str]:
    return {
        "ACTORHUB_TLS_CERT": str(files.cert),
        "ACTORHUB_TLS_KEY": str(files.key),
        "ACTORHUB_TLS_CA": str(files.ca),
    }


async def _run(processes: Processes, env: dict[str, str], *arguments: str) -> Finished:
    process = processes.start(*arguments, **env)
    return Finished(await process.ended(), process.out, process.err)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Signs the certificates of one test."""
    return Authority(tmp_path / "authority")


async def test_a_cluster_under_mutual_tls_answers_those_who_belong_to_it(
    processes: Processes, authority: Authority, tmp_path: Path
) -> None:
    """Runners ask each other and commands ask them, with certificates of one authority and the token, never without."""
    token = {"ACTORHUB_TOKEN": "open-sesame"}
    own = _tls(authority.issue("runner")) | token
    first, second = await processes.serve(**own), await processes.serve(**own)
    admin = ("--admin", first.address)
    rows = (await _run(processes, own, "runners", "--json", *admin)).json
    assert {(row["address"], row["state"]) for row in rows} == {
        (first.address, "serving"),
        (second.address, "serving"),
    }
    assert (await _run(processes, own, "call", "orders", "ada", "count", *admin)).json == 0
    stranger = _tls(Authority(tmp_path / "stranger").issue("stranger")) | token
    without_token = _tls(authority.issue("other"))
    for env, text in ((stranger, "cannot be reached"), (token, "cannot be reached"), (without_token, "ACTORHUB_TOKEN")):
        refused = await _run(processes, env, "runners", *admin)
        assert (refused.code, refused.out) == (1, "")
        assert text in refused.err
        assert "open-sesame" not in refused.err
    assert "open-sesame" not in first.out + first.err
