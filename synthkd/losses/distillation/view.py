"""What a distillation term may look at: one batch as student and teacher show it.

B batch, C channels, H height, W width, T tokens, D features, K classes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

PREFIX = 8  # tokens for the class and the like that may stand before those of the patches


def as_map(feature: Tensor) -> Tensor:
    """Whatever a layer shows as a map [B, C, H, W]: tokens [B, T, D] as their square, without those
    that stand before the patches (class, registers), or where they form none as a column; vectors
    [B, D] as one pixel.

    >>> [tuple(as_map(Tensor(2, *shape)).shape) for shape in ((3, 4, 4), (17, 6), (5,))]
    [(2, 3, 4, 4), (2, 6, 4, 4), (2, 5, 1, 1)]
    """
    if feature.dim() == 2:
        return feature[:, :, None, None]
    if feature.dim() == 4:
        return feature
    before, height, width = _grid(feature.shape[1])
    patches = feature[:, before:].transpose(1, 2)
    return patches.reshape(*patches.shape[:2], height, width)


def _grid(tokens: int) -> tuple[int, int, int]:
    """Tokens to be left out, and height and width of the others."""
    side = math.isqrt(tokens)
    before = tokens - side * side
    return (before, side, side) if before <= PREFIX else (0, tokens, 1)


def map_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape [C, H, W] of `as_map`, of a layer's shape without the batch.

    >>> map_shape((17, 6)), map_shape((5,))
    ((6, 4, 4), (5, 1, 1))
    """
    if len(shape) == 1:
        return (shape[0], 1, 1)
    if len(shape) == 2:
        return (shape[1], *_grid(shape[0])[1:])
    return (shape[0], shape[1], shape[2])


def as_vectors(feature: Tensor) -> Tensor:
    """Whatever a layer shows as vectors [B, D]: of maps [B, D, H, W] the mean over positions, of
    tokens [B, T, D] the mean over tokens.

    >>> as_vectors(Tensor([[[[1.0, 3.0]]]])).tolist()
    [[2.0]]
    """
    if feature.dim() == 3:
        return feature.mean(1)
    return feature.flatten(2).mean(2) if feature.dim() > 3 else feature


@dataclass(frozen=True)
class DistillationView:
    """One batch as student and teacher show it: everything that a distillation term may compare.

    Gradients run through what the student shows. Features are maps [B, C, H, W], tokens [B, T, D]
    or vectors [B, D], by layer name, of the layers that the terms of a run ask for; `pairs` says
    which layer of the student is compared with which of the teacher.

    Where images are blended (mixup) both see the blend. "The teacher's vote" is then its vote on
    the blend, and there is no class that was asked for.
    """

    images: Tensor  # [B, C, H, W] in 0..1, as both saw them
    learned: Tensor  # [B, K] the student's logits
    taught: Tensor  # [B, K] the teacher's
    student_features: Mapping[str, Tensor]
    teacher_features: Mapping[str, Tensor]
    pairs: tuple[tuple[str, str], ...] = ()  # student's layer, teacher's layer
    embedding: tuple[str, str] | None = None  # layers that show what enters the last linear layers
    asked: Tensor | None = None  # [B] the class that was asked for, −1 where none was
    slots: Tensor | None = None  # [B] place of each image in the memory, −1 where it is in none
    weights: Tensor | None = None  # [B] of each image in the loss; None: all alike
    temperature: float = 4.0
    answers_share: float = 0.5  # of terms that compare answers, where agreement weighs them
    independent: bool = False  # logits are log-odds: several classes, or none, may apply
    stage: str = ""
    progress: float = 0.0  # share of the student's training that is done, 0..1
    per_sample: bool = False  # a term returns its values [B] where it can, not their mean

    @property
    def grids(self) -> list[tuple[Tensor, Tensor]]:
        """The pairs as maps, float32: student [B, C, H, W], teacher [B, C', H', W']."""
        return [
            (as_map(self.student_features[s]).float(), as_map(self.teacher_features[t]).float())
            for s, t in self.pairs
        ]

    @property
    def maps(self) -> list[tuple[Tensor, Tensor]]:
        """Those of `grids` that have one size: student [B, C, H, W], teacher [B, C', H, W]."""
        return [(s, t) for s, t in self.grids if s.shape[2:] == t.shape[2:]]

    @property
    def embeddings(self) -> tuple[Tensor, Tensor]:
        """What enters the last linear layer of the student, [B, D], and of the teacher, [B, D'],
        float32; of maps and tokens their mean."""
        assert self.embedding is not None
        ours, theirs = self.embedding
        mine, taught = self.student_features[ours], self.teacher_features[theirs]
        return as_vectors(mine).float(), as_vectors(taught).float()


@dataclass(frozen=True)
class KnownBeforehand:
    """What a term with weights of its own is built from: shapes of one image's features, by layer,
    the batch dimension left out, and the pairs that will be compared."""

    student: Mapping[str, tuple[int, ...]]
    teacher: Mapping[str, tuple[int, ...]]
    pairs: tuple[tuple[str, str], ...]
    classes: int  # K
    capacity: int  # images that the memory holds at most: slots are below it
    embedding: tuple[str, str] | None = None  # as in a view

    @property
    def grids(self) -> list[tuple[tuple[int, int, int], tuple[int, int, int]]]:
        """The pairs' shapes as maps, (C, H, W) of student and teacher."""
        return [(map_shape(self.student[s]), map_shape(self.teacher[t])) for s, t in self.pairs]

    @property
    def embeddings(self) -> tuple[int, int]:
        """The sizes D and D' of a view's `embeddings`."""
        assert self.embedding is not None
        ours, theirs = self.student[self.embedding[0]], self.teacher[self.embedding[1]]
        return ours[-1 if len(ours) == 2 else 0], theirs[-1 if len(theirs) == 2 else 0]


def resized_to(maps: Tensor, like: Tensor) -> Tensor:
    """Maps [B, C, H, W] at the height and width of others, bilinear."""
    if maps.shape[2:] == like.shape[2:]:
        return maps
    return F.interpolate(maps, like.shape[2:], mode="bilinear")
