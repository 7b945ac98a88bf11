"""What students tell about their teachers' training data: a study with canaries, on digits.

    python benchmarks/leaks.py OUT [--shadows 16] [--canaries 20] [--workers 2] [--epochs 60]
                               [--only teacher,synthkd,new,gan,labels]

Trains shadow teachers as the demo's teacher is trained (assets/train_demo_teacher.py), each on a
random half of its 1,258 images; --canaries of these have a wrong label. Every image is in the
halves of half of the teachers. Each teacher is then distilled without data: by the default pipeline
(synthkd), by the same with random first weights (new), by a GAN (gan), and by the classes alone
that it names (labels). Each network is attacked with all others of its kind as shadow networks: by
LiRA, and by the loss; canaries by themselves.

A file a network in OUT: one that is there is not made again. Ends with a Markdown table, table.md
and table.json. Intervals of the area under the curve know that an image has a score from every
network; those of the rates take scores as independent.
"""

import argparse
import io
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rows import begun_with

import synthkd
from synthkd.core.files import write_atomic, write_json
from synthkd.core.images import ImageSpec, to_float
from synthkd.core.seeds import generator_for, globally
from synthkd.core.words import clock
from synthkd.data.sources import Images, load_images
from synthkd.evaluation import leaks, membership
from synthkd.evaluation.compare import answers_of
from synthkd.evaluation.leaks import Attack, Group
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.specs import card_of
from synthkd.students.learner import save_student

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "assets"))
from train_demo_teacher import EPOCHS, NETWORK, fit

# settings of a distillation, and its images
STUDENTS: dict[str, tuple[dict[str, Any], int]] = {
    "synthkd": ({}, 100_000),
    "new": ({"student.start": "new"}, 100_000),
    "gan": ({"pipeline": "gan"}, 100_000),
    "labels": ({"teacher.access": "labels"}, 200_000),
}
KINDS = ("teacher", *STUDENTS)
MEAN, STD = 0.3054, 0.3184  # of the digits
# until one is measured
SECONDS = {"teacher": 20.0, "synthkd": 35.0, "new": 35.0, "gan": 80.0, "labels": 100.0}


class Design(NamedTuple):
    """Who learned what. N images, S shadow teachers."""

    pixels: torch.Tensor  # [N, C, H, W] uint8
    labels: NDArray[np.int64]  # [N], as trained with
    canary: NDArray[np.bool_]  # [N]
    member: NDArray[np.bool_]  # [S, N]


def design(shadows: int, canaries: int, seed: int = 0) -> Design:
    """The images of demo:seen, some of them with a wrong label, each in half of the teachers."""
    seen = digits("demo:seen")
    assert seen.labels is not None
    labels, rng = seen.labels.numpy().copy(), np.random.default_rng(seed)
    canary = np.zeros(len(labels), dtype=bool)
    canary[rng.permutation(len(labels))[:canaries]] = True
    labels[canary] = leaks.wrong_labels(labels[canary], 10, seed)
    member = rng.random((shadows, len(labels))).argsort(0).argsort(0) < shadows // 2
    return Design(seen.pixels, labels, canary, member)


def digits(path: str) -> Images:
    """The demo's digits with their labels."""
    return load_images(path, None, classes=10, labelled=True)


def make(kind: str, number: int, out: Path, shadows: int, canaries: int, epochs: int) -> None:
    """Trains one network and keeps what it answers to all images."""
    known, began = design(shadows, canaries), time.perf_counter()
    folder = out / "teachers" / f"{number:02d}"
    if kind == "teacher":
        network = _teacher(known, number, epochs, folder)
    else:
        settings, images = STUDENTS[kind]
        pipeline = settings.get("pipeline")
        more = {key: value for key, value in settings.items() if key != "pipeline"}
        with tempfile.TemporaryDirectory(dir=out) as place, warnings.catch_warnings():
            warnings.simplefilter("ignore", synthkd.UselessResult)  # its accuracy tells
            network = synthkd.distill(
                str(folder), images=images, seed=number, pipeline=pipeline, val_data="none",
                settings={"run.threads": 1, **more}, out=Path(place) / "run",
            ).student  # fmt: skip
    seconds = time.perf_counter() - began
    unseen = digits("demo:unseen")
    assert unseen.labels is not None
    logits = answers_of(network, known.pixels, 256, kind).numpy()
    right = answers_of(network, unseen.pixels, 256, kind).argmax(1) == unseen.labels
    held = io.BytesIO()
    np.savez(held, logits=logits, accuracy=float(right.double().mean()), seconds=seconds)
    write_atomic(file_of(out, kind, number), held.getvalue())


