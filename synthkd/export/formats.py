"""A student as files that run elsewhere: ONNX, torch.export, ExecuTorch.

What is exported takes images [B, C, H, W] in 0..1, or bytes, and returns logits [B, K], or
probabilities: normalisation is inside. Every export is read back and compared with the student;
one that differs is an error. 8-bit integers may differ: how much, and whether they are faster at
all, is measured side by side.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synthkd import __version__
from synthkd.core.errors import InputError
from synthkd.core.files import write_atomic
from synthkd.core.images import to_float
from synthkd.core.words import without_folders
from synthkd.measures import class_balance, decided
from synthkd.networks.classifier import Classifier
from synthkd.specs.graphs import TOLD, telemetry_off
from synthkd.students import latency
from synthkd.students.latency import INPUT, Answer, onnx_answer, write_onnx

FORMATS = ("safetensors", "onnx", "pt2", "executorch")
TOLERANCE = 1e-3  # of the largest logit
FASTER, NO_WORSE = 1.1, 0.01  # times as fast, and points worse, for integers to be worth their name


@dataclass(frozen=True)
class Parity:
    """An exported file against the student, on N images."""

    images: int
    largest: float  # difference of a logit
    scale: float  # the student's largest logit
    agreement: float  # share of equal votes; of independent classes, of equal decisions
    balanced: float  # the same as a mean over the classes that the student names
    named: int  # classes that the student names on these images; of one alone, votes say nothing
    independent: bool = False  # classes: the votes are then a no or yes to each of them

    @property
    def holds(self) -> bool:
        """Whether it may be called the same network. Of N · K decisions some lie so near to 0 that
        rounding turns them: that the logits are alike is enough."""
        alike = self.largest <= TOLERANCE * self.scale
        return alike and (self.independent or self.agreement == 1.0)

    @property
    def groups(self) -> str:
        """What `balanced` is a mean over, in words."""
        return "no and yes" if self.independent else f"the {self.named:,} classes named"


@dataclass(frozen=True)
class Scored:
    """Share of right classes on labelled images, of an 8-bit file and of the file it is made of;
    where an image may have several, of right decisions, a no or yes to each."""

    images: int
    accuracy: float
    float_accuracy: float
    agreement: float


@dataclass(frozen=True)
class Truth:
    """What 8-bit integers bring and cost, measured beside the float file."""

    calibrated: str  # on which images: "216 synthetic images of the run"
    judged: str  # which others: "217 synthetic images of the run"
    parity: Parity  # on those
    speed: float  # times as fast as the float file, one image alone
    size: float  # of the float file's
    scored: Scored | None  # on --val-data
    use: str  # name of the file to take
    because: str


@dataclass(frozen=True)
class Exported:
    """One file, what it weighs, how fast it is, and how it compares."""

    name: str
    megabytes: float
    milliseconds: float  # per image, one at a time
    batched: float  # per image, in batches of 64
    parity: Parity
    truth: Truth | None = None  # of 8-bit integers


class Shipped(nn.Module):
    """A student in the form in which it is exported: `bytes_in` takes pixels as uint8 0..255,
    `probabilities` answers in those (of independent classes: one a class)."""

    def __init__(
        self, student: Classifier, *, bytes_in: bool = False, probabilities: bool = False
    ) -> None:
        super().__init__()
        self.student, self.bytes_in, self.probabilities = student, bytes_in, probabilities

    @property
    def output(self) -> str:
        """What its answer is called."""
        return "probabilities" if self.probabilities else "logits"

    def example(self, count: int) -> Tensor:
        """Blank images of the form that it takes."""
        kind = torch.uint8 if self.bytes_in else torch.float32
        return torch.zeros(count, *self.student.spec.shape, dtype=kind)

    def fed(self, pixels: Tensor) -> Tensor:
        """uint8 images [B, C, H, W] as it takes them."""
        return pixels if self.bytes_in else to_float(pixels)

    def decided(self, answers: Tensor) -> Tensor:
        """What its answers [N, K] decide, as `measures.decided` has it of logits."""
        alone = self.student.independent
        return decided(
            answers - 0.5 if self.probabilities and alone else answers, independent=alone
        )

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] to [B, K]."""
        if self.bytes_in:
            images = images.float() / 255
        answer: Tensor = self.student(images)
        return self.student.probabilities(answer) if self.probabilities else answer


