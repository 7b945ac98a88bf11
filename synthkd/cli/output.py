"""The standard output and error streams, whatever their state and encoding."""

import codecs
import io
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from synthkd.core import launch
from synthkd.core.errors import InputError, plain

ALIKE = 1.0  # seconds in which a launcher ends the processes that would say what the first said


def prepare_output() -> None:
    """Makes the standard output and errors fit for whatever is printed: where they are closed it
    goes nowhere, where their encoding lacks a character something like it is shown."""
    # a file that is opened while 0, 1 or 2 is free would get what is printed by others
    while (handle := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(handle)
    codecs.register_error("synthkd", _shown)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="synthkd")


_ALIKE = str.maketrans({
    "…": "...", "‖": "||", "±": "+-", "→": "->", "×": "x", "–": "-", "—": "-", "█": "#", "░": ".",
    "▁": "_", "▂": ".", "▃": "-", "▄": "=", "▅": "+", "▆": "*", "▇": "%",
    "•": "*", "’": "'", "≤": "<=", "≥": ">=", "²": "^2", "·": "*",
})  # fmt: skip


def _shown(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for characters that a terminal does not have: ASCII that looks alike, else the
    escape of JSON (and of Python)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_ALIKE)
    return "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text), error.end


def silence(stream: Any) -> None:
    """Lets nothing more be written to a stream that cannot take it."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str) -> None:
    """A line on the standard error, if that can still be written."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        silence(sys.stderr)


def fail(text: str) -> NoReturn:
    """Says one line on stderr and ends with status 2. Of several processes the first says it; where
    it has nothing to say, and so is still there, another does."""
    with suppress(InputError):
        if rank := launch.rank():
            time.sleep(ALIKE)
            text = f"process {rank}: {text}"
    say(f"error: {plain(text)}")
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        raise SystemExit(2)
    silence(sys.stdout)
    raise SystemExit(2)
