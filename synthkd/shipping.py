"""A student as files that run elsewhere: ONNX, torch.export, ExecuTorch, and what is told about it.

What is exported takes images [B, C, H, W] in 0..1 and returns logits [B, K]: normalisation is
inside. Every export is read back and compared with the student; one that differs is an error.
"""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthkd.errors import InputError
from synthkd.files import write_atomic
from synthkd.latency import Answer as Answer
from synthkd.latency import onnx_answer, write_onnx
from synthkd.networks.classifier import Classifier
from synthkd.specs.graphs import telemetry_off

FORMATS = ("safetensors", "onnx", "pt2", "executorch")
TOLERANCE = 1e-3  # of the largest logit
PRIVACY = (
    "This run read no real data. That is a statement about the process, not about the result. The "
    "teacher was trained on real data; synthetic images and the student carry information from it "
    "and may reveal it. Treat both with the same care as the teacher, unless the teacher was "
    "trained with differential privacy. We have not measured leakage; only you, who hold the data, "
    "can."
)


@dataclass(frozen=True)
class Parity:
    """An exported file against the student, on N images."""

    images: int
    largest: float  # difference of a logit
    scale: float  # the student's largest logit
    agreement: float  # share of equal votes

    @property
    def holds(self) -> bool:
        """Whether it may be called the same network."""
        return self.agreement == 1.0 and self.largest <= TOLERANCE * self.scale


@dataclass(frozen=True)
class Exported:
    """One file, what it weighs, how fast it is, and how it compares."""

    name: str
    megabytes: float
    milliseconds: float  # per image, one at a time
    batched: float  # per image, in batches of 64
    parity: Parity


def to_onnx(student: Classifier, path: Path) -> Answer:
    """Writes ONNX with a free batch, weights inside the file; returns how it answers."""
    write_onnx(student, torch.zeros(2, *student.spec.shape), path)
    return onnx_answer(path)


