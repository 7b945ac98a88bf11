"""Counts and durations in words; names of things, and without the folders before them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def counted(count: float, noun: str) -> str:
    """A count with its noun.

    >>> counted(1, "minute"), counted(0.5, "minute")
    ('1 minute', '0.5 minutes')
    """
    return f"{count:g} {noun}" + ("" if count == 1 else "s")


def span(seconds: float) -> str:
    """A duration in words, to two figures.

    >>> span(0.034), span(8.4), span(146), span(3480), span(9000)
    ('0.03 s', '8.4 s', '2.4 minutes', '58 minutes', '2.5 hours')
    """
    for unit, size in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * size:
            count = seconds / size
            return f"{count:.2g} {unit}" if count < 10 else f"{count:.0f} {unit}"
    return (
        f"{seconds:.0f} s"
        if seconds >= 10
        else f"{seconds:.1f} s"
        if seconds >= 1
        else (f"{seconds:.1g} s")
    )


def clock(seconds: float) -> str:
    """`1:05` for 65 seconds.

    >>> clock(65), clock(3725)
    ('1:05', '1:02:05')
    """
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def without_folders(text: str) -> str:
    """A SPEC or a path without the folders before its name, which tell of somebody's machine.

    >>> [without_folders(t) for t in ("/home/ann/net.py:make", "hf:models/vit/", "timm:vit", "a/b")]
    ['net.py:make', 'hf:vit', 'timm:vit', 'b']
    """
    return re.sub(r"[^:]*[/\\]", "", text.rstrip("/\\"))


def without_paths(text: str) -> str:
    """A sentence in which absolute paths have lost their folders.

    >>> without_paths("'/home/ann b/x.npz': 3 of 10/20 at /opt/y.pt")
    "'x.npz': 3 of 10/20 at y.pt"
    """
    text = re.sub(r"(?<=['\"])/[^'\"]*/", "", text)
    return re.sub(r"(?<![\w'\"/.])/(?:[^\s/'\"]+/)*(?=[^\s/'\"])", "", text)


def run_name(teacher: str, student: str, seed: int) -> str:
    """What a run directory is called where the user names none.

    >>> run_name("nets/my_file.py:make", "<Sequential>", 3)
    'my_file-make-Sequential-s3'
    """
    return f"{_word(teacher)}-{_word(student)}-s{seed}"


def _word(spec: str) -> str:
    """A SPEC as part of a directory's name."""
    name = Path(spec.replace(".py:", "-").replace(":", "-")).name
    return re.sub(r"[^\w.-]+", "", name) or "x"


def estimate_in_words(found: Mapping[str, Any] | None, why_not: str = "") -> str:
    """An agreement estimated without data, as a summary has it (`evaluation.without_data`).

    >>> estimate_in_words({"agreement": 0.912, "low": 0.853, "high": 0.948, "constant": 0.1})
    '91% (85 to 95%); a constant classifier 10%'
    >>> estimate_in_words(None, "not for this teacher")
    'none: not for this teacher'
    """
    if found is None:
        return f"none: {why_not}"
    return (
        f"{found['agreement']:.0%} ({100 * found['low']:.0f} to {found['high']:.0%}); "
        f"a constant classifier {found['constant']:.0%}"
    )
