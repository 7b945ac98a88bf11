"""A file may not choose which code is called."""

import re
from collections.abc import Mapping
from typing import Any

from synthkd.core.errors import InputError, quoted
from synthkd.recipe.tables import Recipe

_ZOOS = ("torchvision", "timm", "hf", "onnx", "ensemble")
NAMES_CODE = (
    ("teacher", "spec"), ("student", "spec"), ("evaluation", "extractor"),
    ("teaching", "assistants"), ("teaching", "peer"),
)  # fmt: skip


def is_installed_call(spec: str) -> bool:
    """Whether a SPEC is a `package.module:callable` of the installed environment.

    >>> [is_installed_call(s) for s in ("nets.small:make", "timm:vit", "net.py:make", "demo")]
    [True, False, False, False]
    """
    found = re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", spec)
    return bool(found) and spec.partition(":")[0] not in _ZOOS and ".py:" not in spec


def names_code(data: Mapping[str, Any]) -> str:
    """The first setting of plain data that calls something installed, or nothing."""
    for table, key in NAMES_CODE:
        value = data.get(table, {}).get(key, "")
        several = value if isinstance(value, list | tuple) else str(value).split(",")
        for spec in several:
            if is_installed_call(str(spec).strip()):
                return str(spec).strip()
    return ""


def refuse_code(data: Mapping[str, Any], *, trust_code: bool) -> None:
    """A file may not choose what is called: with arguments of its own, everything installed is a
    weapon. The user may, by a flag or by --trust-code."""
    spec = names_code(data)
    if spec and not trust_code:
        raise InputError(
            f"{quoted(spec)} is named in a file and would be called: give --trust-code if you "
            "trust it, or give it by a flag"
        )


def trusted(recipe: Recipe, *, trust_code: bool, anyway: bool) -> Recipe:
    """A recipe that was read from a directory, which keeps no permission, with those that the user
    gives now. Raises InputError where it names code and there is no trust in it."""
    refuse_code(recipe.model_dump(), trust_code=trust_code)
    table = recipe.run.model_copy(update={"trust_code": trust_code, "anyway": anyway})
    return recipe.model_copy(update={"run": table})
