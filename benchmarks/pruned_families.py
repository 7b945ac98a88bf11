"""Which families of torchvision and timm can be cut (`prune:0.5`), and what is left of them.

    python benchmarks/pruned_families.py OUT [--families resnet18,timm:repvgg_a0] [--size 32]
        [--lesson 1] [--minutes 1]
    python benchmarks/pruned_families.py OUT --table

No weights are fetched. Every teacher is trained here for --lesson minutes on scikit-learn's digits,
enlarged to --size pixels and set in three channels, and is kept in OUT. Of each family: is it cut,
and does what is left run? Its weights, and milliseconds of one and of 64 images by ONNX Runtime
(torch where there is no such file), the median of warm laps by turns with the whole network. Is its
export, ONNX and safetensors, read back to equal answers? Is the network built again from a JSON
file of its shapes, to the same answers? And how often does it agree with the teacher on 539 digits
that nobody saw, after --minutes of `synthkd distill` without data, beside a network of ours of the
same size? The cut is a part of a run's time: the pruned one has those seconds beyond --minutes.
Where it is refused the row has the sentence. A family is a line of OUT/rows.jsonl; those that are
there are not run again, and OUT is for one choice of all numbers but the size.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import Rows, begun_with
from safetensors.torch import save_file
from scaling import read, trained
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import synthkd
from synthkd.core.files import free_name
from synthkd.core.images import to_float
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.networks.pruned import narrow_to, pruned_teacher
from synthkd.recipe import TeacherTable
from synthkd.specs import load_teacher
from synthkd.students import latency
from synthkd.synthesis.drawings import assorted

FAMILIES = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121",
    "convnext_tiny", "regnet_y_400mf", "mnasnet0_5", "squeezenet1_1", "shufflenet_v2_x0_5",
    "googlenet", "timm:mobilenetv4_conv_small", "timm:repvgg_a0", "timm:ghostnet_100", "vgg11_bn",
)  # fmt: skip
# commands run the code that is imported here
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(synthkd.__file__).parents[1])}
CLASSES, THREADS = 10, 2
RATE = 1e-3  # of AdamW
LOOKED_AT = 128  # drawings by which a network is cut
WARM, LAPS = 3, 30
REFUSED = 2  # exit code of a command that refuses what it is given
NAMED = tuple(
    f"resnet{depth}-w{width}{stem}"
    for depth in (8, 14, 20, 32) for width in range(4, 129, 4) for stem in ("", "-stem2", "-stem4")
) + tuple(
    f"mobilenet{width}{stem}"
    for width in ("-0.25", "-0.5", "") for stem in ("", "-stem2", "-stem4")
)  # fmt: skip


def spec_of(family: str) -> str:
    """Its SPEC.

    >>> spec_of("resnet18"), spec_of("timm:repvgg_a0")
    ('torchvision:resnet18', 'timm:repvgg_a0')
    """
    return family if ":" in family else f"torchvision:{family}"


def fresh(family: str) -> nn.Module:
    """A network of a family with new weights."""
    torch.manual_seed(0)
    kind, _, name = spec_of(family).partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "timm":
            import timm

            made: nn.Module = timm.create_model(name, pretrained=False, num_classes=CLASSES)
        else:
            from torchvision import models

            made = models.get_model(name, weights=None, num_classes=CLASSES)
    return made


def medians(works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of each: the median of LAPS laps by turns, after WARM that do not count."""
    laps: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(WARM + LAPS):
        for name, work in works.items():
            before = time.perf_counter()
            work()
            laps[name].append(1e3 * (time.perf_counter() - before))
    return {name: statistics.median(taken[WARM:]) for name, taken in laps.items()}


@cache
def sized(name: str, size: int) -> tuple[int, float]:
    """Weights and operations of a network of ours."""
    with torch.device("meta"):
        network = build_network(name, channels=3, size=size, classes=CLASSES).eval()
        count = sum(p.numel() for p in network.parameters())
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, size, size))
    return count, float(counter.get_total_flops())