def to_int8(source: Path, path: Path, calibration: Tensor) -> Answer:
    """Quantises an ONNX file to int8 (static, per channel, entropy-free min-max on `calibration`),
    by ONNX Runtime's own tool."""
    telemetry_off()
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Images, sixty-four at a time."""

        def __init__(self) -> None:
            self.parts = iter(torch.split(calibration, 64))

        def get_next(self) -> dict[str, Any] | None:
            part = next(self.parts, None)
            return None if part is None else {"images": part.numpy()}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_static(
            str(source), str(path), Reader(), per_channel=True,
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,  # signed ones are slow on x86
        )  # fmt: skip
    return onnx_answer(path)


def to_pt2(student: Classifier, path: Path) -> Answer:
    """Writes a torch.export program with a free batch; returns how it answers."""
    example = torch.zeros(2, *student.spec.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            student, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
        )
        torch.export.save(program, str(path))
        loaded = torch.export.load(str(path)).module()  # ours, just written

    def answer(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = loaded(images)
        return logits

    return answer


def to_executorch(student: Classifier, path: Path) -> Answer:
    """Writes an ExecuTorch program lowered to XNNPACK, of batches of one."""
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.runtime import Runtime
    except ImportError:
        raise InputError(
            "--format executorch wants the extra executorch: pip install 'synthkd[executorch]'"
        ) from None
    example = torch.zeros(1, *student.spec.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = to_edge_transform_and_lower(
            torch.export.export(student, (example,)), partitioner=[XnnpackPartitioner()]
        ).to_executorch()
    write_atomic(path, program.buffer)
    method = Runtime.get().load_program(str(path)).load_method("forward")

    def answer(images: Tensor) -> Tensor:
        return torch.cat([method.execute([image[None].contiguous()])[0] for image in images])

    return answer


@torch.no_grad()
def compared(student: Classifier, answer: Answer, images: Tensor) -> Parity:
    """An exported file against the student on images [N, C, H, W]."""
    parts = torch.split(images, 64)
    own = torch.cat([student(part) for part in parts])
    other = torch.cat([answer(part) for part in parts]).float()
    return Parity(
        len(images), float((own - other).abs().max()), float(own.abs().max()),
        float((own.argmax(1) == other.argmax(1)).float().mean()),
    )  # fmt: skip


def timed(answer: Answer, images: Tensor, *, seconds: float = 1.0) -> tuple[float, float]:
    """Milliseconds per image, one at a time and sixty-four at a time: medians over `seconds`
    each."""
    found = []
    for batch in (images[:1], images[:64]):
        answer(batch)
        laps: list[float] = []
        started = time.perf_counter()
        while time.perf_counter() - started < seconds or len(laps) < 3:
            before = time.perf_counter()
            answer(batch)
            laps.append((time.perf_counter() - before) / len(batch))
        found.append(1e3 * float(np.median(laps)))
    return found[0], found[1]


def model_card(
    summary: Mapping[str, Any],
    manifest: Mapping[str, Any],
    files: Sequence[Exported],
    names: Sequence[str],
) -> str:
    """What a student is, as a Markdown file with the front matter of Hugging Face."""
    accuracy, level = summary.get("student_accuracy"), manifest.get("promise_level", 3)
    large = summary["teacher_parameters"]
    share = f" ({summary['student_parameters'] / large:.1%} of the teacher's)" if large else ""
    shown = _plain(", ".join(names[:20])) + (" …" if len(names) > 20 else "")
    kind = _plain(str(summary.get("held_out", "synthetic")))
    rows = {
        "parameters": f"{summary['student_parameters']:,}{share}",
        "teacher, SHA-256": f"`{_plain(str(manifest['teacher_sha256']))}`",
        "student, SHA-256": f"`{_plain(str(summary['student_sha256']))}`",
        "classes": f"{len(names)}: {shown}",
        "images seen in training": f"{summary['images_seen']:,}, "
        f"{summary['synthetic_share']:.1%} synthetic",
        "real images read": f"{summary['real_images_read']:,}",
        "promise level": f"{level}: {_plain(str(manifest.get('promise', '')))}",
        f"agreement on held-out {kind} images": f"{summary['held_out_agreement']:.2%}",
        "accuracy": "not measured",
    }
    if accuracy is not None:
        rows["accuracy"] = (
            f"{accuracy:.2%} on {summary['val_images']:,} images of "
            f"{_plain(str(summary['val_data']))}; the teacher {summary['teacher_accuracy']:.2%}"
        )
    lines = [
        "---", "library_name: synthkd", "pipeline_tag: image-classification",
        "tags: [knowledge-distillation, data-free, synthetic-data]", "---", "",
        f"# {_plain(str(summary['student']))}, distilled from {_plain(str(manifest['teacher']))}",
        "", "| | |", "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()), "",
        "Images go in as [batch, channels, height, width] with pixels in 0..1; logits come out.",
        "Normalisation is inside.", "",
        "| file | MB | ms per image, alone | in batches of 64 | same votes | largest difference |",
        "|---|---:|---:|---:|---:|---:|",
        *(f"| {f.name} | {f.megabytes:.2f} | {f.milliseconds:.2f} | {f.batched:.3f} "
          f"| {f.parity.agreement:.1%} of {f.parity.images:,} | {f.parity.largest:.2g} |"
          for f in files),
        "", "## Privacy", "", _privacy(level, summary["real_images_read"]), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _privacy(level: int, read: int) -> str:
    """The statement; where real images were read, by this run or by one before, without its first
    sentence."""
    if level <= 1 and not read:
        return PRIVACY
    began = "This run read real images. "
    if not read:
        began = "This run read no real images, but what it began with had seen some. "
    return began + PRIVACY.split("result. ", 1)[1]


def _plain(text: str) -> str:
    """A foreign name in a table of Markdown."""
    kept = "".join(c if c.isprintable() else " " for c in text)
    for mark in "\\|`<>[]*_#":
        kept = kept.replace(mark, "\\" + mark if mark in "\\|`*_#[]" else " ")
    return kept
