"""Images of hospitals: the first frame of a DICOM file, through its window (PS3.3, C.11).

Needs the package pydicom, which the extra `dicom` installs.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from synthkd.core.errors import InputError, quoted
from synthkd.images.value_range import Levels, Values, to_bytes

MAGIC = b"DICM"  # after 128 bytes of anything
MOST_PIXELS = 64_000_000
DEFLATED = "1.2.840.10008.1.2.1.99"


class Scan(NamedTuple):
    """A frame as its file shows it."""

    values: Values  # [H, W] or [H, W, 3]: bytes, or the stored values where there is no window
    windowed: str  # the window in words; nothing where the file has none
    inverted: bool  # stored values count from white, and are not turned yet
    frames: int


def read_scan(path: Path) -> Scan:
    """The first frame: colour as RGB; grey through rescale and the first window, or the VOI table
    where there is one.

    Without a window the stored values come back, for a whole set to be judged together. Raises
    InputError, a reason without the place.
    """
    try:
        import pydicom
    except ImportError:
        raise InputError("a DICOM file: install pydicom (pip install 'synthkd[dicom]')") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read(pydicom, path)
    except InputError:
        raise
    except Exception as error:  # an untrusted file, as many kinds as there are fields
        said = " ".join(str(error).split())
        raise InputError(f"this DICOM file cannot be read: {quoted(said, 160)}") from None


def _read(pydicom: Any, path: Path) -> Scan:
    from pydicom.filereader import read_file_meta_info

    pixels: Any = pydicom.pixels

    syntax = read_file_meta_info(path).get("TransferSyntaxUID")
    if syntax == DEFLATED:
        raise InputError("a deflated DICOM file: save it uncompressed")
    head = pydicom.dcmread(path, stop_before_pixels=True)
    rows, columns = int(head.get("Rows") or 0), int(head.get("Columns") or 0)
    if not (rows and columns):
        raise InputError("a DICOM file without an image")
    if rows * columns > MOST_PIXELS:
        raise InputError(f"{columns}x{rows} pixels; of DICOM at most {MOST_PIXELS:,} are read")
    if syntax is not None and syntax.is_compressed and not pixels.get_decoder(syntax).is_available:
        raise InputError(
            f"DICOM compressed as {quoted(syntax.name)}: save it uncompressed, or install "
            "pylibjpeg with pylibjpeg-libjpeg"
        )
    stored = np.asarray(pixels.pixel_array(path, index=0))
    kind = str(head.get("PhotometricInterpretation", ""))
    frames = int(head.get("NumberOfFrames") or 1)
    if kind == "PALETTE COLOR":
        table = pixels.apply_color_lut(stored, head)
        top = 255 if table.dtype.itemsize == 1 else 65535
        return Scan(to_bytes(table, Levels(0, top, "")), "palette", False, frames)
    if stored.ndim == 3:  # YBR has become RGB
        top = (1 << int(head.BitsStored)) - 1
        return Scan(to_bytes(stored, Levels(0, top, "")), "colour", False, frames)
    inverted = kind == "MONOCHROME1"
    real = np.asarray(pixels.apply_modality_lut(stored, head))
    if head.get("VOILUTSequence"):
        shown = pixels.apply_voi(real, head, 0)
        bits = int(head.VOILUTSequence[0].LUTDescriptor[2])
        levels = Levels(0, (1 << bits) - 1, "")
        return Scan(to_bytes(shown, levels, inverted=inverted), "its VOI table", False, frames)
    centre, width = _first(head.get("WindowCenter")), _first(head.get("WindowWidth"))
    function = str(head.get("VOILUTFunction") or "LINEAR")
    if centre is None or width is None or width < (1 if function == "LINEAR" else 1e-9):
        return Scan(stored, "", inverted, frames)
    shown = windowed(real.astype(np.float64), centre, width, function)
    levels = Levels(0, 1, "")
    said = f"centre {centre:g}, width {width:g}"
    return Scan(to_bytes(shown, levels, inverted=inverted), said, False, frames)


def _first(value: Any) -> float | None:
    """The first of one or several numbers."""
    if value is None or value == "":
        return None
    one = value if isinstance(value, int | float | str) else (value[0] if len(value) else None)
    return None if one is None else float(one)


def windowed(values: Values, centre: float, width: float, function: str = "LINEAR") -> Values:
    """Rescaled values through a window, to 0..1 (DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3).

    LINEAR: (v − (c − 0.5)) / (w − 1) + 0.5, cut; LINEAR_EXACT: (v − c) / w + 0.5, cut; SIGMOID:
    1 / (1 + exp(−4 (v − c) / w)).

    >>> windowed(np.array([-200.0, 39.5, 500.0]), 40, 400).tolist()
    [0.0, 0.5, 1.0]
    """
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            result: Values = 1 / (1 + np.exp(-4 * (values - centre) / width))
        return result
    if function == "LINEAR_EXACT":
        return ((values - centre) / width + 0.5).clip(0, 1)
    if width == 1:  # a step
        return (values > centre - 0.5).astype(np.float64)
    return ((values - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1)