def _teacher(known: Design, number: int, epochs: int, folder: Path) -> Classifier:
    own, rng = known.member[number], generator_for(number, "shadow teacher")
    with globally(rng):
        body = build_network(NETWORK, channels=1, size=16, classes=10)
    network = Classifier(body, ImageSpec(1, 16, 16, (MEAN,), (STD,)), 10)
    fit(network, to_float(known.pixels[own]), torch.from_numpy(known.labels[own]), rng,
        epochs=epochs)  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    names = tuple(str(digit) for digit in range(10))
    save_student(network, card_of(network, NETWORK, names), folder / "student.safetensors")
    return network


def file_of(out: Path, kind: str, number: int) -> Path:
    """Where a network's answers lie."""
    return out / "answers" / f"{kind}-{number:02d}.npz"


def make_all(kinds: Sequence[str], given: argparse.Namespace) -> None:
    """Makes what is not there yet, teachers first, and says how long it will take."""
    took: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for kind in kinds:
        for number in range(given.shadows):
            if (path := file_of(given.out, kind, number)).exists():
                took[kind].append(float(np.load(path)["seconds"]))
    waiting = {kind: given.shadows - len(took[kind]) for kind in kinds}
    began = time.perf_counter()
    for part in (("teacher",), tuple(STUDENTS)):
        jobs = [
            (kind, number)
            for number in range(given.shadows)
            for kind in part
            if kind in kinds and not file_of(given.out, kind, number).exists()
        ]
        context = get_context("spawn")
        one = partial(torch.set_num_threads, 1)
        with ProcessPoolExecutor(given.workers, mp_context=context, initializer=one) as pool:
            running = {
                pool.submit(make, kind, number, given.out, given.shadows, given.canaries,
                            given.epochs): (kind, number)
                for kind, number in jobs
            }  # fmt: skip
            for done in as_completed(running):
                done.result()
                kind, number = running[done]
                with np.load(file_of(given.out, kind, number)) as held:
                    took[kind].append(float(held["seconds"]))
                    accuracy = float(held["accuracy"])
                waiting[kind] -= 1
                left = sum(
                    count * (statistics.fmean(took[k]) if took[k] else SECONDS[k])
                    for k, count in waiting.items()
                ) / given.workers  # fmt: skip
                print(
                    f"{kind} {number}: {accuracy:.1%} of unseen digits, {took[kind][-1]:.0f} s; "
                    f"{clock(time.perf_counter() - began)} passed, {clock(left)} left",
                    flush=True,
                )


class Answers(NamedTuple):
    """What all networks of a kind answer."""

    logits: NDArray[np.float64]  # [S, N, K]
    accuracy: list[float]  # of unseen digits
    seconds: list[float]


def answers(out: Path, kind: str, shadows: int) -> Answers:
    """What was kept of a kind."""
    held = [np.load(file_of(out, kind, number)) for number in range(shadows)]
    return Answers(
        np.stack([one["logits"] for one in held]).astype(np.float64),
        [float(one["accuracy"]) for one in held],
        [float(one["seconds"]) for one in held],
    )


def attacks(kind: str, logits: NDArray[np.float64], known: Design) -> Iterator[Attack]:
    """Every network of a kind, [S, N, K], attacked with the others as shadows; canaries apart."""
    confidence = membership.logit_confidence(logits, known.labels)
    losses = membership.loss_scores(logits, known.labels)
    for name, chosen in (("members", ~known.canary), ("canaries", known.canary)):
        member, own = known.member[:, chosen], confidence[:, chosen]
        of = np.tile(np.arange(member.shape[1]), len(member))  # networks, one after the other
        labels = np.tile(known.labels[chosen], len(member))
        group = Group(name, labels, member.ravel(), np.arange(member.size), images=of)
        yield leaks.attack(kind, group, "loss", losses[:, chosen].ravel())
        for score, online in (("lira-offline", False), ("lira-online", True)):
            found = membership.leave_one_out(own, member, online=online)
            yield leaks.attack(kind, group, score, found.ravel())


