"""A folder of class folders as people have it: which folders are classes, and what is left out."""

import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import Finding
from synthkd.images.decode import is_picture

# what systems and tools leave behind, beside everything that begins with a dot
LEFT_BEHIND = frozenset((
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
    "__pycache__", "thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r",
))  # fmt: skip
# what may lie beside images and was never meant as one
NOTES = frozenset((
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".md", ".rst", ".yaml", ".yml", ".toml",
    ".ini", ".cfg", ".log", ".html", ".py", ".ipynb", ".db", ".cache", ".pbtxt", ".sha256", ".md5",
))  # fmt: skip
DEEPEST = 3  # folders that are looked into for the one that holds the classes
_PART = re.compile(
    r"(?:(?:images?|imgs?|data|dataset)[\W_]*)?"
    r"(?:train(?:ing)?|trn|test(?:ing)?|tst|val(?:id)?(?:ation)?|dev|eval(?:uation)?|hold[\W_]?out)"
    r"(?:[\W_]*(?:sets?|data|dataset|images?|imgs?|split|\d+))*",
    re.IGNORECASE,
)
_SCORED = ("test", "tst", "hold", "eval", "val", "dev")  # the part that a score wants, best first


class Listing(NamedTuple):
    """What a folder holds."""

    names: tuple[str, ...]  # of the class folders, in text order
    files: tuple[tuple[Path, ...], ...]  # the images of each
    loose: tuple[Path, ...]  # images that lie in no class folder
    said: str  # what was left out or passed through, in words
    notes: tuple[Finding, ...]
    skipped: str  # the files that are not read, by suffix, in words


def listing(
    where: str, folder: Path, is_class: Callable[[str], bool] = lambda name: False
) -> Listing:
    """The class folders below `folder`, and their images in sorted order.

    Left out are hidden files and folders at any depth, and what systems leave behind. A folder
    that holds nothing but one other is passed through. `is_class` tells whether the teacher has a
    class of a name: such a folder is never taken for anything else.

    Raises InputError for a folder that holds parts of a data set (train, test) instead of classes,
    and OSError.
    """
    said: list[str] = []
    for depth in range(DEEPEST):
        below = [entry for entry in _visible(folder) if entry.is_dir()]
        left: Counter[str] = Counter()
        skipped: Counter[str] = Counter()
        files = [tuple(_pictures(sub, left, skipped)) for sub in below]
        full = [sub for sub, found in zip(below, files, strict=True) if found]
        loose = tuple(entry for entry in _visible(folder) if is_picture(entry))
        parts = [sub for sub in full if _PART.fullmatch(sub.name) and not is_class(sub.name)]
        if len(parts) > 1:
            raise InputError(_parts(where, parts))
        inner = _inner(full, loose, is_class)
        if inner is None or depth == DEEPEST - 1:
            break
        folder = inner
        said = [f"classes taken from {quoted(inner)}"]
    for entry in folder.iterdir():
        if entry.is_dir() and _is_left_behind(entry.name):
            left[entry.name] += 1
        elif entry.is_file() and not _is_left_behind(entry.name) and not is_picture(entry):
            skipped[entry.suffix.lower()] += 1
    if left:
        said.append("left out: " + ", ".join(quoted(name) for name in sorted(left)[:5]))
    names = tuple(sub.name for sub in below)
    notes = [*_of_skipped(skipped, sum(map(len, files)) + len(loose)), *_of_parts(below, files)]
    if full and loose:
        notes.append(Finding(
            "loose-images", f"{len(loose):,} images lie beside the class folders and were left out",
            "move them into class folders",
        ))  # fmt: skip
    return Listing(names, tuple(files), loose, "; ".join(said), tuple(notes), _counted(skipped))


def _is_left_behind(name: str) -> bool:
    return name.startswith(".") or name.casefold() in LEFT_BEHIND


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, in text order, without what systems leave behind."""
    entries = (entry for entry in folder.iterdir() if not _is_left_behind(entry.name))
    return sorted(entries, key=lambda entry: entry.name)


def _pictures(folder: Path, left: Counter[str], skipped: Counter[str]) -> list[Path]:
    """All images below a class folder, in sorted order; linked folders are not followed."""
    found = []
    for root, folders, names in os.walk(folder):
        left.update(name for name in folders if _is_left_behind(name))
        folders[:] = [name for name in folders if not _is_left_behind(name)]
        for name in names:
            path = Path(root) / name
            if _is_left_behind(name):
                continue
            if is_picture(path):
                found.append(path)
            else:
                skipped[path.suffix.lower()] += 1
    return sorted(found)


def _inner(
    full: list[Path], loose: tuple[Path, ...], is_class: Callable[[str], bool]
) -> Path | None:
    """The one folder to look into instead: the only one that has images, all in folders of its
    own."""
    if len(full) != 1 or loose or is_class(full[0].name):
        return None
    return None if any(is_picture(entry) for entry in _visible(full[0])) else full[0]


def _parts(where: str, parts: list[Path]) -> str:
    def rank(path: Path) -> int:
        text = path.name.casefold()
        return next((k for k, word in enumerate(_SCORED) if word in text), len(_SCORED))

    best = min(parts, key=rank)
    names = ", ".join(quoted(part.name) for part in parts[:5])
    return (
        f"{where}: it holds the parts of a data set ({names}), not classes: give one of them, e.g. "
        f"{quoted(best)}"
    )


def _counted(skipped: Counter[str]) -> str:
    loud = [(suffix, n) for suffix, n in skipped.most_common() if suffix not in NOTES]
    return ", ".join(f"{n:,} {quoted(s, 20) if s else 'without a suffix'}" for s, n in loud[:5])


def _of_skipped(skipped: Counter[str], read: int) -> list[Finding]:
    loud = sum(n for suffix, n in skipped.items() if suffix not in NOTES)
    if not loud or not read:
        return []
    return [Finding(
        "skipped-files",
        f"{loud:,} files were left out beside {read:,} images, as their suffix is not read "
        f"({_counted(skipped)})",
        "convert them, or remove them if they are no images",
    )]  # fmt: skip


def _of_parts(below: list[Path], files: list[tuple[Path, ...]]) -> list[Finding]:
    """Parts inside the classes: cat/train, cat/test."""
    found = {
        path.relative_to(sub).parts[0]
        for sub, paths in zip(below, files, strict=True)
        for path in paths
    }
    if len(found) < 2 or not all(_PART.fullmatch(name) for name in found):
        return []
    names = ", ".join(quoted(name) for name in sorted(found)[:5])
    return [Finding(
        "parts-inside-classes", f"the class folders hold parts of a data set ({names}), and all of "
        "them were taken", "give a folder of one part, if the others were trained on",
    )]  # fmt: skip
