"""What a launcher of several processes, torchrun or accelerate, tells each in its environment."""

import os

from synthkd.core.errors import InputError, quoted


def number(name: str, otherwise: int) -> int:
    """A count of the environment; `otherwise` where there is none. Raises InputError for what is no
    whole number."""
    text = os.environ.get(name, "").strip()
    if not text:
        return otherwise
    if not text.isdecimal():
        raise InputError(
            f"{name}={quoted(text)} in the environment is no whole number: launchers of several "
            "processes set it; unset it, or start by torchrun"
        )
    return int(text)


def started() -> int:
    """How many processes a launcher started for this job: 1 without one."""
    return max(1, number("WORLD_SIZE", 1))


def rank() -> int:
    """Which of them this one is, from 0."""
    return number("RANK", 0) if started() > 1 else 0
