"""The settings as data: what flags, help and docs/settings.md are made from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from synthkd.recipe.tables import MOST, MOST_MINUTES, Flag, Recipe, Stage, Table


@dataclass(frozen=True)
class Setting:
    """One leaf of the recipe: what flags, help and docs/settings.md are made from."""

    key: str  # dotted name, e.g. "memory.capacity"
    table: str  # "" for a top-level key
    flag: str | None  # the short flag, if it is a daily one
    brief: str  # its line in the short help
    meaning: str
    range: str
    default: object
    kind: str  # INT, NUMBER, NUMBERS, SIZE, WORDS, BOOL or TEXT
    boolean: bool


def settings(model: type[Table] = Recipe, prefix: str = "") -> Iterator[Setting]:
    """All leaves of a table, in their order, stages apart."""
    for name, field in model.model_fields.items():
        if name == "stage" and model is Recipe:
            continue
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Table):
            yield from settings(annotation, f"{prefix}{name}.")
            continue
        flag = next((m for m in field.metadata if isinstance(m, Flag)), None)
        yield Setting(
            key=prefix + name,
            table=prefix.rstrip("."),
            flag=flag.name if flag else None,
            brief=flag.brief if flag else "",
            meaning=field.description or "",
            range=_range(field.metadata, annotation),
            default=None if field.is_required() else field.default,
            kind=_kind(annotation),
            boolean=annotation is bool,
        )


def _kind(annotation: Any) -> str:
    """What a value looks like, for help: INT, NUMBER, …"""
    text = str(annotation)
    if "Literal" in text:
        return "WORD"
    for word, kind in (
        ("tuple[float", "NUMBERS"),
        ("tuple[str", "WORDS"),
        ("tuple[int", "SIZE"),
        ("bool", "BOOL"),
        ("int", "INT"),
    ):
        if word in text:
            return kind
    return "NUMBER" if "float" in text else "TEXT"


def _range(metadata: list[Any], annotation: Any) -> str:
    """`0..1`, `>= 1`, `sgd | adam`: the range of a field in words."""
    bounds = {k: getattr(m, k) for m in metadata for k in ("ge", "gt", "le", "lt") if hasattr(m, k)}
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    choices = getattr(annotation, "__args__", ()) if "Literal" in str(annotation) else ()
    if choices:
        return " | ".join(str(c) for c in choices)
    if low is not None and high is not None:
        if high in (2**31, MOST, MOST_MINUTES):  # no limit that anybody meets
            return f"{'>=' if 'ge' in bounds else '>'} {low}"
        return f"{low}..{high}"
    if low is not None:
        return f"{'>=' if 'ge' in bounds else '>'} {low}"
    return ""


def settings_table() -> str:
    """Every setting as a Markdown table: what stands between the markers in docs/settings.md."""

    def shown(value: object) -> str:
        if value is None or value == "" or value == () or value == {}:
            return ""
        return f"`{str(value).lower() if isinstance(value, bool) else value}`"

    rows = [("key", "flag", "meaning", "range", "default"), ("---",) * 5]
    for setting in (*settings(), *settings(Stage, "stage.NAME.")):
        flag = f"`{setting.flag}`" if setting.flag else ""
        key, default = f"`{setting.key}`", shown(setting.default)
        rows.append((key, flag, setting.meaning, setting.range, default))
    return "\n".join(
        f"| {' | '.join(c.replace('|', chr(92) + '|') for c in row)} |" for row in rows
    )
