"""Names and orders of classes: those of a user's images, matched with those of a teacher.

K classes of the teacher, G class names on the user's side (folders, or label texts). Nothing is
guessed in silence: an `Arrangement` says how it was made.
"""

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from synthkd.core.errors import InputError, plain, quoted

MOST_NAME = 200  # characters of a name
MOST_TEXT = 10_000_000  # bytes of a list of names
SHOWN = 5  # names in a message
_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
)  # fmt: skip
_WORDNET = re.compile(r"n\d{8}")  # how ImageNet numbers its classes
_DEFAULT = re.compile(r"(?:label|class|output)?[ _-]?(\d{1,7})", re.IGNORECASE)
_PREFIX = re.compile(r"(?:n\d{8}|\d{1,7})[\s._-]+(?=\D)")
_GENERIC = re.compile(r"(?:class|label|digit|category|number|no)[\s._-]*(?=\d+$)", re.IGNORECASE)
_ATTRIBUTES = (
    "id2label", "class_names", "classes", "CLASSES", "CLASS_NAMES", "names", "label_names",
    "categories", "labels", "LABELS", "idx_to_class", "class_to_idx", "label2id",
)  # fmt: skip


ORDERS = ("auto", "names", "numeric", "alphabetical", "one-based", "background-first")


class Order(NamedTuple):
    """Another way to read labels: what class of the teacher each one is."""

    how: str  # "if 1 is taken away"
    classes: tuple[int, ...]  # by label; -1 where it has none
    flag: str = ""  # of --class-order, where one word says it
    adopted: bool = False  # may be taken without asking, where the teacher's answers decide


class Arrangement(NamedTuple):
    """What class of the teacher each name of the user's is."""

    classes: tuple[int, ...]  # [G]; -1: left out, it has no images
    how: str  # in words
    others: tuple[Order, ...] = ()  # what it might be as well


