"""Trains a stand-in for a hospital's classifier: ResNet-18, 224 pixels, grey; is it pneumonia?

    python benchmarks/chest_teacher.py read.py:load:xray_224 chest.pt

DATA is a reader `file.py:callable:argument` that returns images [N, 224, 224] or [N, 224, 224, 3]
and labels, of which 1 is normal and all others are pneumonia. A third of the images, drawn with
seed 0, is never trained on; it is written beside the weights, as OUT.test.npz, for `--val-data`,
and the rest as OUT.train.npz. The network is torchvision's, with a first convolution for one
channel:

    synthkd inspect --teacher benchmarks/chest_teacher.py:network --teacher-weights chest.pt …
"""

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

SIZE, MEAN, STD = 224, 0.5, 0.25


def network() -> nn.Module:
    """A ResNet-18 from [B, 1, 224, 224] to two logits: normal, pneumonia."""
    net: nn.Module = torchvision.models.resnet18(num_classes=2)
    net.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    return net


def read(source: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, H, W] uint8 and labels [N]: 0 normal, 1 pneumonia."""
    file, name, argument = source.split(":", 2)
    spec = importlib.util.spec_from_file_location("reader", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    images, labels = getattr(module, name)(argument)
    if images.ndim == 4:
        images = images.mean(3).round().astype(np.uint8)
    return images, (labels != 1).astype(np.int64)


def view(images: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """Turned, moved, scaled and mirrored images of `size` pixels, one draw for each."""
    count = len(images)
    draw = torch.rand(5, count, generator=rng) * 2 - 1
    angle, scale = draw[0] * 0.2, 1 + 0.15 * draw[1]
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    flip = torch.where(draw[4] > 0, 1.0, -1.0)
    rows = [cos * flip, -sin, 0.1 * draw[2], sin * flip, cos, 0.1 * draw[3]]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), [count, 1, size, size])
    return F.grid_sample(images, grid, padding_mode="border")


def main() -> None:
    """Trains half of the steps at half size, the rest at full size; prints accuracy at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    rng = torch.Generator().manual_seed(given.seed)
    images, labels = read(given.data)
    order = np.random.default_rng(0).permutation(len(images))
    parts = {"test": order[: len(order) // 3], "train": order[len(order) // 3 :]}
    for name, part in parts.items():
        np.savez(given.out.with_suffix(f".{name}.npz"), x=images[part], y=labels[part])
    x = torch.from_numpy(images[parts["train"]])[:, None].float() / 255  # [N, 1, 224, 224]
    y = torch.from_numpy(labels[parts["train"]])
    share = torch.bincount(y).float() / len(y)
    net = network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=given.steps)
    for step in range(given.steps):
        size = SIZE // 2 if step < given.steps // 2 else SIZE
        chosen = torch.randint(len(x), (32,), generator=rng)
        batch = (view(x[chosen], size, rng) - MEAN) / STD
        with torch.autocast("cpu", torch.bfloat16):
            logits = net.train()(batch)
        loss = F.cross_entropy(logits.float(), y[chosen], weight=0.5 / share, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"{step + 1} of {given.steps}: loss {loss.item():.3f}", flush=True)
    torch.save({k: v.contiguous() for k, v in net.state_dict().items()}, given.out)
    net.eval()
    with torch.no_grad():
        for name, part in parts.items():
            shown = torch.from_numpy(images[part])[:, None].float() / 255
            votes = torch.cat([net((b - MEAN) / STD).argmax(1) for b in shown.split(32)]).numpy()
            right, ill = np.mean(votes == labels[part]), labels[part].mean()
            print(
                f"{name}: {right:.2%} of {len(part)}; called ill {votes.mean():.1%}, are {ill:.1%}"
            )


if __name__ == "__main__":
    main()
