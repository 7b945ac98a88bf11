"""Trains the demo teacher: a ResNet-14 for scikit-learn's handwritten digits, on 70 % of them.

    python assets/train_demo_teacher.py [OUT.safetensors]

It reads the digits that `demo:seen` names, never those of `demo:unseen`, trains for a fixed number
of epochs (no choice is made by the unseen ones), and writes the weights with their card and a JSON
beside them: accuracy, command, versions, hash. About a minute on two cores.
"""

import platform
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd import __version__
from synthkd.core.files import sha256_of, write_json
from synthkd.core.images import ImageSpec, to_float
from synthkd.core.seeds import generator_for, globally
from synthkd.data.sources import load_images
from synthkd.images.augment import bent, shifted
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.schedules import one_cycle
from synthkd.specs import card_of
from synthkd.students.learner import save_student

NETWORK, EPOCHS, BATCH, RATE, SEED = "resnet14", 60, 64, 0.1, 0


def fit(
    network: Classifier, pixels: Tensor, labels: Tensor, rng: torch.Generator, *,
    epochs: int = EPOCHS,
) -> None:  # fmt: skip
    """Trains on images [N, C, H, W] in 0..1 and labels [N]: SGD, one cycle, images shifted and
    bent."""
    optimizer = torch.optim.SGD(
        network.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = epochs * (len(pixels) // BATCH)
    for step in range(steps):
        index = torch.randint(len(pixels), (BATCH,), generator=rng)
        images = bent(shifted(pixels[index], 0.07, rng), 0.5, rng)
        for group in optimizer.param_groups:
            group["lr"] = RATE * one_cycle(step / steps)
        loss = F.cross_entropy(network(images), labels[index], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()


def main() -> None:
    """Train, score, write."""
    out = Path(
        sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("demo_teacher.safetensors")
    )
    seen = load_images("demo:seen", None, classes=10, labelled=True)
    unseen = load_images("demo:unseen", None, classes=10, labelled=True)
    pixels = to_float(seen.pixels)
    mean, std = round(pixels.mean().item(), 4), round(pixels.std().item(), 4)
    spec = ImageSpec(1, 16, 16, (mean,), (std,))
    rng = generator_for(SEED, "demo teacher")
    with globally(rng):
        network = Classifier(build_network(NETWORK, channels=1, size=16, classes=10), spec, 10)
    fit(network, pixels, seen.labels, rng)
    with torch.no_grad():
        scores = {
            name: (network(to_float(part.pixels)).argmax(1) == part.labels).float().mean().item()
            for name, part in (("seen", seen), ("unseen", unseen))
        }
    save_student(network, card_of(network, NETWORK, seen.names), out)
    write_json(
        out.with_suffix(".json"),
        {
            "command": "python assets/train_demo_teacher.py",
            "network": NETWORK,
            "parameters": sum(p.numel() for p in network.parameters()),
            "data": "scikit-learn load_digits, 8x8 enlarged to 16x16; "
            "70 % seen, 30 % never seen (demo:unseen)",
            "accuracy_seen": round(scores["seen"], 4),
            "accuracy_unseen": round(scores["unseen"], 4),
            "images_seen": len(seen.pixels),
            "images_unseen": len(unseen.pixels),
            "epochs": EPOCHS,
            "seed": SEED,
            "sha256": sha256_of(out),
            "made_with": {
                "synthkd": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        },
    )
    print(
        f"accuracy on seen {scores['seen']:.4f}, on unseen digits {scores['unseen']:.4f}; "
        f"wrote {out}"
    )


if __name__ == "__main__":
    main()