def to_onnx(network: Shipped, path: Path, metadata: Mapping[str, str] | None = None) -> Answer:
    """Writes ONNX with a free batch, weights inside the file and its `metadata`; returns how it
    answers."""
    write_onnx(network, network.example(2), path, network.output)
    _write_metadata(path, metadata or {})
    return onnx_answer(path)


def _write_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Writes the metadata of an ONNX file; what the exporter noted at each node goes, since it
    tells where the code lies on this machine."""
    import onnx

    model = onnx.load(str(path))
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
    onnx.helper.set_model_props(model, dict(metadata))
    model.producer_name, model.producer_version = "synthkd", __version__
    write_atomic(path, model.SerializeToString())


def metadata(
    network: Shipped, names: Sequence[str], summary: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> dict[str, str]:  # fmt: skip
    """What an ONNX file, or a .pt2, tells of itself; lists are JSON."""
    spec = network.student.spec
    wanted = "uint8 0..255" if network.bytes_in else "float32 0..1"
    output = "logits, of which softmax makes probabilities"
    if network.student.independent:
        output = "a logit per class, of which sigmoid makes probabilities; several may apply"
    if network.probabilities:
        one = "a probability per class; several may apply"
        output = one if network.student.independent else "probabilities that sum to 1"
    return {
        "classes": json.dumps(list(names), ensure_ascii=False),
        "channels": str(spec.channels), "height": str(spec.height), "width": str(spec.width),
        "layout": "NCHW" + (", channels R, G, B" if spec.channels == 3 else ""),
        "range": wanted,
        "normalisation": "inside: " + json.dumps({"mean": spec.mean, "std": spec.std}),
        "output": output,
        "multi_label": str(network.student.independent).lower(),
        "student": without_folders(str(summary["student"])),
        "student_sha256": str(summary["student_sha256"]),
        "teacher": without_folders(str(manifest["teacher"])),
        "teacher_sha256": str(manifest["teacher_sha256"]),
        "synthkd_version": __version__,
    }  # fmt: skip


def to_int8(source: Path, path: Path, calibration: Tensor, metadata: Mapping[str, str]) -> Answer:
    """Quantises an ONNX file to int8 (static, weights per channel, ranges from the least to the
    greatest value on `calibration`), by ONNX Runtime's own tool.

    Activations are unsigned: signed ones are several times slower on x86, and no better.
    """
    telemetry_off()
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Images, sixteen at a time."""

        def __init__(self) -> None:
            self.parts = iter(torch.split(calibration, 16))

        def get_next(self) -> dict[str, Any] | None:
            part = next(self.parts, None)
            return None if part is None else {INPUT: part.numpy()}

    with warnings.catch_warnings(), _unlogged():
        warnings.simplefilter("ignore")
        quantization.quantize_static(
            str(source), str(path), Reader(), per_channel=True,
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
    _write_metadata(path, {**metadata, "quantised": "int8 weights, uint8 activations"})
    return onnx_answer(path)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keeps the advice of libraries' loggers from the terminal for a while."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def to_pt2(network: Shipped, path: Path, metadata: Mapping[str, str] | None = None) -> Answer:
    """Writes a torch.export program with a free batch, and its `metadata` in a file inside, as
    JSON; returns how it answers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            network, (network.example(2),),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )  # fmt: skip
        for node in program.graph.nodes:  # where the code lies on this machine
            node.meta.pop("stack_trace", None)
        torch.export.save(program, str(path), extra_files={TOLD: json.dumps(metadata or {})})
        loaded = torch.export.load(str(path)).module()  # ours, just written

    def answer(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = loaded(images)
        return logits

    return answer


def to_executorch(network: Shipped, path: Path) -> Answer:
    """Writes an ExecuTorch program lowered to XNNPACK, of batches of one."""
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.runtime import Runtime
    except ImportError:
        raise InputError(
            "--format executorch needs the extra executorch: pip install 'synthkd[executorch]'"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = to_edge_transform_and_lower(
            torch.export.export(network, (network.example(1),)),
            partitioner=[XnnpackPartitioner()],
        ).to_executorch()
    write_atomic(path, program.buffer)
    method = Runtime.get().load_program(str(path)).load_method("forward")

    def answer(images: Tensor) -> Tensor:
        return torch.cat([method.execute([image[None].contiguous()])[0] for image in images])

    return answer


@torch.no_grad()
def answered(answer: Answer, images: Tensor) -> Tensor:
    """What a network or a file answers to images [N, C, H, W], sixty-four at a time: [N, K]."""
    return torch.cat([answer(part) for part in torch.split(images, 64)]).float()


def compared(network: Shipped, answer: Answer, images: Tensor) -> Parity:
    """An exported file against the network it was made of, on images [N, C, H, W]."""
    own, other = answered(network, images), answered(answer, images)
    votes, voted = network.decided(own), network.decided(other)
    alone = network.student.independent
    balance = class_balance(voted, votes, 2 if alone else own.shape[1])
    return Parity(
        len(images), float((own - other).abs().max()), float(own.abs().max()),
        float((votes == voted).float().mean()), balance.balanced, balance.present, alone,
    )  # fmt: skip


def scored(
    network: Shipped, answer: Answer, other: Answer, images: Tensor, labels: Tensor
) -> Scored:
    """An 8-bit file, and the float file it was made of, on labelled images [N, C, H, W]. Labels
    are [N], or [N, K] of 0 and 1 where the network's classes are independent."""
    each = labels.dim() > 1
    answers = (answered(one, images) for one in (answer, other))
    votes, wide = (network.decided(a) if each else a.argmax(1) for a in answers)
    truth = labels.flatten()
    return Scored(
        len(images), float((votes == truth).float().mean()),
        float((wide == truth).float().mean()), float((votes == wide).float().mean()),
    )  # fmt: skip


def timed(
    answers: Mapping[str, Answer], images: Tensor, *, seconds: float = 1.0
) -> dict[str, tuple[float, float]]:
    """Milliseconds per image of each, one at a time and sixty-four at a time, in turns
    (`latency.milliseconds`)."""
    found = {}
    for batch in (images[:1], images[:64]):
        works = {name: _work(answer, batch) for name, answer in answers.items()}
        times = latency.milliseconds(works, seconds=seconds)
        found[len(batch)] = {name: ms / len(batch) for name, ms in times.items()}
    one, many = found.values() if len(found) > 1 else (*found.values(), *found.values())
    return {name: (one[name], many[name]) for name in answers}


def _work(answer: Answer, batch: Tensor) -> Callable[[], object]:
    def work() -> object:
        with torch.no_grad():
            return answer(batch)

    return work


def chosen(speed: float, parity: Parity, found: Scored | None) -> tuple[bool, str]:
    """Whether 8-bit integers, `speed` times as fast as floats, are to be used, and why.

    >>> chosen(0.4, Parity(100, 0.1, 1.0, 0.99, 0.98, 10), Scored(100, 0.9, 0.92, 0.97))
    (False, '8-bit integers are 2.5 times slower here and 2.0 points worse')
    >>> chosen(3.0, Parity(100, 0.1, 1.0, 1.0, 1.0, 10), None)[1]
    '8-bit integers are 3.0 times faster here and vote alike on 100.0% of every class'
    """
    times = f"{speed:.1f} times faster" if speed >= 1 else f"{1 / speed:.1f} times slower"
    if 1 / FASTER < speed < FASTER:
        times = "no faster"
    if found is not None:
        lost = found.float_accuracy - found.accuracy
        change = f"{abs(lost) * 100:.1f} points {'worse' if lost > 0 else 'better'}"
        quality = "no worse" if abs(lost) < 5e-4 else change
    elif parity.named < 2:
        lost, quality = 1.0, "not comparable: the student names one class whatever it is shown"
    else:
        lost, quality = 1 - parity.balanced, f"vote alike on {parity.balanced:.1%} of every class"
    return speed >= FASTER and lost <= NO_WORSE, f"8-bit integers are {times} here and {quality}"
