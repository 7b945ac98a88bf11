"""A fast copy of a classifier for answers alone."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.optimization import fuse

from synthkd.networks.classifier import Classifier


def folded_copy(classifier: Classifier) -> Callable[[Tensor], Tensor]:
    """A copy of a classifier for answers alone: BatchNorm folded into the convolutions, weights in
    bfloat16, laid out as there. Takes images [B, C, H, W] in 0..1, returns logits [B, K].

    Raises whatever `torch.fx` does where the body cannot be followed.
    """
    form = torch.channels_last if classifier.channels_last else torch.contiguous_format
    body = fuse(classifier.body).to(torch.bfloat16).to(memory_format=form)
    mean, std = classifier.mean.clone(), classifier.std.clone()

    def answer(images: Tensor) -> Tensor:
        x = images.contiguous(memory_format=form)
        with torch.no_grad():
            return classifier.read(body, ((x - mean) / std).bfloat16()).float()

    return answer
