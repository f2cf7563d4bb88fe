"""Programs in processes that iterate over sets otherwise."""

import subprocess
import sys


def printed_with_each_seed(program: str) -> set[str]:
    """Run a program in three processes with different hash seeds; return what they printed, each text once."""
    return {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
