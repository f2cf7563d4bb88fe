"""`python -m actorhub` is the command `actorhub`."""

from actorhub.cli import main

if __name__ == "__main__":
    main(prog_name="actorhub")
