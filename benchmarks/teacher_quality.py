"""Does the rank of `synthkd inspect --rank`, which sees no data, foretell the students?

    python benchmarks/teacher_quality.py OUT --data DIR [--minutes 3] [--seeds 3]

Four teachers of CIFAR-10: ResNet-20, ResNet-56, a small vision transformer, and a ResNet-20 that
is trained here on 500 images alone. DIR holds their weights and labelled images, with readers. Each
teaches ResNet-8 without data for so many minutes; the rank is compared with the accuracies of the
students on real images. Runs that are finished are kept.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from jobs import distil
from rows import begun_with, spread, table_of
from safetensors.torch import save_file
from scipy.stats import spearmanr

import synthkd
from synthkd.core.images import ImageSpec, to_float
from synthkd.data.sources import load_images
from synthkd.jobs.inspection import rank
from synthkd.networks import build_network
from synthkd.recipe import from_settings, trusted

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FEW, STEPS, BATCH = 500, 600, 100  # the badly trained teacher


def train_badly(path: Path, data: str) -> None:
    """A ResNet-20 of few images, without augmentation: it knows them by heart."""
    torch.manual_seed(0)
    spec = ImageSpec(3, 32, 32, MEAN, STD)
    found = load_images(
        f"{data}/data/read.py:load:cifar10_train", spec, classes=10, labelled=True, trust_code=True
    )
    assert found.labels is not None
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    images = (to_float(found.pixels[:FEW]) - mean) / std
    labels = found.labels[:FEW]
    network = build_network("resnet20", channels=3, size=32, classes=10)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for step in range(STEPS):
        if step == STEPS // 2:
            optimizer.param_groups[0]["lr"] = 0.005
        chosen = torch.randint(FEW, (BATCH,))
        loss = F.cross_entropy(network(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    part = path.with_suffix(".part")
    save_file(network.state_dict(), part)
    part.replace(path)


def teachers(out: Path, data: str) -> dict[str, dict[str, object]]:
    """The settings of each teacher, by its name."""
    here = Path(__file__).resolve().parent
    shape = {"image_size": 32, "channels": 3}
    resnets = {"mean": MEAN, "std": STD, **shape}
    return {
        "resnet20": {
            "spec": "resnet20", "weights": f"{data}/data/resnet20-12fca82f.th", **resnets,
        },
        "resnet56": {
            "spec": "resnet56", "weights": f"{data}/data/resnet56-4bfd9763.th", **resnets,
        },
        "vit": {
            "spec": f"{here}/others.py:Transformer",
            "weights": f"{data}/data/cifar10_vit_amebett1.pth",
            "mean": (0.5,) * 3, "std": (0.5,) * 3, **shape,
        },
        "resnet20 of 500 images": {
            "spec": "resnet20", "weights": str(out / "bad.safetensors"), **resnets,
        },
    }  # fmt: skip


def write_teachers(path: Path, found: dict[str, dict[str, object]], rule: str = "average") -> None:
    """Several teachers as a file for `--teacher ensemble:FILE`."""
    lines = [f'rule = "{rule}"']
    for table in found.values():
        lines.append("[[teacher]]")
        for key, value in table.items():
            told = list(value) if isinstance(value, tuple) else value
            lines.append(f"{key} = {json.dumps(told)}")
    path.write_text("\n".join(lines) + "\n")


def ranked(out: Path, found: dict[str, dict[str, object]]) -> dict[str, dict[str, float]]:
    """What `inspect --rank` says of each teacher."""
    path = out / "teachers.toml"
    write_teachers(path, found)
    settings = {"teacher.spec": f"ensemble:{path}", "run.trust_code": True, "run.threads": 2}
    result = {}
    for one in rank(trusted(from_settings(settings), trust_code=True, anyway=True)):
        [name] = [
            name for name, table in found.items()
            if one.quality.described == f"{table['spec']} {table['weights']}"
        ]  # fmt: skip
        parts = {key: v for key, v in vars(one.quality).items() if isinstance(v, float)}
        result[name] = {"score": one.score, **parts}
    return result


def student(folder: Path, table: dict[str, object], data: str, minutes: float, seed: int) -> float:
    """The accuracy on real images of a student of this teacher."""
    if not (folder / "summary.json").is_file():
        words = ["--student", "resnet8", "--minutes", f"{minutes:g}", "--seed", str(seed),
                 "--augment.flip", "true", "--trust-code", "--anyway", "--no-report", "--val-data",
                 f"{data}/data/read.py:load:cifar10_test"]  # fmt: skip
        for key, value in table.items():
            told = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--teacher.{key.replace('_', '-')}", told]
        distil(folder, words, str(Path(__file__).resolve().parents[1]))
    return float(table_of(folder / "summary.json")["student_accuracy"])


def main() -> None:
    """Ranks, distils, compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="third-party")
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    begun_with(given.out / "begun.json", {"minutes": given.minutes})
    if not (given.out / "bad.safetensors").exists():
        train_badly(given.out / "bad.safetensors", given.data)
    found = teachers(given.out, given.data)
    told = ranked(given.out, found)
    rows = []
    for name, table in found.items():
        scores = [
            student(given.out / f"{name.replace(' ', '-')}-{seed}", table, given.data,
                    given.minutes, seed)
            for seed in range(given.seeds)
        ]  # fmt: skip
        rows.append((name, told[name], scores))
        print(f"{name}: {scores}", flush=True)
    parts = list(rows[0][1])
    print(f"\nsynthkd {synthkd.__version__}; teacher, {', '.join(parts)}, accuracy of its student")
    for name, values, scores in sorted(rows, key=lambda row: -row[1]["score"]):
        cells = " | ".join(f"{values[key]:.4g}" for key in parts)
        print(f"| {name} | {cells} | {spread([100 * score for score in scores], 2)} |")
    means = [statistics.fmean(scores) for _, _, scores in rows]
    for key in parts:
        found_by = spearmanr([values[key] for _, values, _ in rows], means).statistic
        print(f"Spearman of {key} with the students: {found_by:.2f} ({len(rows)} teachers)")


if __name__ == "__main__":
    main()