def nearest(weights: int, work: float, known: Mapping[str, tuple[int, float]]) -> str:
    """The name of the network with the nearest number of weights; of those that differ by at most a
    tenth from `weights`, the one with the nearest operations.

    >>> known = {"a": (90, 9.0), "b": (100, 90.0), "c": (200, 9.0)}
    >>> nearest(100, 8.0, known), nearest(300, 8.0, known)
    ('a', 'c')
    """
    alike = [name for name, (count, _) in known.items() if 0.9 <= count / weights <= 1.1]
    if alike:
        return min(alike, key=lambda name: abs(np.log(known[name][1] / work)))
    return min(known, key=lambda name: abs(np.log(known[name][0] / weights)))


class Digits:
    """Labelled digits of a size in three channels: some to train on, others in a file to test."""

    def __init__(self, out: Path, size: int) -> None:
        pixels, self.labels, _ = read("demo:seen", size, 1)
        self.pixels, self.size = pixels.expand(-1, 3, -1, -1).contiguous(), size
        self.mean, self.std = (round(float(v), 4) for v in torch.std_mean(to_float(pixels))[::-1])
        tested, labels, _ = read("demo:unseen", size, 1)
        self.tested, self.path = tested.expand(-1, 3, -1, -1).contiguous(), out / f"test-{size}.npz"
        if not self.path.exists():
            np.savez(self.path, x=self.tested.permute(0, 2, 3, 1).numpy(), y=labels.numpy())


