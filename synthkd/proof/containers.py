"""The bytes of a file of weights, by what they are: where each member of a zip archive lies, where
each tensor of a safetensors file, and what belongs to neither.

Written from the descriptions of the formats, and without torch or zipfile's own reading, so that
what a reader passes over is seen here.
"""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from synthkd.core.errors import InputError, quoted

MOST_HEADER = 100_000_000  # bytes; the format's own limit
WIDTHS = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8,
    "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8,
}  # fmt: skip
LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
END64, LOCATOR, DESCRIPTOR = b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08"
PADDING, LARGE = 0x4246, 0x0001  # extra fields: torch's "FB", and sizes of 64 bits
MOST_LARGE = 32  # bytes of the latter


@dataclass
class Spare:
    """Bytes that belong to nothing."""

    what: str
    bytes: int


@dataclass
class Layout:
    """What a file is made of. `parts` are the places (start, bytes) of tensors or members."""

    size: int
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    structure: int = 0  # bytes of headers, directories and padding
    told: dict[str, str] = field(default_factory=dict)  # text that the format lets anybody add
    spare: list[Spare] = field(default_factory=list)

    def beside(self, what: str, count: int) -> None:
        """Counts bytes that belong to nothing."""
        if count:
            self.spare.append(Spare(what, count))


def _damaged(path: Path) -> InputError:
    return InputError(f"{quoted(path)}: its bytes cannot be told apart: it is damaged")


# --- safetensors


