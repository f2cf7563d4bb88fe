"""Generate the typed gRPC code under actorhub/transport/grpc/_pb from the protos beside this file.

protoc is told that the protos lie in the package that the code goes to (`-I virtual=real`). So the generated imports
are right as they are, and names in protobuf's process-wide registry cannot clash with another program's protos.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PROTOS: Final = ROOT / "protos"
PACKAGE: Final = "actorhub/transport/grpc/_pb"
INIT: Final = '"""Generated from protos/ by `make protos`."""\n'


def generate(root: Path) -> None:
    """Write the code for every proto to `PACKAGE` under `root`.

    Raises:
        subprocess.CalledProcessError: protoc refused a proto; it has said why.
    """
    scripts = Path(sys.executable).parent
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{PACKAGE}={PROTOS}"),
            *(f"--plugin={name}={scripts / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
            *(f"--python_out={root}", f"--grpc_python_out={root}"),
            *(f"--mypy_out=quiet:{root}", f"--mypy_grpc_out=quiet,only_async:{root}"),
            *(f"{PACKAGE}/{path.name}" for path in sorted(PROTOS.glob("*.proto"))),
        ],
        check=True,
    )
    (root / PACKAGE / "__init__.py").write_text(INIT, encoding="utf-8")


def contents(root: Path) -> dict[str, bytes]:
    """Return the generated files under `root` by name."""
    return {path.name: path.read_bytes() for path in (root / PACKAGE).glob("*") if path.is_file()}


def main() -> int:
    """Bring the code up to date, or with --check name the files that are not, and return 1 if there are any."""
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(directory))
        wanted, found = contents(Path(directory)), contents(ROOT)
    stale = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"{PACKAGE}/{name} is stale: run make protos")
        return 1 if stale else 0
    for name in stale:
        target = ROOT / PACKAGE / name
        if name in wanted:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(wanted[name])
        else:
            target.unlink()
        print(f"{PACKAGE}/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
