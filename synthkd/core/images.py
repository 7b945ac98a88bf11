"""Images as tensors and as files. B batch, N images, C channels, H height, W width, K classes.

Outside a network an image is float32 [B, C, H, W] in 0..1; in memory and on disk it is uint8 [N, C,
H, W].
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from synthkd.core.errors import InputError
from synthkd.core.files import write_atomic

PORTION = 2**24  # numbers of images that are floats at one time
IN_CACHE = 2**17  # pixels: measured with ResNet-20 at 32, 64 and 96 pixels, docs/log.md
MOST_ROWS = 40  # of a contact sheet
THUMBNAIL = 96  # pixels, the longest side of an image in it
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R 601


@dataclass(frozen=True)
class ImageSpec:
    """The input contract of a classifier: what it wants after 0..1 pixels are normalised."""

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        return self.channels, self.height, self.width


class Batch(NamedTuple):
    """Images with the class each was asked to be (−1: unknown)."""

    images: Tensor  # [B, C, H, W] float32 in 0..1
    labels: Tensor  # [B] int64


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. A GPU fetches it by itself out of memory that stays in its place, and
    nobody waits for it: not before what the GPU still has to do."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def as_array(tensor: Tensor) -> NDArray[Any]:
    """A tensor on any device as an array; of bfloat16, which numpy has not, as float32.

    >>> as_array(torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True))
    array([0.5], dtype=float32)
    """
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    array: NDArray[Any] = tensor.numpy(force=True)
    return array


def to_uint8(images: Tensor) -> Tensor:
    """Pixels in 0..1 rounded to 0..255.

    >>> to_uint8(torch.tensor([0.0, 0.5, 1.0])).tolist()
    [0, 128, 255]
    """
    return images.detach().float().mul(255).round_().clamp_(0, 255).to(torch.uint8)


def to_float(pixels: Tensor) -> Tensor:
    """Pixels 0..255 as float32 in 0..1.

    >>> to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    [0.0, 1.0]
    """
    return pixels.float().div_(255)


def portions(pixels: Tensor) -> tuple[Tensor, ...]:
    """Pixels [N, C, H, W] in parts whose floats take some 64 MB at most: of 512 images, or fewer.

    >>> [len(part) for part in portions(torch.empty(300, 3, 224, 224, dtype=torch.uint8))]
    [111, 111, 78]
    """
    return torch.split(pixels, min(512, max(1, PORTION // math.prod(pixels.shape[1:]))))


def in_cache(images: Tensor) -> tuple[Tensor, ...]:
    """Images [B, C, H, W] in parts that a CPU answers fastest: of some 131,000 pixels, so that the
    maps of a small network stay in its caches. Elsewhere all in one.

    >>> [len(part) for part in in_cache(torch.empty(300, 3, 32, 32))]
    [128, 128, 44]
    """
    if images.device.type != "cpu":
        return (images,)
    return torch.split(images, max(8, IN_CACHE // (images.shape[2] * images.shape[3])))


def fitted(pixels: Tensor, spec: ImageSpec) -> Tensor:
    """uint8 images [N, C', H', W'] with the channels and the size that `spec` asks for.

    Grey becomes colour by copying, colour becomes grey by the ITU-R 601 luma; the size is changed
    bilinearly in bytes, as Pillow does it (none off by more than 1, nearly all alike), for that is
    what most teachers learned from.
    """
    given = pixels.shape[1]
    if given != spec.channels:
        if given == 1:
            pixels = pixels.expand(-1, spec.channels, -1, -1)
        elif spec.channels == 1 and given >= 3:
            luma = torch.tensor(LUMA).view(1, 3, 1, 1)
            pixels = to_uint8((pixels[:, :3].float() * luma).sum(1, keepdim=True) / 255)
        elif (given, spec.channels) == (4, 3):  # the fourth is opacity
            pixels = pixels[:, :3]
        else:
            raise InputError(
                f"images of {given} channels cannot serve a network that takes {spec.channels}"
            )
    if pixels.shape[2:] != (spec.height, spec.width):
        pixels = F.interpolate(
            pixels, (spec.height, spec.width), mode="bilinear", align_corners=False, antialias=True
        )
    return pixels.contiguous()


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [B, C, H, W] of another size, bilinearly, with antialiasing when they shrink;
    gradients pass."""
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def recoloured(images: Tensor, channels: int) -> Tensor:
    """Images [B, C, H, W] with another number of channels, 1 or 3: grey by the luma of ITU-R 601,
    colour by copying; gradients pass."""
    given = images.shape[1]
    if given == channels:
        return images
    if given == 1:
        return images.expand(-1, channels, -1, -1)
    luma = torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)
    return (images * luma).sum(1, keepdim=True)


def grid(pixels: Tensor, columns: int, *, zoom: int = 1, gap: int = 2) -> Image.Image:
    """uint8 images [N, C, H, W] as one picture, row by row, on white."""
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = np.full(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=np.uint8
    )
    for i, image in enumerate(pixels.cpu().numpy()):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = (
            image[:3].transpose(1, 2, 0) if channels >= 3 else image[:1].transpose(1, 2, 0)
        )
    picture = Image.fromarray(sheet)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def class_sheet(
    pixels: Tensor, labels: Tensor, classes: Sequence[int], *, columns: int = 10, zoom: int = 2
) -> Image.Image:
    """A contact sheet: a row for each of the `classes` with its first images, blank where there are
    too few. Large images are shown smaller."""
    pixels = thumbnails(pixels)
    rows = torch.full((len(classes) * columns, *pixels.shape[1:]), 255, dtype=torch.uint8)
    for row, label in enumerate(classes):
        found = (labels == label).nonzero().flatten()[:columns]
        rows[row * columns : row * columns + len(found)] = pixels[found]
    return grid(rows, columns, zoom=zoom)


def thumbnails(pixels: Tensor) -> Tensor:
    """uint8 images [N, C, H, W] with sides of at most THUMBNAIL pixels, by averages.

    >>> thumbnails(torch.zeros(1, 3, 224, 300, dtype=torch.uint8)).shape
    torch.Size([1, 3, 72, 96])
    """
    height, width = pixels.shape[2:]
    share = THUMBNAIL / max(height, width)
    if share >= 1:
        return pixels
    size = (max(1, round(share * height)), max(1, round(share * width)))
    return F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)


def sheet_classes(labels: Tensor, classes: int) -> list[int]:
    """The classes that a contact sheet has rows for: all, or of many the first that are there.

    >>> sheet_classes(torch.tensor([700, 3, 3]), 1000)
    [3, 700]
    """
    if classes <= MOST_ROWS:
        return list(range(classes))
    present: list[int] = labels.unique().tolist()  # type: ignore[no-untyped-call]
    return [label for label in present if label >= 0][:MOST_ROWS]


def save_picture(
    picture: Image.Image, path: Path, caption: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Writes a PNG at once or not at all; what its `caption` says is kept in it, as JSON."""
    content, told = io.BytesIO(), PngInfo()
    if caption:
        told.add_text("synthkd", json.dumps(dict(caption)))
    picture.save(content, format="PNG", pnginfo=told)
    write_atomic(path, content.getvalue(), sync=False)