def safetensors_layout(path: Path) -> Layout:
    """The layout of a safetensors file: 8 bytes of length, a header in JSON, then tensors without
    gaps. https://huggingface.co/docs/safetensors"""
    found = Layout(path.stat().st_size)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MOST_HEADER, found.size - 8):
                raise ValueError("no header")
            text = file.read(length).decode("utf-8")
        names: list[str] = []

        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            names.extend(key for key, _ in pairs)
            if len(dict(pairs)) < len(pairs):
                raise ValueError("a key twice")
            return dict(pairs)

        header = json.loads(text, object_pairs_hook=once)
        told = header.pop("__metadata__", {})
        found.told = {str(key): str(value) for key, value in told.items()}
        places = []
        for name, entry in header.items():
            begin, end = (int(n) for n in entry["data_offsets"])
            if end - begin != math.prod(entry["shape"]) * WIDTHS.get(entry["dtype"], 0):
                raise ValueError("a tensor of another size")
            extra = len(json.dumps({k: v for k, v in entry.items() if k not in _ENTRY})) - 2
            found.beside(f"keys of {quoted(name)} in the header", extra)
            places.append((begin, end, name))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(path) from None
    start, at = 8 + length, 0
    for begin, end, name in sorted(places):
        found.beside(f"between tensors, before {quoted(name)}", max(0, begin - at))
        if begin < at:
            raise _damaged(path)
        found.parts[name] = (start + begin, end - begin)
        at = max(at, end)
    found.beside("after the last tensor", found.size - start - at)
    # spaces fill the header up to a multiple of eight; others could be signs of something
    compact = len(json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")).encode())
    loose = length - compact - 8 - 4 * len(names)
    found.beside("white space and escapes in the header", max(0, loose))
    found.structure = found.size - sum(size for _, size in found.parts.values()) - _sum(found)
    found.structure -= told_bytes(found)
    return found


_ENTRY = ("dtype", "shape", "data_offsets")


def told_bytes(layout: Layout) -> int:
    """The bytes of added text."""
    return sum(len(key.encode()) + len(value.encode()) for key, value in layout.told.items())


def _sum(layout: Layout) -> int:
    return sum(each.bytes for each in layout.spare)


# --- zip


def zip_layout(path: Path) -> Layout:
    """The layout of a zip archive whose members are stored as they are, as torch.save writes it:
    members one after the other, then the directory, then its end. Names are those of the members
    without the folder that torch puts before them."""
    found = Layout(path.stat().st_size)
    try:
        with path.open("rb") as file:
            directory, entries = _directory(file, found)
            at, folders = 0, set()
            for offset, name, size in sorted(entries):
                found.beside(f"between members, before {quoted(name)}", offset - at)
                begin, end = _member(file, found, offset, name, size)
                if offset < at or end > directory:
                    raise ValueError("members that overlap")
                folder, _, short = name.partition("/")
                folders.add(folder)
                if short in found.parts:
                    raise ValueError("a member twice")
                found.parts[short] = (begin, size)
                at = end
            found.beside("before the directory", directory - at)
            if len(folders) > 1:
                raise ValueError("several folders")
    except (OSError, ValueError, struct.error, IndexError):
        raise _damaged(path) from None
    found.structure = found.size - sum(size for _, size in found.parts.values()) - _sum(found)
    return found


def _directory(file: BinaryIO, found: Layout) -> tuple[int, list[tuple[int, str, int]]]:
    """Where the directory begins, and of each member its offset, name and size."""
    file.seek(max(0, found.size - 65_557))
    tail = file.read()
    place = tail.rfind(END)
    if place < 0:
        raise ValueError("no end")
    count, length, begin, comment = struct.unpack("<10xHIIH", tail[place : place + 22])
    found.beside("the archive's comment", comment)
    found.beside("after the archive", len(tail) - place - 22 - comment)
    end = found.size - len(tail) + place
    if place >= 20 and tail[place - 20 : place - 16] == LOCATOR:
        (begin64,) = struct.unpack("<Q", tail[place - 12 : place - 4])
        file.seek(begin64)
        head = file.read(56)
        if head[:4] != END64:
            raise ValueError("no large end")
        more, count, length, begin = struct.unpack("<4xQ20xQQQ", head)[0:4]
        found.beside("in the end of the directory", more + 12 - 56)
        end = begin64
    found.beside("between the directory and its end", end - begin - length)
    if end < begin + length:
        raise ValueError("a directory that overlaps its end")
    file.seek(begin)
    data, at, entries = file.read(length), 0, []
    for _ in range(count):
        if data[at : at + 4] != CENTRAL:
            raise ValueError("no entry")
        method, packed, size, names, extras, comments, offset = struct.unpack(
            "<10xH8xIIHHH8xI", data[at : at + 46]
        )
        if method:
            raise ValueError("a member that is packed")
        name = data[at + 46 : at + 46 + names].decode("utf-8")
        extra = data[at + 46 + names : at + 46 + names + extras]
        large = 0
        for kind, content in _extras(extra):
            if kind == LARGE and len(content) <= MOST_LARGE:
                wide = iter(
                    struct.unpack(f"<{len(content) // 8}Q", content[: len(content) // 8 * 8])
                )
                size = next(wide) if size == 0xFFFFFFFF else size
                packed = next(wide) if packed == 0xFFFFFFFF else packed
                offset = next(wide) if offset == 0xFFFFFFFF else offset
                large = 1
            else:
                found.beside(f"in the directory, of {quoted(name)}", len(content))
        if packed != size and not large:
            raise ValueError("a member of two sizes")
        found.beside(f"the comment of {quoted(name)}", comments)
        entries.append((offset, name, size))
        at += 46 + names + extras + comments
    found.beside("in the directory", length - at)
    return begin, entries


def _member(file: BinaryIO, found: Layout, offset: int, name: str, size: int) -> tuple[int, int]:
    """Where the bytes of a member begin, and where what belongs to it ends."""
    file.seek(offset)
    head = file.read(30)
    if head[:4] != LOCAL:
        raise ValueError("no member")
    flags, names, extras = struct.unpack("<6xH18xHH", head)
    if file.read(names).decode("utf-8") != name:
        raise ValueError("a member of two names")
    for kind, content in _extras(file.read(extras)):
        padded = kind == PADDING and not content.strip(b"Z")
        if not padded and not (kind == LARGE and len(content) <= MOST_LARGE):
            found.beside(f"in the header of {quoted(name)}", len(content))
    begin = offset + 30 + names + extras
    end = begin + size
    if flags & 8:
        file.seek(end)
        after = file.read(24)
        marked = 4 if after[:4] == DESCRIPTOR else 0
        wide = after[marked + 4 : marked + 20] == struct.pack("<QQ", size, size)
        narrow = after[marked + 4 : marked + 12] == struct.pack(
            "<II", size & 0xFFFFFFFF, size & 0xFFFFFFFF
        )
        if not wide and not narrow:
            raise ValueError("no sizes behind a member")
        end += marked + (20 if wide else 12)
    return begin, end


def _extras(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The extra fields of an entry: kind and content; what is no field has the kind -1."""
    while data:
        if len(data) < 4:
            yield -1, data
            return
        kind, length = struct.unpack("<HH", data[:4])
        if length > len(data) - 4:
            yield -1, data
            return
        yield kind, data[4 : 4 + length]
        data = data[4 + length :]
