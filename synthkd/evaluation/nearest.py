"""Synthetic images beside the nearest real ones. M synthetic images, N real ones, C channels, H
height, W width."""

import math
import textwrap
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from synthkd.core.images import grid
from synthkd.evaluation.leaks import LIMITS
from synthkd.evaluation.membership import Estimate, proportion

BLOCK = 1 << 24  # numbers that are compared at once
SHOWN, ACROSS = 32, 4  # synthetic images on a sheet, and in a row of it
TILE, LETTER, LINE = 64, 7, 14  # pixels: least width of an image; of a letter and a line of text


class Nearest(NamedTuple):
    """For each synthetic image the nearest real one."""

    place: Tensor  # [M] int64, its row among the real ones
    distance: Tensor  # [M] float64, root mean square of the pixels' differences, 0..1


class Neighbours(NamedTuple):
    """Synthetic images among members and non-members."""

    member: Nearest
    non_member: Nearest
    nearer: Estimate  # share of the synthetic images that are nearer to a member
    by_chance: float  # members among all real images: the share, if membership made no difference


def nearest(images: Tensor, among: Tensor) -> Nearest:
    """The nearest of N images to each of M, all uint8 [·, C, H, W].

        d² = mean over pixels of ((x − y) / 255)²

    Found by |x − y|² = |x|² − 2 x·y + |y|² in float32, for some of the N at a time; the distance to
    the one found is computed anew, exactly.

    >>> found = nearest(torch.tensor([[[[255]]]]).byte(), torch.tensor([[[[0]]], [[[204]]]]).byte())
    >>> found.place.tolist(), found.distance.round(decimals=6).tolist()
    ([1], [0.2])
    """
    asked = images.flatten(1).float() / 255 - 0.5  # [M, D]
    best = torch.full((len(asked),), math.inf)
    index = torch.zeros(len(asked), dtype=torch.int64)
    step = max(1, BLOCK // max(asked.shape))
    for first in range(0, len(among), step):
        known = among[first : first + step].flatten(1).float() / 255 - 0.5
        gap = known.square().sum(1) - 2 * asked @ known.T  # [M, n], less |x|²
        value, place = gap.min(1)
        index = torch.where(value < best, first + place, index)
        best = torch.minimum(value, best)
    off = [((a.double() - among[i].double()) / 255).square().mean()
           for a, i in zip(images, index.tolist(), strict=True)]  # fmt: skip
    return Nearest(index, torch.stack(off).sqrt())


def neighbours(images: Tensor, members: Tensor, non_members: Tensor) -> Neighbours:
    """The nearest member and the nearest non-member of each synthetic image, and how often the
    member is nearer. All are uint8 [·, C, H, W]."""
    inside, outside = nearest(images, members), nearest(images, non_members)
    hits = int((inside.distance < outside.distance).sum())
    share = len(members) / (len(members) + len(non_members))
    return Neighbours(inside, outside, proportion(hits, len(images)), share)


def sheet(images: Tensor, members: Tensor, non_members: Tensor, found: Neighbours) -> Image.Image:
    """A picture of the synthetic images that are nearest to a member by comparison, each followed
    by that member and by the nearest non-member. The images are uint8 [·, C, H, W]."""
    inside, outside = found.member, found.non_member
    ratio = inside.distance / outside.distance.clamp_min(1e-9)
    tiles = []
    for i in ratio.argsort()[:SHOWN].tolist():
        tiles += [images[i], members[inside.place[i]], non_members[outside.place[i]],
                  torch.full_like(images[i], 255)]  # fmt: skip
    zoom = max(1, TILE // images.shape[3])
    body = grid(torch.stack(tiles), 4 * ACROSS, zoom=zoom)
    told = (
        f"Synthetic image, nearest member, nearest non-member (pixels); the {len(tiles) // 4} "
        f"nearest to a member by comparison, of {len(images):,}. This {LIMITS}. It shows real "
        "images: keep it as you keep them."
    )
    lines = textwrap.wrap(told, max(20, body.width // LETTER))
    whole = Image.new("RGB", (body.width, body.height + LINE * (len(lines) + 1)), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default()
    for row, line in enumerate(lines):
        pen.text((4, LINE // 2 + row * LINE), line, fill="black", font=font)
    whole.paste(body, (0, LINE * (len(lines) + 1)))
    return whole
