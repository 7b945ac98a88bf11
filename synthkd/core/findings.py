"""What a check found: what was seen, how to mend it, and whether it is serious.

Checks of a teacher, of labels, of images and of a student all give these, so that every command
shows them alike, `--json` and summary.json carry them, and tests name them by `code`.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

OF_NO_USE = "useless"  # the verdict on a student that is of no use
EXIT_USELESS = 3  # exit code of a command that did its work, with a result that is of no use


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    `code` is a fixed short name ("random-weights"); `seen` says what was seen, with its figures;
    `remedy` says how to mend it. A serious one stops a run before it begins (unless --anyway), or
    stands first in its result.

    >>> str(Finding("random-weights", "its weights were never trained", "give --teacher-weights"))
    'its weights were never trained: give --teacher-weights'
    """

    code: str
    seen: str
    remedy: str
    serious: bool = False

    def __str__(self) -> str:
        return f"{self.seen}: {self.remedy}" if self.remedy else self.seen


def as_data(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Findings as plain data, for JSON.

    >>> as_data([Finding("a", "b", "c")])
    [{'code': 'a', 'seen': 'b', 'remedy': 'c', 'serious': False}]
    """
    return [asdict(finding) for finding in findings]