def table(kinds: Sequence[str], given: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The result as Markdown and as plain data."""
    known = design(given.shadows, given.canaries)
    unseen, networks, found = digits("demo:unseen").labels, {}, []
    assert unseen is not None
    constant = [
        np.bincount(labels).max() / len(labels)
        for labels in (unseen.numpy(), known.labels[known.canary])
    ]
    for kind in kinds:
        held = answers(given.out, kind, given.shadows)
        named = (held.logits.argmax(2) == known.labels)[:, known.canary]
        had = known.member[:, known.canary]
        networks[kind] = {
            "accuracy_mean": statistics.fmean(held.accuracy),
            "accuracy_std": statistics.stdev(held.accuracy),
            "canaries_learned": float(named[had].mean()),
            "canaries_left_out": float(named[~had].mean()),
            "seconds_mean": statistics.fmean(held.seconds),
        }
        found += attacks(kind, held.logits, known)
    lines = [
        "| network | unseen digits, % | canaries named with their wrong label, %: had, left out "
        "| s, one thread |",
        "|---|---:|---:|---:|",
        *(f"| {kind} | {100 * n['accuracy_mean']:.1f} ± {100 * n['accuracy_std']:.1f} "
          f"| {100 * n['canaries_learned']:.1f}, {100 * n['canaries_left_out']:.1f} "
          f"| {n['seconds_mean']:.0f} |" for kind, n in networks.items()),
        f"| a constant | {100 * constant[0]:.1f} | {100 * constant[1]:.1f} of all | |",
        "",
        "| network | attacked | attack | AUC [95 %] | TPR at 1 % FPR, % [95 %] "
        "| TPR at 0.1 % FPR, % [95 %] | n had, left out |",
        "|---|---|---|---:|---:|---:|---:|",
        *map(_line, found),
        "| a random score | | | 0.500 | 1.0 | 0.1 | |",
    ]  # fmt: skip
    data = {
        "shadows": given.shadows,
        "canaries": given.canaries,
        "epochs": given.epochs,
        "images": {kind: images for kind, (_, images) in STUDENTS.items()},
        "networks": networks,
        "attacks": [asdict(one) for one in found],
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "versions": {"synthkd": synthkd.__version__, "torch": torch.__version__},
    }
    return "\n".join(lines) + "\n", data


def _line(one: Attack) -> str:
    rates = [
        f"not measurable with {one.non_members:,}"
        if rate.value is None or rate.low is None or rate.high is None
        else f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
        for rate in one.rates
    ]
    area = f"{one.auc:.3f} [{one.auc_low:.3f}, {one.auc_high:.3f}]"
    cells = (one.network, one.group, leaks.SCORES[one.score], area, *rates)
    return f"| {' | '.join(cells)} | {one.members:,}, {one.non_members:,} |"


def main() -> None:
    """Makes what is missing, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--shadows", type=int, default=16)
    parser.add_argument("--canaries", type=int, default=20)
    parser.add_argument("--only", default=",".join(KINDS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    given = parser.parse_args()
    kinds = given.only.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"--only: no {unknown[0]!r}: {', '.join(KINDS)}")
    if given.shadows < 8 or given.shadows % 2:
        parser.error("--shadows: an even number from 8 on")
    kinds = [kind for kind in KINDS if kind in kinds or kind == "teacher"]
    (given.out / "answers").mkdir(parents=True, exist_ok=True)
    numbers = {key: getattr(given, key) for key in ("shadows", "canaries", "epochs")}
    begun_with(given.out / "study.json", numbers)
    make_all(kinds, given)
    text, data = table(kinds, given)
    print(text)
    write_atomic(given.out / "table.md", text)
    write_json(given.out / "table.json", data)


if __name__ == "__main__":
    main()