def known_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names that say something; () where they are only numbers in their order.

    >>> known_names(("LABEL_0", "LABEL_1")), known_names(("0", "1")), known_names(("1", "0"))
    ((), (), ('1', '0'))
    """
    found = [_DEFAULT.fullmatch(str(name)) for name in names]
    plainly = all(one and int(one[1]) == k for k, one in enumerate(found))
    return () if plainly else tuple(names)


def check_same_classes(
    ours: Sequence[str], theirs: Sequence[str], whose: str = "the student"
) -> None:
    """Refuses what has the classes `ours`, a student or a data set, where they are surely not
    `theirs`, its teacher's, one by one: a name that both have stands at another place, or all are
    numbers that say something (`known_names`), and they differ. Lists without names tell nothing.
    """
    if len(ours) != len(theirs) or not ours:
        return  # another number of classes is refused where their answers are compared
    place = {name: k for k, name in enumerate(theirs)}
    moved = [k for k, name in enumerate(ours) if place.get(name, k) != k]
    if not moved and all(known_names(names) and all(map(str.isdecimal, names))
                         for names in (ours, theirs)):  # fmt: skip
        moved = [k for k, name in enumerate(ours) if name != theirs[k]]
    if moved:
        k = moved[0]
        raise InputError(
            f"class {k} of {whose} is {quoted(ours[k], 40)}, and of the teacher "
            f"{quoted(theirs[k], 40)}: give the teacher's classes in the same order (--only, "
            "--class-names)"
        )


def names_in(holder: object, classes: int) -> tuple[str, ...]:
    """Class names that a network, a function or a module of code carries: the first attribute
    among the usual ones (`id2label`, `classes`, `class_names`, `names`, `CLASSES`, …) that holds as
    many different texts as there are classes; () where there is none."""
    own = vars(holder) if hasattr(holder, "__dict__") else {}
    for key in _ATTRIBUTES:
        value = own.get(key, getattr(type(holder), key, None))
        found = _as_names(value)
        if len(found) == classes:
            return found
    return ()


def _as_names(value: Any) -> tuple[str, ...]:
    """A list of names, a dict of numbers to names, or of names to numbers."""
    if isinstance(value, Mapping) and len(value) <= 1_000_000:
        if all(isinstance(v, int) for v in value.values()):  # name -> number
            value = {number: name for name, number in value.items()}
        try:
            numbered = {int(k): v for k, v in value.items()}
        except (TypeError, ValueError):
            return ()
        if sorted(numbered) != list(range(len(numbered))):
            return ()
        value = [numbered[k] for k in range(len(numbered))]
    if not isinstance(value, list | tuple) or not value:
        return ()
    if not all(isinstance(v, str) and 0 < len(v) <= MOST_NAME for v in value):
        return ()
    return tuple(value) if len(set(value)) == len(value) else ()


def told_list(text: str, flag: str) -> tuple[str, ...]:
    """The entries of a setting: between commas, or the lines of a text file. Numbers in front of
    all lines, 0, 1, 2, …, are left out ("0 cat"), and empty lines at the end.

    >>> told_list("cat, sea lion", "--class-names")
    ('cat', 'sea lion')
    """
    path = Path(text)
    if not text or "," in text or not (path.suffix or _is_file(path)):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        if not _is_file(path) or path.stat().st_size > MOST_TEXT:
            raise InputError(
                f"{flag} {quoted(text)}: not a text file of at most {MOST_TEXT:,} bytes"
            )
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{flag} {quoted(text)}: {quoted(error.strerror)}") from None
    except UnicodeDecodeError:
        raise InputError(f"{flag} {quoted(text)}: this is not text in UTF-8") from None
    lines = [line.strip() for line in content.strip().splitlines()]
    split = [re.fullmatch(r"(\d+)[\s:,;]+(.+)", line) for line in lines]
    if all(one and int(one[1]) == k for k, one in enumerate(split)):
        lines = [one[2] for one in split if one]
    if not all(0 < len(line) <= MOST_NAME and line.isprintable() for line in lines):
        raise InputError(
            f"{flag} {quoted(text)}: one entry per line, of at most {MOST_NAME} characters"
        )
    return tuple(lines)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # of what can be no path
        return False


# Matching


def key(name: str) -> str:
    """A name without case, accents of form, spaces and signs; numbers without leading zeros.

    >>> key("Golden_Retriever") == key("golden retriever"), key("007")
    (True, '7')
    """
    text = re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())
    return str(int(text)) if text.isascii() and text.isdecimal() and len(text) < 20 else text


def matched(given: Sequence[str], names: Sequence[str]) -> list[int | None]:
    """The teacher's class of each given name; None where no class has it, or more than one.

    Compared are, one after the other: the texts; their keys (`key`); each synonym between commas,
    without a number in front ("003.Blue_jay"), ImageNet's numbers as what they stand for, and
    number words as numbers. A closer comparison wins over a wider one.

    >>> matched(["Sea-Lion", "0_cat", "eel"], ["cat, Felis catus", "sea lion"])
    [1, 0, None]
    """
    result: list[int | None] = [None] * len(given)
    levels: tuple[Callable[[str], Iterable[str]], ...] = (
        lambda name: (name,), lambda name: (key(name),), _variants,
    )  # fmt: skip
    for level in levels:
        holders: dict[str, set[int]] = {}
        taken = {k for k in result if k is not None}
        for k, name in enumerate(names):
            for variant in level(name):
                if variant and k not in taken:
                    holders.setdefault(variant, set()).add(k)
        proposed: dict[int, list[int]] = {}
        for g, name in enumerate(given):
            if result[g] is None:
                ways = [holders[v] for v in level(name) if v in holders]
                sure = {next(iter(way)) for way in ways if len(way) == 1}
                if len(sure) == 1:
                    proposed.setdefault(sure.pop(), []).append(g)
        for k, claims in proposed.items():
            if len(claims) == 1:
                result[claims[0]] = k
    return result


def _variants(name: str) -> list[str]:
    whole = [name, _PREFIX.sub("", name, count=1), _GENERIC.sub("", name, count=1)]
    number = _WORDNET.match(name)
    if number:
        whole.append(_wordnet().get(number[0], ""))
    found: list[str] = []
    for text in whole:
        for part in (text, *re.split(r"[,;|]", text)):
            short = key(part)
            found.append(str(_WORDS.index(short)) if short in _WORDS else short)
    return list(dict.fromkeys(found))


@lru_cache(maxsize=1)
def _wordnet() -> dict[str, str]:
    """ImageNet-1k's numbers and names in the order of its classes, as timm has them."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return {name: info.index_to_description(k) for k, name in enumerate(info.label_names())}


# Arranging


def arranged(
    given: Sequence[str],
    filled: Sequence[bool],
    names: Sequence[str],
    classes: int | None,
    order: str = "auto",
) -> Arrangement:
    """What class of the teacher each name of the user's is.

    `given` are different names in text order; `filled` tells which of them have images; `names` are
    the teacher's, as far as it has any (`known_names`). `order` is --class-order. With "auto": by
    names where both sides have them; ImageNet's numbers in its own order; numbers by their value;
    else in text order, as ImageFolder does it.

    Raises InputError, without saying where, in all other cases.
    """
    used = [g for g, full in enumerate(filled) if full]
    if order not in ORDERS:
        return _spread(given, used, classes, _listed(order, given, names, classes))
    if order in ("auto", "names"):
        if names:
            found = _by_name(given, used, names, order)
            if found is not None:
                return found
        elif order == "names":
            raise InputError("--class-order names: the teacher's are not known; give --class-names")
    if order == "auto" and classes == 1000 and all(_WORDNET.fullmatch(given[g]) for g in used):
        place = {number: k for k, number in enumerate(_wordnet())}
        numbered = [place.get(name) for name in given]
        if all(numbered[g] is not None for g in used):
            how = "by ImageNet's numbers, in its own order"
            return Arrangement(tuple(-1 if k is None else k for k in numbered), how)
    numbers = numbers_of([given[g] for g in used])
    if order != "alphabetical" and numbers is not None:
        return _by_number(given, used, numbers, classes, order)
    if order not in ("auto", "alphabetical"):
        raise InputError(f"--class-order {order}: these are not numbers: {_few(given)}")
    return _by_text(given, used, names, classes)


