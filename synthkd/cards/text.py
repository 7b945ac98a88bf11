"""Foreign strings in a card, and the parts that cards of students and of data sets share.

A card is Markdown behind a header of YAML between two lines of `---`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from synthkd.core.words import span, without_paths

FOUND = 10  # findings of a run, and versions, shown in its card
NAMED = 20  # classes named in a card
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")  # as keys and names of measures are
_AS_THEY_ARE = frozenset(" .,:;()+-/%'")  # in a string of a header, with letters and digits


def header(data: Mapping[str, Any]) -> str:
    """The front matter of a card: a line for each key of `data`, whose keys are plain words.

    >>> print(header({"tags": ["a"], "license": None, "n": {"0": "x<y"}}))
    ---
    tags: ["a"]
    n: {"0": "x\\x3Cy"}
    ---
    """
    lines = [f"{key}: {_yaml(value)}" for key, value in data.items() if value is not None]
    return "\n".join(["---", *lines, "---"])


def _yaml(value: Any) -> str:
    """Plain data as YAML on one line."""
    if isinstance(value, Mapping):
        pairs = (f"{_yaml(str(key))}: {_yaml(entry)}" for key, entry in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):  # YAML 1.1 reads 1e-05 as text
        return f"{value:.6f}" if math.isfinite(value) else "null"
    told = str(value)
    return f'"{told if _WORD.fullmatch(told) else "".join(map(_escaped, told))}"'


def _escaped(c: str) -> str:
    """A character between double quotes: what neither YAML nor a reader that takes the header for
    Markdown can mistake."""
    if c.isalnum() or c in _AS_THEY_ARE:
        return c
    number = 0xFFFD if 0xD800 <= ord(c) < 0xE000 else ord(c)  # half of a pair is no character
    for mark, digits in (("x", 2), ("u", 4), ("U", 8)):
        if number < 16**digits:
            return f"\\{mark}{number:0{digits}X}"
    raise AssertionError(c)


def plain(text: object) -> str:
    """A foreign text within a line or a table of Markdown: it stays text, and loses the folders
    before names of files.

    >>> plain("a|b\\n# c <i> www.d")
    'a\\\\|b \\\\# c  i  www\\\\.d'
    """
    told = without_paths(str(text))
    kept = "".join(c if c.isprintable() else " " for c in told).replace("&", "&amp;")
    for mark in "\\|`*_#[]~<>":
        kept = kept.replace(mark, " " if mark in "<>" else "\\" + mark)
    return kept.replace("://", ":\\//").replace("www.", "www\\.")


def code(text: object) -> str:
    """A foreign string between the marks of code: what is no letter or digit is left out."""
    return "".join(c for c in str(text) if c.isascii() and c.isalnum())


def table(rows: Mapping[str, str]) -> list[str]:
    """Names and values, a row each."""
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]


def findings(found: object) -> list[str]:
    """What a run itself found to be wrong with what it made."""
    lines = []
    for one in found[:FOUND] if isinstance(found, list) else []:
        if isinstance(one, dict):
            word = "**Of no use**" if one.get("serious") else "Warning"
            seen, remedy = (plain(one.get(key, "")) for key in ("seen", "remedy"))
            lines += [f"{word}: {seen}." + (f" To mend it: {remedy}." if remedy else ""), ""]
    return lines


def classes(names: Sequence[str], elsewhere: str) -> str:
    """Some of the class names; all of them stand `elsewhere`."""
    shown = ", ".join(map(plain, names[:NAMED]))
    more = f" … ({len(names) - NAMED:,} more in {elsewhere})" if len(names) > NAMED else ""
    return f"{len(names)}: {shown}{more}"


def promise(level: object, words: object) -> list[str]:
    """The promise level, and what it does not say."""
    return [
        f"Promise level {plain(level)} ({plain(words)}) says which images the run was given, by "
        "its own account. It does not say what the teacher's weights carry of the images that the "
        "teacher was trained on.", "",
    ]  # fmt: skip


def machine(seconds: object, manifest: Mapping[str, Any], memory: object) -> list[str]:
    """What it took: time, machine, memory."""
    said = []
    if isinstance(seconds, int | float):
        said.append(f"{span(seconds)} of wall clock")
    if isinstance(cpus := manifest.get("cpus"), int):
        said.append(f"{cpus} processors of {plain(manifest.get('machine', 'an unknown kind'))}")
    if isinstance(threads := manifest.get("threads"), int):
        said.append(f"{threads} thread" + ("" if threads == 1 else "s"))
    if "gpu" in manifest:
        said.append(f"GPU {plain(manifest['gpu'])}" if manifest["gpu"] else "no GPU")
    if isinstance(memory, int | float):
        said.append(f"at most {memory:,.0f} MB of memory")
    system = plain(manifest.get("platform", ""))
    return [
        "## Time and machine", "", f"{', '.join(said)}{f'; {system}' if system else ''}. "
        "Energy and emissions were not measured.", "",
    ]  # fmt: skip


def versions(manifest: Mapping[str, Any]) -> str:
    """Which versions made it."""
    told = manifest.get("versions")
    known = list(told.items())[:FOUND] if isinstance(told, dict) else []
    return ", ".join(f"{plain(name)} {plain(number)}" for name, number in known) or "unknown"
