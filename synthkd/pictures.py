"""Single files of images and arrays, decoded: what a stranger's file holds, as uint8.

N images, C channels, H height, W width. Headers are read before memory is given.
"""

import math
import stat
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from synthkd.errors import InputError, quoted
from synthkd.images import ImageSpec, fitted

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MOST_PIXELS = 4_000_000  # of one image
MOST_BYTES = 16 << 30  # of all images together


def is_picture(path: Path) -> bool:
    """Whether a path looks like an image that can be read, by its name alone."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def read_pictures(where: str, paths: Sequence[Path], spec: ImageSpec | None) -> Tensor:
    """Images of a folder as uint8 [N, C, H, W]; if some are bad, one line names the first."""
    result: Tensor | None = None
    bad: list[str] = []
    if spec is not None:
        affordable(where, len(paths), spec.shape)
        result = torch.empty((len(paths), *spec.shape), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large images; ours is an error
        for row, path in enumerate(paths):
            try:
                image = _read_picture(path, spec)
            except Exception as error:  # Pillow's readers raise many kinds
                bad.append(f"{quoted(path)}: {_reason(error)}")
                continue
            if spec is not None:
                image = fitted(image.unsqueeze(0), spec)[0]
            elif result is None:
                affordable(where, len(paths), image.shape)
                result = torch.empty((len(paths), *image.shape), dtype=torch.uint8)
            if result is None or image.shape != result.shape[1:]:
                raise InputError(
                    f"{quoted(path)}: {_size(image)}, but the images before it are "
                    f"{_size(result[0]) if result is not None else 'others'}; "
                    "give a size to fit them to, or make them equal"
                )
            result[row] = image
    if bad:
        fine = len(paths) - len(bad)
        raise InputError(
            f"{bad[0]}; {len(bad):,} of {len(paths):,} images cannot be used, {fine:,} are fine: "
            f"repair or remove {'it' if len(bad) == 1 else 'them'}"
        )
    assert result is not None
    return result


def _size(image: Tensor) -> str:
    channels, height, width = image.shape
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"


def _reason(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not a PNG, JPEG, WebP or BMP image"
    return f"cannot be read: {quoted(error)}"


def _read_picture(path: Path, spec: ImageSpec | None) -> Tensor:
    """One image file as uint8 [C, H, W], in the channels of `spec`, else grey or RGB as it is."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError("not a plain file")
    with Image.open(path, formats=FORMATS) as picture:
        if picture.width * picture.height > MOST_PIXELS:
            raise InputError(
                f"{picture.width}x{picture.height} pixels; at most {MOST_PIXELS:,} are read"
            )
        grey = picture.mode in ("1", "L", "LA") or picture.mode.startswith("I")
        channels = spec.channels if spec is not None else (1 if grey else 3)
        if picture.mode.startswith("I"):  # 16 bits of grey: convert() would cut them off at 255
            wide = np.asarray(picture).astype(np.float64)
            array = (wide / 257).round().clip(0, 255).astype(np.uint8)[None]
            return torch.from_numpy(np.repeat(array, channels, axis=0))
        array = np.array(picture.convert({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]))
    tensor = torch.from_numpy(array)
    return tensor.unsqueeze(0) if channels == 1 else tensor.permute(2, 0, 1)


def affordable(where: str, count: int, shape: Sequence[int]) -> None:
    """Refuses as many images of a shape as would pass the limit of memory."""
    size = count * math.prod(shape)
    if size > MOST_BYTES:
        raise InputError(
            f"{where}: {count:,} images of {'x'.join(str(n) for n in shape)} take {size >> 30} GiB "
            f"of memory, over the limit of {MOST_BYTES >> 30}; give fewer or smaller images"
        )


def member(where: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """One array of an .npz, refused when it holds objects or its header does not fit its size."""
    name = quoted(info.filename)
    with archive.open(info) as file:
        shape, kind = header(file)
        if kind.hasobject or kind.names is not None:
            raise InputError(
                f"{where}: {name} holds Python objects, which can run code when loaded; "
                "save it again as plain numbers"
            )
        size = math.prod(int(n) for n in shape) * kind.itemsize
        if size > MOST_BYTES:
            raise InputError(
                f"{where}: {name} takes {size >> 30} GiB of memory, over the limit of "
                f"{MOST_BYTES >> 30}; give fewer or smaller images"
            )
        if file.tell() + size != info.file_size:
            raise InputError(f"{where}: {name} is damaged: its header does not fit its size")
    with archive.open(info) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):  # reaching the end is what compares the checksum
            raise InputError(f"{where}: {name} is damaged")
    return array


def header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array, by the header of its .npy file."""
    if np.lib.format.read_magic(file) == (1, 0):
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, kind = np.lib.format.read_array_header_2_0(file)
    return shape, kind