def numbered(
    values: Sequence[int], names: Sequence[str], classes: int | None, order: str = "auto"
) -> Arrangement:
    """What class of the teacher each of these different label numbers is, in rising order.

    They are classes as they stand; 1..K are counted from 1. `order` and errors are those of
    `arranged`.
    """
    given, used = [str(value) for value in values], range(len(values))
    low, high = values[0], values[-1]
    if order not in ORDERS:
        return _spread(given, used, classes, _listed(order, given, names, classes))
    shift = {"one-based": -1, "background-first": 1}.get(order, 0)
    how = f"as --class-order {order} says" if shift else ""
    if order == "names":
        raise InputError("--class-order names: the labels are numbers")
    first = int(classes is not None and low >= 1 and high == classes)
    if order == "alphabetical" and classes is not None and low >= first:
        if high - first >= classes:
            raise InputError(f"labels must lie in 0..{classes - 1}; got {low}..{high}")
        rank = _text_order(classes, first, adopted=False).classes
        return Arrangement(tuple(rank[value - first] for value in values), "in text order")
    if order == "auto" and first:
        shift, how = -1, f"as counted from 1: {low}..{high} are the classes {low - 1}..{high - 1}"
    if low + shift < 0 or (classes is not None and high + shift >= classes):
        top = f"{-shift}..{classes - 1 - shift}" if classes is not None else f"{-shift} and up"
        more = "" if classes is None or len(values) > classes else (
            "; if these are its classes, say which is which with --class-order"
        )  # fmt: skip
        raise InputError(f"labels must lie in {top}; got {low}..{high}{more}")
    return Arrangement(tuple(value + shift for value in values), how)


def _by_name(
    given: Sequence[str], used: Sequence[int], names: Sequence[str], order: str
) -> Arrangement | None:
    found = matched(given, names)
    lacking = [given[g] for g in used if found[g] is None]
    if not lacking:
        how = f"by name, {len(used)} of the teacher's {len(names)} classes"
        return Arrangement(tuple(-1 if k is None else k for k in found), how)
    if len(lacking) == len(used) and order == "auto":
        return None  # another vocabulary: by order, and the teacher's answers are compared
    close = [difflib.get_close_matches(name, names, n=1, cutoff=0.5) for name in lacking[:SHOWN]]
    near = [f"{quoted(n)} (like {quoted(c[0])}?)" if c else quoted(n)
            for n, c in zip(lacking, close, strict=False)]  # fmt: skip
    more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
    raise InputError(
        f"{len(lacking)} of its {len(used)} classes are none of the teacher's "
        f"({_few(names)}): {', '.join(near)}{more}; rename or remove them, or say which is which "
        "with --class-names or --class-order"
    )


def numbers_of(names: Sequence[str]) -> list[int] | None:
    """The different numbers that names are, or begin or end with behind the same word; else None.

    >>> numbers_of(["1", "10"]), numbers_of(["c0", "c1"]), numbers_of(["0_cat", "1_dog"])
    ([1, 10], [0, 1], [0, 1])
    >>> numbers_of(["two", "one"]), numbers_of(["cat", "dog"])
    ([2, 1], None)
    """
    for pattern in (r"(?P<word>\D*)(?P<number>\d{1,9})", r"(?P<number>\d{1,9})[\s._-]+\D.*"):
        found = [re.fullmatch(pattern, name) for name in names]
        if all(found) and len({one.groupdict().get("word") for one in found if one}) == 1:
            numbers = [int(one["number"]) for one in found if one]
            return numbers if len(set(numbers)) == len(numbers) else None
    words = [name.casefold() for name in names]
    if names and len(set(words)) == len(words) and all(word in _WORDS for word in words):
        return [_WORDS.index(word) for word in words]
    return None


