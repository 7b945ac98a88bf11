"""Images painted by a decoder: what the GAN and the episodes share.

B batch, C channels, H height, W width, K classes.
"""

import torch
from torch import Tensor, nn

from synthkd.core.images import Batch, sent
from synthkd.networks.decoder import Decoder
from synthkd.networks.modes import plain_means
from synthkd.recipe import GeneratorTable, Recipe
from synthkd.schedules import one_cycle
from synthkd.synthesis.context import even_labels
from synthkd.teachers.protocol import Teacher


def new_decoder(recipe: Recipe, teacher: Teacher, *, conditional: bool) -> Decoder:
    """The decoder of a recipe for a teacher's images, with weights from torch's global random
    state. `conditional`: its BatchNorm knows the class."""
    table, spec = recipe.generator, teacher.spec
    noisy = table.source == "noisy_layer"
    decoder: Decoder = Decoder(
        latent=table.latent,
        width=table.width,
        classes=teacher.classes if conditional and not noisy else 0,
        shape=spec.shape,
        named=teacher.classes if noisy else 0,
        output=table.output,
        mean=spec.mean,
        std=spec.std,
    ).to(teacher.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return decoder


def rate(table: GeneratorTable, share: float) -> float:
    """The generator's learning rate after a share of the run.

    >>> rate(GeneratorTable(learning_rate=0.1, schedule="cosine"), 0.5)
    0.05
    """
    falling = table.schedule == "cosine"
    return table.learning_rate * (one_cycle(share, warmup=0.0) if falling else 1.0)


def inputs(
    decoder: Decoder, count: int, classes: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Noise for `count` images, and their classes [count] in balance."""
    z = decoder.noise(count, rng)
    labels = even_labels(count, classes, rng)
    if decoder.named:  # K images that share a layer must be of K classes
        labels = (torch.arange(count) + labels[0]) % classes if count else labels
    device = decoder.mean.device
    return sent(z, device), sent(labels, device)


def painted(decoder: Decoder, z: Tensor, labels: Tensor, *, bfloat16: bool) -> Tensor:
    """Images [B, C, H, W], float32."""
    with torch.autocast(z.device.type, torch.bfloat16, enabled=bfloat16):
        images: Tensor = decoder(z, labels)
    return images.float()


@torch.no_grad()
def sampled(
    decoder: Decoder, count: int, classes: int, rng: torch.Generator, *,
    bfloat16: bool = False, frozen: bool = True,
) -> Batch:  # fmt: skip
    """`count` images and the classes they were drawn for; the decoder stays as it is.

    `frozen` normalises by running statistics, so images do not depend on each other; otherwise by
    the batch, as in training.
    """
    z, labels = inputs(decoder, count, classes, rng)
    if count == 0:
        shape = (decoder.conv3.out_channels, decoder.height, decoder.width)
        return Batch(z.new_empty((0, *shape)), labels)
    before = {} if frozen else {name: b.clone() for name, b in decoder.named_buffers()}
    mode = decoder.training
    decoder.train(not frozen and count > 1)
    images = painted(decoder, z, labels, bfloat16=bfloat16)
    decoder.train(mode)
    for name, buffer in decoder.named_buffers():
        if name in before:
            buffer.copy_(before[name])
    return Batch(images, labels)


@torch.no_grad()
def recalibrate_batchnorm(
    decoder: Decoder, classes: int, rng: torch.Generator, *, batches: int = 20, size: int = 256
) -> None:
    """Re-estimates a decoder's running statistics as plain means over some batches, before sampling
    for good."""
    norms = [m for m in decoder.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    decoder.train()
    with plain_means(norms):
        for _ in range(batches):
            decoder(*inputs(decoder, size, classes, rng))
    decoder.eval()
