"""What a pickle of torch.save holds, read as a text: every value in it ends up in the result, also
those that unpickling would throw away. Nothing is imported and nothing called.
"""

import math
import pickletools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from synthkd.core.errors import quoted

MOST_DEPTH, MOST_TABLES = 64, 1_000_000
TENSOR, PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
TABLES = ("collections OrderedDict", "dict")
PLACE = re.compile(r"cpu|mps|(cuda|xpu|hpu):\d{1,3}")  # where a tensor was
WIDTHS = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2,
    "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1,
    "BoolStorage": 1, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16,
}  # fmt: skip


@dataclass
class Made:
    """A value that is built: a table, a list, or what a function would make of its arguments."""

    by: str
    arguments: Any = ()
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    members: list[Any] = field(default_factory=list)
    state: Any = None


@dataclass(frozen=True)
class Named:
    """A class or function, by module and name."""

    name: str


@dataclass(frozen=True)
class Stored:
    """What is kept outside the pickle."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Piece:
    """A tensor: of the storage with a key, `count` numbers of `width` bytes, those from `offset` on
    in this shape, with these strides."""

    key: str
    width: int
    count: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class Contents:
    """The tensors of a pickle by full name, and all else in it."""

    tensors: dict[str, Piece] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)  # names in torch's own table of versions
    told: dict[str, int] = field(default_factory=dict)  # other values by name: their bytes
    strange: list[str] = field(default_factory=list)  # what no file of plain weights has
    tables: int = 0
    # values that were looked at, by their identity: one that stands in several places counts once
    seen: dict[int, Any] = field(default_factory=dict, repr=False)

    def tell(self, name: str, value: Any) -> None:
        """Counts the constants of a value that is no tensor."""
        if count := sum(_sizes(value, self.seen, 0)):
            self.told[name] = self.told.get(name, 0) + count


def contents(data: bytes) -> Contents:
    """What the pickle holds. Raises ValueError where it is none that torch.save writes."""
    root, end = _built(data)
    found = Contents()
    found.tell("behind the pickle's end", data[end:])
    if not (isinstance(root, Made) and root.by in TABLES):
        raise ValueError("no table of tensors")
    _walk(root, "", found, 0)
    return found


def _built(data: bytes) -> tuple[Any, int]:
    """The value at the top of a pickle, and where the pickle ends."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since() -> list[Any]:
        place = marks.pop()
        values = stack[place:]
        del stack[place:]
        return values

    for code, argument, at in pickletools.genops(data):
        name = code.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            if len(stack) != 1 or marks:
                raise ValueError("values that are left over")
            return stack[0], at + 1 if at is not None else len(data)
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name in CONSTANTS:
            stack.append(argument)
        elif name in SINGLE:
            stack.append(SINGLE[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append(Made("dict" if name == "EMPTY_DICT" else "list"))
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in TUPLES:
            count = TUPLES[name]
            made = tuple(stack[-count:])
            del stack[-count:]
            stack.append(made)
        elif name == "TUPLE":
            stack.append(tuple(since()))
        elif name == "GLOBAL":
            stack.append(Named(str(argument)))
        elif name == "BINPERSID":
            stored = stack.pop()
            stack.append(Stored(stored if isinstance(stored, tuple) else (stored,)))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            if not isinstance(function, Named):
                raise ValueError("something is called that is no name")
            stack.append(Made(function.name, arguments))
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], Made) or stack[-1].state is not None:
                raise ValueError("a state for what has none")
            stack[-1].state = state
        elif name in ("SETITEM", "SETITEMS"):
            values = since() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
            stack[-1].pairs += zip(values[::2], values[1::2], strict=True)
        elif name in ("APPEND", "APPENDS"):
            values = since() if name == "APPENDS" else [stack.pop()]
            stack[-1].members += values
        else:
            raise ValueError(f"an instruction {name}, which torch.save does not write")
    raise ValueError("no end")


CONSTANTS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8", "BINSTRING", "SHORT_BINSTRING", "STRING",
}  # fmt: skip
SINGLE = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _walk(table: Made, before: str, found: Contents, depth: int) -> None:
    """Sorts what a table holds."""
    found.tables += 1
    if depth > MOST_DEPTH or found.tables > MOST_TABLES:
        raise ValueError("more, or more deeply nested, than weights are")
    times = Counter(str(key) for key, _ in table.pairs)
    for key, value in table.pairs:
        name = f"{before}{key}"
        if not isinstance(key, str | int) or times[str(key)] > 1 or name in found.tensors:
            found.strange.append(f"the key {quoted(name)} twice, or no name")
            found.tell(f"{name} (again)", (key, value))
            continue
        piece = _piece(value, found)
        if piece is not None:
            found.tensors[name] = piece
        elif isinstance(value, Made) and value.by in TABLES and not value.members:
            _walk(value, f"{name}.", found, depth + 1)
        else:
            found.tell(name, (str(key), value))
            names = sorted(set(_foreign(value, {}, 0)))
            found.strange += [f"an object of {quoted(n.replace(' ', '.'))}" for n in names]
    found.tell(f"{before}(beside its keys)", (table.members, table.arguments))
    found.tell(f"{before}(state)", _without_versions(table.state, found))


