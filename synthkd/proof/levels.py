"""The level of proof that a run has: which evidence its manifest holds, and of what kind."""

from collections.abc import Mapping, Sequence
from typing import Any

LEVELS = {
    0: "none: the manifest's own word",
    1: "what Python opened is listed",
    2: "sealed: the kernel refused every other file, and every socket",
    3: "sealed, and every byte of the teacher's files is accounted for",
}


def level_of(manifest: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """The level of proof by what a manifest holds, and why it is no higher.

    Level 1 wants the whole list of what was opened of every sitting, 2 the record of the seal of
    every sitting, which stands there from its beginning, 3 an account of the teacher's files
    besides, in which no byte is left over.

    >>> level_of({"opened": [{}], "sealed": [None]})
    (1, ('sitting 1 was not sealed',))
    """
    sittings = manifest.get("sittings", 1)
    opened, sealed = _of_each(manifest, "opened"), _of_each(manifest, "sealed")
    open_ones = [n for n, each in enumerate(sealed, start=1) if not _is_seal(each)]
    if len(sealed) != sittings or open_ones:
        kept = sum(isinstance(each, Mapping) and not each.get("missed") for each in opened)
        if not kept == len(opened) == sittings:  # the list of one that was killed is lost
            return 0, (f"all that was opened is told of {kept} of {sittings} sittings",)
        which = ", ".join(map(str, open_ones)) or "none is told of"
        return 1, (f"sitting {which} was not sealed",)
    accounting = manifest.get("accounting")
    if not isinstance(accounting, Mapping) or not accounting.get("files"):
        return 2, ("the bytes of the teacher's files are not accounted for",)
    reasons = [str(found.get("seen")) for found in accounting.get("findings", ())]
    reasons += [
        f"the parts of {entry.get('file')} are not its size"
        for entry in accounting["files"] if not _adds_up(entry)
    ]  # fmt: skip
    if not accounting.get("whole") and not reasons:
        reasons = ["the account of the teacher's files is not whole"]
    return (2, tuple(reasons)) if reasons else (3, ())


def _of_each(manifest: Mapping[str, Any], key: str) -> Sequence[Any]:
    found = manifest.get(key)
    return found if isinstance(found, list) else ()


def _is_seal(record: Any) -> bool:
    """Whether a record tells of a seal that was confirmed from inside."""
    if not isinstance(record, Mapping):
        return False
    calls, abi = record.get("refused_calls"), record.get("abi")
    return (
        isinstance(abi, int) and abi >= 1 and isinstance(calls, list) and "socket" in calls
        and bool(record.get("confirmed")) and isinstance(record.get("read"), list)
    )  # fmt: skip


def _adds_up(entry: Mapping[str, Any]) -> bool:
    try:
        parts = sum(entry[key] for key in ("numbers", "structure", "text", "spare"))
        return bool(parts == entry["bytes"] and entry["spare"] == 0 and entry["structure"] >= 0)
    except (KeyError, TypeError):
        return False