def _by_number(
    given: Sequence[str], used: Sequence[int], numbers: Sequence[int], classes: int | None,
    order: str,
) -> Arrangement:  # fmt: skip
    low, high, count = min(numbers), max(numbers), len(numbers)
    first = {"one-based": 1, "background-first": -1}.get(order, 0)
    if first:
        label = {number: number - first for number in numbers}
        if low < first or (classes is not None and high - first >= classes):
            raise InputError(f"--class-order {order}: its numbers are {low}..{high}")
        how = f"by number, as --class-order {order} says"
    elif classes is None:
        first = 0 if low == 0 or high != count else 1
        label = {number: number - first for number in numbers}
        if high - first >= count:
            label = {number: k for k, number in enumerate(sorted(numbers))}
        how = "by number"
    elif high < classes:
        first, label = 0, {number: number for number in numbers}
        how = "by number"
    elif low >= 1 and high == classes:
        first, label = 1, {number: number - 1 for number in numbers}
        how = "by number, counted from 1"
    elif count == classes:
        first, label = 0, {number: k for k, number in enumerate(sorted(numbers))}
        how = "by number, the smallest first"
    else:
        raise InputError(
            f"its {count} classes have the numbers {low}..{high}, the teacher has {classes} "
            f"classes, 0..{classes - 1}"
        )
    result = [-1] * len(given)
    for g, number in zip(used, numbers, strict=True):
        result[g] = label[number]
    others: list[Order] = []
    if order == "auto" and classes is not None and classes > 10:
        others.append(_text_order(classes, first, adopted=True))
    return Arrangement(tuple(result), how, tuple(others))


def _text_order(classes: int, first: int, *, adopted: bool) -> Order:
    texts = sorted(str(k + first) for k in range(classes))
    rank = {text: k for k, text in enumerate(texts)}
    return Order(
        f"in text order ({', '.join(texts[:4])}, …), as ImageFolder counts folders without zeros "
        "in front",
        tuple(rank[str(k + first)] for k in range(classes)), "alphabetical", adopted,
    )  # fmt: skip


def _by_text(
    given: Sequence[str], used: Sequence[int], names: Sequence[str], classes: int | None
) -> Arrangement:
    """As ImageFolder does it. Empty folders count where they make up the number of classes."""
    # numbers are sorted as they stand without zeros in front: so were the teacher's folders
    numbers = numbers_of(given)
    texts = given if numbers is None else [str(number) for number in numbers]
    chosen = used if classes is None or len(used) == classes else range(len(given))
    if classes is not None and len(chosen) != classes:
        told = f" ({_few(names)})" if names else ", whose names are not known"
        raise InputError(
            f"it has {len(chosen)} classes ({_few(given)}), the teacher has {classes}{told}; name "
            "the teacher's with --class-names, or give a class without images an empty folder"
        )
    ranked = sorted(chosen, key=lambda g: texts[g])
    result = [-1] * len(given)
    for k, g in enumerate(ranked):
        result[g] = k
    others = []
    folded = sorted(chosen, key=lambda g: (texts[g].casefold(), texts[g]))
    if folded != ranked:
        place = {g: k for k, g in enumerate(folded)}
        others.append(Order(
            "in alphabetical order whatever the case", tuple(place[g] for g in ranked)
        ))  # fmt: skip
    return Arrangement(tuple(result), "in alphabetical order", tuple(others))


def _listed(
    order: str, given: Sequence[str], names: Sequence[str], classes: int | None
) -> list[int]:
    """--class-order as a list: the teacher's class of each name in text order, or of 0, 1, 2, …"""
    parts = told_list(order, "--class-order")
    found: list[int] = []
    for part in parts:
        if part.isascii() and part.isdecimal():
            found.append(int(part))
            continue
        k = matched([part], names)[0]
        if k is None:
            raise InputError(
                f"--class-order {quoted(part)}: {', '.join(ORDERS)}, or for each class of the data "
                "the teacher's, by number or name, with commas"
            )
        found.append(k)
    if len(set(found)) != len(found) or (classes is not None and max(found) >= classes):
        raise InputError(
            f"--class-order {quoted(order)}: different classes of the teacher's {classes}"
        )
    return found


def _spread(
    given: Sequence[str], used: Sequence[int], classes: int | None, told: Sequence[int]
) -> Arrangement:
    chosen = used if len(told) == len(used) else range(len(given))
    if len(chosen) != len(told):
        raise InputError(
            f"--class-order names {len(told)} classes, the data have {len(used)}: {_few(given)}"
        )
    result = [-1] * len(given)
    for g, k in zip(chosen, told, strict=True):
        result[g] = k
    return Arrangement(tuple(result), "as --class-order says")


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(plain(name[:40]) for name in names[:SHOWN])
    return shown + (f", … {plain(names[-1][:40])}" if len(names) > SHOWN else "")
