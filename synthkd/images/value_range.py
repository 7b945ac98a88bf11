"""Which values of an image are black and white: 8, 10, 12 or 16 bits, 0..1, -1..1.

A file or an array with more than 8 bits does not say which of its values is white. That is judged
by all values of a set together, and always said.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synthkd.core.errors import InputError

BITS = (8, 10, 12, 14, 16)  # depths that cameras and scanners have
SMALL = (1, 3, 7, 15, 16)  # largest values of sets that are no bytes: 1 to 4 bits; 0..16 of digits
NEAR = 1e-3  # by which fractions may pass 0..1 and -1..1
_CHUNK = 1 << 22  # values turned at once

Values = NDArray[Any]


class Levels(NamedTuple):
    """The values that are black and white, and how they are called."""

    black: float
    white: float
    said: str

    @property
    def plain(self) -> bool:
        """Whether bytes stay as they are."""
        return (self.black, self.white) == (0, 255)


class Extent(NamedTuple):
    """What is known of the values of images: the least, the largest, whether all are whole."""

    low: float = np.inf
    high: float = -np.inf
    whole: bool = True

    def over(self, values: Values) -> "Extent":
        """With those of another image."""
        if not values.size:
            return self
        low, high, whole = float(values.min()), float(values.max()), True
        if values.dtype.kind == "f" and self.whole:
            whole = all(bool((part == np.floor(part)).all()) for part in _parts(values.reshape(-1)))
        first, last = np.minimum(self.low, low), np.maximum(self.high, high)  # NaN stays NaN
        return Extent(float(first), float(last), self.whole and whole)


def levels_of(extent: Extent, given: tuple[float, ...] = ()) -> Levels:
    """Black and white of images that hold these values; `given` says them instead.

    Whole numbers from 0 on are 1 to 4 bits where they reach 0 and exactly 1, 3, 7, 15 or 16, else
    the least of 8, 10, 12, 14, 16 bits that holds them; −1..1 and the signed 8 bits are known too.
    Fractions are 0..1, −1..1 or 0..255. Raises InputError, a reason without the place, for others.

    >>> levels_of(Extent(0, 4000)).said
    '12 bits (white 4095)'
    >>> levels_of(Extent(-0.9, 0.8, whole=False))[:2]
    (-1.0, 1.0)
    """
    low, high, whole = extent
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError("there are NaN or infinite values in it")
    if given:
        black, white = given
        return Levels(black, white, f"black {black:g}, white {white:g} (--data.range)")
    if whole and low >= 0:
        if high in SMALL and low == 0:
            return Levels(0, high, f"0..{high:g} (white {high:g})" if high > 1 else "0 and 1")
        for bits in BITS:
            if high < 1 << bits:
                white = (1 << bits) - 1
                return Levels(0, white, f"{bits} bits (white {white})")
    elif whole and (low, high) == (-1, 1):
        return Levels(-1.0, 1.0, "-1..1")
    elif whole and low >= -128 and high <= 127:
        return Levels(-128, 127, "8 bits with a sign (black -128, white 127)")
    elif not whole and low >= -NEAR and 0.02 <= high <= 1 + NEAR:
        return Levels(0.0, 1.0, "0..1")
    elif not whole and -1 - NEAR <= low < -NEAR and high <= 1 + NEAR:
        return Levels(-1.0, 1.0, "-1..1")
    elif not whole and low >= -0.5 and 16 < high <= 255.5:
        return Levels(0, 255, "0..255")
    raise InputError(
        f"its values {low:g}..{high:g} are neither bytes, nor 0..1, nor -1..1: say which are black "
        "and white with --data.range BLACK,WHITE"
    )


def to_bytes(values: Values, levels: Levels, *, inverted: bool = False) -> NDArray[np.uint8]:
    """Values as bytes: 255 (v − black) / (white − black), rounded to the nearest and cut to 0..255;
    `inverted` where the file counts from white.

    >>> to_bytes(np.array([0, 2048, 4095, 5000], np.uint16), levels_of(Extent(0, 4095))).tolist()
    [0, 128, 255, 255]
    """
    if values.dtype == np.uint8 and levels.plain:
        return 255 - values if inverted else values
    if values.dtype in (np.uint8, np.uint16):
        return _table(values.dtype.itemsize, levels, inverted)[values]
    result = np.empty(values.shape, np.uint8)
    flat = result.reshape(-1)
    done = 0
    for part in _parts(np.ascontiguousarray(values).reshape(-1)):
        flat[done : done + len(part)] = _turned(part, levels, inverted)
        done += len(part)
    return result


@functools.lru_cache(maxsize=8)
def _table(size: int, levels: Levels, inverted: bool) -> NDArray[np.uint8]:
    """The bytes of all whole numbers of `size` bytes."""
    return _turned(np.arange(1 << 8 * size), levels, inverted)


def _turned(values: Values, levels: Levels, inverted: bool) -> NDArray[np.uint8]:
    share = (values.astype(np.float64) - levels.black) / (levels.white - levels.black)
    if inverted:
        share = 1 - share
    return np.floor(share.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _parts(flat: Values) -> list[Values]:
    return [flat[first : first + _CHUNK] for first in range(0, max(1, flat.size), _CHUNK)]