def _piece(value: Any, found: Contents) -> Piece | None:
    """A tensor; None where a value is none. What stands beside it is told."""
    if isinstance(value, Made) and value.by == PARAMETER:
        inner, *rest = value.arguments
        found.tell("beside tensors", (rest, value.state, value.pairs, value.members))
        return _piece(inner, found)
    if not (isinstance(value, Made) and value.by == TENSOR):
        return None
    stored, offset, shape, stride, *rest = value.arguments
    label, kind, key, place, count = stored.values
    if not all(type(n) is int for n in (offset, count, *shape, *stride)) or type(key) is not str:
        raise ValueError("a tensor of no size")
    found.tell("beside tensors", (rest, value.state, value.pairs, value.members))
    if label != "storage" or not PLACE.fullmatch(str(place)) or not key.isdecimal():
        found.tell("beside tensors", (label, place, key))
    width = WIDTHS[kind.name.removeprefix("torch ")]
    return Piece(key, width, count, offset, tuple(shape), tuple(stride))


def _without_versions(state: Any, found: Contents) -> Any:
    """The state of a state dict without what torch itself puts there: `_metadata`, a table of
    `{"version": a small number}` by the names of modules, which are kept in `found`."""
    if not (isinstance(state, Made) and state.by == "dict" and len(state.pairs) == 1):
        return state
    key, table = state.pairs[0]
    if key != "_metadata" or not isinstance(table, Made) or table.by not in TABLES:
        return state
    left = []
    for name, kept in table.pairs:
        if _is_version(kept) and isinstance(name, str):
            found.modules.append(name)
        else:
            left.append((name, kept))
    return (left, table.members, table.arguments, table.state, state.members)


def _is_version(kept: Any) -> bool:
    if not (isinstance(kept, Made) and kept.by == "dict" and not kept.members and not kept.state):
        return False
    return len(kept.pairs) < 2 and all(
        key == "version" and isinstance(value, int) and 0 <= value < 10 for key, value in kept.pairs
    )


def _sizes(value: Any, seen: dict[int, Any], depth: int) -> Iterator[int]:
    """The bytes of the constants in a value. Of a list each truth value counts as a bit; two or
    three of them stand beside every tensor, and count as nothing."""
    if depth > MOST_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        yield len(value.encode("utf-8", "surrogatepass"))
    elif isinstance(value, bytes | bytearray):
        yield len(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield (value.bit_length() + 7) // 8
    elif isinstance(value, float):
        yield 8
    elif isinstance(value, list | tuple | Made | Stored) and id(value) not in seen:
        seen[id(value)] = value
        if isinstance(value, list | tuple):
            yield len(value) // 8
            for each in value:
                yield from _sizes(each, seen, depth + 1)
        elif isinstance(value, Made):
            for part in (value.pairs, value.members, value.arguments, value.state):
                yield from _sizes(part, seen, depth + 1)
        else:
            yield from _sizes(value.values[2:], seen, depth + 1)


def _foreign(value: Any, seen: dict[int, Any], depth: int) -> Iterator[str]:
    """The names that a value is made by, those of tables and tensors apart."""
    if depth > MOST_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, Named) and not value.name.startswith("torch "):
        yield value.name
    if not isinstance(value, Made | list | tuple) or id(value) in seen:
        return
    seen[id(value)] = value
    parts: Any = value
    if isinstance(value, Made):
        if value.by not in (*TABLES, "list", TENSOR, PARAMETER):
            yield value.by
        parts = (value.pairs, value.members, value.arguments, value.state)
    for part in parts:
        yield from _foreign(part, seen, depth + 1)


def covered(pieces: list[Piece]) -> int:
    """How many numbers of one storage are in some of its pieces: the union of the dense ones. One
    that is not dense, as a view with steps, counts only where it is alone.

    >>> covered([Piece("0", 4, 10, 0, (2, 3), (3, 1)), Piece("0", 4, 10, 4, (4,), (1,))])
    8
    """
    spans, at, total = [], 0, 0
    for piece in set(pieces):
        count = 1
        for size, step in sorted(zip(piece.shape, piece.stride, strict=True), key=lambda p: p[1]):
            if size != 1 and step != count:
                return 0 if len(set(pieces)) > 1 else min(piece.count, math.prod(piece.shape))
            count *= size
        spans.append((piece.offset, piece.offset + count))
    for begin, end in sorted(spans):
        total += max(0, end - max(begin, at))
        at = max(at, end)
    return min(total, pieces[0].count) if pieces else 0
