"""A small student from a network of your own, in memory: no file, no flag.

    python examples/distil_your_network.py

The teacher here is the one that ships with synthkd; take any `nn.Module` that returns logits.
"""

from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import nn

import synthkd
from synthkd.networks import build_network
from synthkd.specs import load_teacher


def main(images: int = 30_000, out: str | None = None) -> synthkd.Result:
    """Distils, looks at the result, and loads it again."""
    shipped = load_teacher(synthkd.Recipe().teacher)
    net: nn.Module = shipped.classifier.body  # yours: net = MyNet(); net.load_state_dict(…)
    torch.manual_seed(0)
    small = build_network("resnet8-w8", channels=1, size=16, classes=10)  # or a network of yours

    result = synthkd.distill(
        teacher=net,
        student=small,
        image_size=16,
        channels=1,
        mean=shipped.spec.mean,  # what the teacher's images are normalised by
        std=shipped.spec.std,
        images=images,
        val_data="demo:unseen",  # or a tensor, a pair (images, labels), a Dataset, a folder
        seed=0,
        out=out or Path(mkdtemp()) / "run",
    )
    print(f"{result.summary['student_accuracy']:.1%} of {result.summary['teacher_accuracy']:.1%}")
    print(f"a constant classifier: {result.summary['constant_accuracy']:.1%}")

    again = synthkd.load_student(result.run, network=small)
    batch = torch.rand(4, 1, 16, 16)  # images in 0..1
    assert torch.allclose(again(batch), result.student(batch), atol=1e-4)
    return result


if __name__ == "__main__":
    main()
