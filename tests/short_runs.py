"""Command lines of tests, whose runs are too short for a student to be of any use."""

from collections.abc import Sequence

from synthkd import cli
from synthkd.core.findings import EXIT_USELESS

DONE = (0, EXIT_USELESS)  # exit codes of a command that did its work


def main(tokens: Sequence[str]) -> None:
    """`synthkd.cli.main`, for which a result of no use is a result."""
    try:
        cli.main(tokens)
    except SystemExit as stop:
        if stop.code not in DONE:
            raise


def status(*words: str) -> int:
    """The exit status of a command line."""
    try:
        cli.main(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