class Family:
    """One family: its teacher, and what is measured of it."""

    def __init__(self, name: str, digits: Digits, given: argparse.Namespace) -> None:
        self.name, self.digits, self.given = name, digits, given
        self.place = given.out / f"{name.replace(':', '-')}-{digits.size}"
        self.weights = self.place / "teacher.safetensors"
        self.row: dict[str, Any] = {
            "family": name, "size": digits.size, "ratio": given.ratio, "minutes": given.minutes,
            "lesson": given.lesson, "seed": given.seed,
        }  # fmt: skip

    def measured(self) -> dict[str, Any]:
        """The row."""
        self.place.mkdir(parents=True, exist_ok=True)
        try:
            if not self.weights.exists():
                self._learn()
            self._measure()
        except (synthkd.InputError, RuntimeError, ValueError) as error:
            self.row["refused"] = " ".join(str(error).split())[:300]
        return self.row

    def _learn(self) -> None:
        """Trains the teacher, and keeps it."""
        network, digits = fresh(self.name), self.digits
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.02)
        network = trained(
            network, optimizer, digits.pixels, digits.labels, self.given.lesson, flip=False,
            mean=digits.mean, std=digits.std,
        )  # fmt: skip
        part = self.weights.with_suffix(".part")
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, part)
        part.replace(self.weights)

    def _measure(self) -> None:
        digits, row = self.digits, self.row
        teacher = load_teacher(TeacherTable(
            spec=spec_of(self.name), weights=str(self.weights), classes=CLASSES, channels=3,
            image_size=(digits.size, digits.size), mean=(digits.mean,) * 3, std=(digits.std,) * 3,
        ))  # fmt: skip
        whole = teacher.classifier.eval()
        shape = whole.spec.shape
        row["parameters"] = sum(p.numel() for p in whole.parameters())
        began = time.perf_counter()
        body, kept = pruned_teacher(whole, self.given.ratio, lambda: assorted(LOOKED_AT, shape))
        row["cut_seconds"] = time.perf_counter() - began
        row["cut"] = "by what is read, refitted" if kept else "equal shares, by magnitude"
        row["pruned_parameters"] = sum(p.numel() for p in body.parameters())
        with torch.no_grad():
            answer = body.eval()(torch.zeros(2, *shape))
        row["forward"] = answer.shape == (2, CLASSES) and bool(answer.isfinite().all())
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            body(torch.zeros(1, *shape))
        minutes = self.given.minutes + row["cut_seconds"] / 60
        run = self._distilled(f"prune:{self.given.ratio:g}", minutes)
        if run is None:
            return
        student = synthkd.load_student(run)
        row["replay"] = self._replayed(student)
        row |= self._exported(run, student)
        row |= self._times(whole, student)
        known = {name: sized(name, digits.size) for name in NAMED}
        alike = nearest(row["pruned_parameters"], float(counter.get_total_flops()), known)
        self._distilled(alike, self.given.minutes)

    def _distilled(self, student: str, minutes: float) -> Path | None:
        """A run of so many minutes with this student, noted in the row; None where it is
        refused."""
        kind = "pruned" if student.startswith("prune:") else "named"
        run, digits = self.place / kind, self.digits
        if not (run / "summary.json").exists():
            shutil.rmtree(run, ignore_errors=True)
            done = subprocess.run(
                [
                    sys.executable, "-m", "synthkd", "distill", "--teacher", spec_of(self.name),
                    "--teacher-weights", str(self.weights), "--classes", str(CLASSES),
                    "--image-size", str(digits.size), "--channels", "3",
                    f"--teacher-mean={digits.mean}", f"--teacher-std={digits.std}",
                    "--student", student, "--val-data", str(digits.path), "--minutes",
                    str(minutes), "--seed", str(self.given.seed), "--run.threads",
                    str(THREADS), "--no-report", "--quiet", "--out", str(run),
                ],
                env=ENVIRONMENT, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if not (run / "summary.json").exists():
                self.row[f"{kind}_refused"] = refusal(done.returncode, done.stderr)
                return None
        summary = json.loads((run / "summary.json").read_text())
        self.row["teacher_accuracy"] = summary["teacher_accuracy"]
        self.row[kind] = {
            key: summary[key] for key in
            ("student", "student_parameters", "student_accuracy", "agreement", "images_seen",
             "wall_seconds", "verdict")
        }  # fmt: skip
        return run

    def _replayed(self, student: Classifier) -> str:
        """Whether the network of a student comes back from a JSON file of its shapes."""
        tensors, path = student.body.state_dict(), self.place / "shapes.json"
        path.write_text(json.dumps({name: list(t.shape) for name, t in tensors.items()}))
        told = {
            name: torch.empty(shape, device="meta")
            for name, shape in json.loads(path.read_text()).items()
        }
        again = fresh(self.name).eval()
        try:
            narrow_to(again, told)
            again.load_state_dict(tensors)
        except (synthkd.InputError, RuntimeError) as error:
            return " ".join(str(error).split())[:200]
        images = torch.rand(4, *student.spec.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            same = torch.equal(again(images), student.body(images))
        return "the same" if same else "other answers"

    def _exported(self, run: Path, student: Classifier) -> dict[str, Any]:
        """The largest difference of a logit between the student and its files, read back; or what
        `synthkd export` says."""
        folder = free_name(self.place / "export")
        done = subprocess.run(
            [sys.executable, "-m", "synthkd", "export", str(run), "--format", "onnx,safetensors",
             "--quiet", "--out", str(folder)],
            env=ENVIRONMENT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return {"export_refused": refusal(done.returncode, done.stderr)}
        images, found = to_float(self.digits.tested[:64]), {}
        (onnx,) = folder.glob("*.onnx")
        answers = {
            "onnx": latency.onnx_answer(onnx, THREADS), "safetensors": synthkd.load_student(folder)
        }  # fmt: skip
        with torch.no_grad():
            own = student(images)
            for name, answer in answers.items():
                found[name] = float((answer(images) - own).abs().max())
        return {"export": found, "largest_logit": float(own.abs().max())}

    def _times(self, whole: Classifier, student: Classifier) -> dict[str, Any]:
        """Milliseconds of both networks, of one and of 64 images."""
        images = to_float(self.digits.tested[:64])
        answers: dict[str, Callable[[Tensor], Tensor]] = {}
        runtime = "ONNX Runtime"
        for name, network in (("whole", whole), ("pruned", student)):
            path = self.place / f"{name}.onnx"
            try:
                latency.write_onnx(network, torch.zeros(2, *network.spec.shape), path)
                answers[name] = latency.onnx_answer(path, THREADS)
            except Exception:  # whatever the exporter raises at a network
                runtime = "torch"
        if runtime == "torch":
            answers = {"whole": whole, "pruned": student}
        found: dict[str, Any] = {"runtime": runtime}
        with torch.no_grad():
            for count in (1, 64):
                works = {name: work_of(answer, images[:count]) for name, answer in answers.items()}
                found[f"ms_{count}"] = medians(works)
        return found


def work_of(answer: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], object]:
    """Images put to a network, as work to be timed."""
    return lambda: answer(images)


def refusal(code: int, said: str) -> str:
    """The sentence of a command that refuses; one that ended otherwise (killed, stopped, no memory)
    ends the benchmark, and is run again by the next.

    >>> refusal(2, "error: no such file")
    'error: no such file'
    """
    if code != REFUSED:
        raise SystemExit(f"a command ended with {code}: {last_line(said)}")
    return last_line(said)


def last_line(said: str) -> str:
    """The last line that was said, which is the sentence of an error.

    >>> last_line("one\\ntwo\\n\\n")
    'two'
    """
    return next((line for line in reversed(said.splitlines()) if line.strip()), "no word")


def table(rows: list[dict[str, Any]]) -> None:
    """A Markdown row a family."""
    print("| family | weights | ms, 1 | ms, 64 | cut | forward | export, largest difference "
          "| replay | teacher % | agreement % | named | agreement % |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        if said := row.get("refused") or row.get("pruned_refused"):
            print(f"| {row['family']} | {row.get('parameters', 0):,} | | | refused: {said} "
                  "| | | | | | | |")  # fmt: skip
            continue
        pruned, named = row["pruned"], row.get("named")
        export = row.get("export_refused") or ", ".join(
            f"{name} {difference:.1g}" for name, difference in row["export"].items()
        )
        both = [row["ms_1"], row["ms_64"]]
        times = [f"{ms['whole']:.3g} → {ms['pruned']:.3g}" for ms in both]
        beside = f"refused: {row.get('named_refused')} | "
        if named:
            share = f"{100 * named['agreement']:.1f} ({named['images_seen']:,} images)"
            beside = f"{named['student']}, {named['student_parameters']:,} | {share}"
        print(
            f"| {row['family']} | {row['parameters']:,} → {row['pruned_parameters']:,} "
            f"| {' | '.join(times)}{'' if row['runtime'] == 'ONNX Runtime' else ' (torch)'} "
            f"| {row['cut']}, {row['cut_seconds']:.1f} s "
            f"| {'yes' if row['forward'] else 'no'} "
            f"| {export} of {row.get('largest_logit', 0):.3g} | {row['replay']} "
            f"| {100 * row['teacher_accuracy']:.1f} "
            f"| {100 * pruned['agreement']:.1f} ({pruned['images_seen']:,} images) | {beside} |",
            flush=True,
        )


def main() -> None:
    """Measures what is not there yet, and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--lesson", type=float, default=1, help="minutes of a teacher")
    parser.add_argument("--minutes", type=float, default=1, help="of a student")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    rows = Rows(given.out)
    if not given.table:
        numbers = {key: getattr(given, key) for key in ("lesson", "minutes", "ratio", "seed")}
        begun_with(given.out / "begun.json", numbers)
        torch.set_num_threads(THREADS)
        digits = Digits(given.out, given.size)
        for name in given.families.split(","):
            rows.make(
                f"{name}-{given.size}", lambda name=name: Family(name, digits, given).measured()
            )
    table(list(rows.by_name.values()))


if __name__ == "__main__":
    main()
