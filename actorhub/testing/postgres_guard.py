"""Removes a temporary Postgres whose owner is gone. Run as a script, by its path and with the server's directory.

Its standard input is a pipe from the owner: it ends when the owner does, however that comes about. An owner that has
removed the server itself writes something first. Until then nothing is imported, so that waiting costs next to nothing.
"""

import sys


def main() -> None:
    """Wait for the owner's end, then see to what it left behind."""
    if not sys.stdin.buffer.read():
        from pathlib import Path  # noqa: PLC0415 - nothing is loaded before it is needed

        from actorhub.testing.postgres import remove  # noqa: PLC0415 - as above

        remove(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
