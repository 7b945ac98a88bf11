"""The promise levels: what of the world outside the teacher a run has seen."""

from collections.abc import Mapping
from typing import Any

PROMISES = {
    0: "strict: the teacher only",
    1: "outside prior",
    2: "unlabelled real images",
    3: "labelled real images",
}


def inherited_level(manifest: Mapping[str, Any], digest: str, *, unknown: int) -> int:
    """The level that a result of an earlier run allows one for the teacher of this `digest`.

    It is the earlier run's own; where that was about another teacher, at least 1: what came of that
    one is an outside prior here. `unknown` is that of a manifest which says nothing.

    >>> inherited_level({"promise_level": 0, "teacher_sha256": "a"}, "a", unknown=3)
    0
    >>> inherited_level({"promise_level": 0, "teacher_sha256": "a"}, "b", unknown=3)
    1
    >>> inherited_level({}, "a", unknown=3)
    3
    """
    level = manifest.get("promise_level", unknown)
    if not isinstance(level, int) or level not in PROMISES:
        level = unknown
    return level if manifest.get("teacher_sha256") == digest else max(1, level)
