"""A student as files that run elsewhere: ONNX, torch.export, ExecuTorch, and the model card.

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
from synthkd.measures import class_balance, decided
from synthkd.networks.classifier import Classifier
from synthkd.specs.graphs import telemetry_off
from synthkd.students import latency
from synthkd.students.latency import INPUT, Answer, Conditions, onnx_answer, write_onnx

FORMATS = ("safetensors", "onnx", "pt2", "executorch")
TOLERANCE = 1e-3  # of the largest logit
FOUND = 10  # findings of a run shown in its card
NAMED = 20  # classes named in a card; all of them stand in classes.txt
FASTER, NO_WORSE = 1.1, 0.01  # times as fast, and points worse, for integers to be worth their name
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
    """Writes the metadata of an ONNX file."""
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, dict(metadata))
    model.producer_name, model.producer_version = "synthkd", __version__
    write_atomic(path, model.SerializeToString())


def metadata(
    network: Shipped, names: Sequence[str], summary: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> dict[str, str]:  # fmt: skip
    """What an ONNX file tells of itself; lists are JSON."""
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
        "student": str(summary["student"]), "student_sha256": str(summary["student_sha256"]),
        "teacher": str(manifest["teacher"]), "teacher_sha256": str(manifest["teacher_sha256"]),
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


def to_pt2(network: Shipped, path: Path) -> Answer:
    """Writes a torch.export program with a free batch; returns how it answers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            network, (network.example(2),),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )  # fmt: skip
        torch.export.save(program, str(path))
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


def model_card(
    summary: Mapping[str, Any],
    manifest: Mapping[str, Any],
    files: Sequence[Exported],
    names: Sequence[str],
    network: Shipped | None = None,
    conditions: Sequence[Conditions] = (),
) -> str:
    """What a student is, as a Markdown file with the front matter of Hugging Face; with `network`
    also how it is run."""
    accuracy, level = summary.get("student_accuracy"), manifest.get("promise_level", 3)
    large = summary["teacher_parameters"]
    share = f" ({summary['student_parameters'] / large:.1%} of the teacher's)" if large else ""
    shown = ", ".join(_plain(name) for name in names[:NAMED])
    more = f" … ({len(names) - NAMED:,} more in classes.txt)" if len(names) > NAMED else ""
    kind = _plain(str(summary.get("held_out", "synthetic")))
    rows = {
        "parameters": f"{summary['student_parameters']:,}{share}",
        "teacher, SHA-256": f"`{_code(manifest['teacher_sha256'])}`",
        "student, SHA-256": f"`{_code(summary['student_sha256'])}`",
        "classes": f"{len(names)}: {shown}{more}",
        "images seen in training": f"{summary['images_seen']:,}, "
        f"{summary['synthetic_share']:.1%} synthetic",
        "real images read": f"{summary['real_images_read']:,}",
        "promise level": f"{_plain(str(level))}: {_plain(str(manifest.get('promise', '')))}",
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
        "", *_found(summary), "| | |", "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()), "",
    ]  # fmt: skip
    if network is None:
        lines += [
            "Images go in as [batch, channels, height, width] with pixels in 0..1; logits come "
            "out.", "Normalisation is inside.", "",
        ]  # fmt: skip
    else:
        lines += _handling(network, files)
    lines += [
        "| file | MB | ms per image, alone | in batches of 64 | same votes | largest difference |",
        "|---|---:|---:|---:|---:|---:|",
        *(f"| {f.name} | {f.megabytes:.2f} | {f.milliseconds:.3g} | {f.batched:.3g} "
          f"| {f.parity.agreement:.1%} of {f.parity.images:,} | {f.parity.largest:.2g} |"
          for f in files), "",
    ]  # fmt: skip
    if files and not files[0].parity.independent:
        named, known = files[0].parity.named, len(names)
        lines.append(f"Of {known:,} classes the student names {named:,} on these images.")
    for one in conditions:
        lines.append(f"Times by `synthkd export`, the machine otherwise idle: {_plain(str(one))}.")
    lines += [line for f in files if f.truth for line in ("", *_quantised(f.name, f.truth))]
    lines += ["", "## Privacy", "", _privacy(level, summary["real_images_read"]), ""]
    return "\n".join(lines)


def _found(summary: Mapping[str, Any]) -> list[str]:
    """What the run itself found to be wrong with the student."""
    found = summary.get("findings") or []
    lines = []
    for one in found[:FOUND] if isinstance(found, list) else []:
        if isinstance(one, dict):
            word = "**Of no use**" if one.get("serious") else "Warning"
            seen, remedy = (_plain(str(one.get(key, ""))) for key in ("seen", "remedy"))
            lines += [f"{word}: {seen}. To mend it: {remedy}.", ""]
    return lines


def _quantised(name: str, truth: Truth) -> list[str]:
    """The truth about 8-bit integers, in two lines."""
    lines = [f"**Use {truth.use}**: {truth.because}.", ""]
    lines.append(
        f"{name}: calibrated on {truth.calibrated}; on {truth.judged} it votes as the float file "
        f"on {truth.parity.agreement:.1%} (mean over {truth.parity.groups}: "
        f"{truth.parity.balanced:.1%})"
        + (
            f"; accuracy {truth.scored.accuracy:.2%} against {truth.scored.float_accuracy:.2%} on "
            f"{truth.scored.images:,} labelled images."
            if truth.scored
            else "; its accuracy was not measured (--val-data)."
        )
    )
    return lines


_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def _handling(network: Shipped, files: Sequence[Exported]) -> list[str]:
    """What goes in, what comes out, and the lines that run it."""
    spec = network.student.spec
    pixels = "bytes 0..255 (uint8)" if network.bytes_in else "float32 in 0..1"
    order = {1: "grey", 2: "grey and opacity", 3: "red, green, blue"}.get(spec.channels, "RGBA")
    answer = "logits; softmax makes probabilities of them"
    if network.student.independent:
        answer = (
            "a logit per class, of which sigmoid makes a probability; several classes may apply"
        )
    if network.probabilities:
        answer = "probabilities that sum to 1"
        if network.student.independent:
            answer = "a probability per class; several classes may apply"
    lines = [
        "## Input and output", "",
        f"- in: `{INPUT}`, [batch, {spec.channels}, {spec.height}, {spec.width}], {pixels}; "
        f"channels: {order}. Normalisation is inside.",
        f"- out: `{network.output}`, [batch, {network.student.classes}]: {answer}.",
        "- class names in order: `classes.txt`, one a line; in ONNX files also in their metadata.",
        "",
    ]  # fmt: skip
    names = [f.name for f in files]
    graph = next((f.truth.use for f in files if f.truth), "student.onnx")
    if graph in names:
        lines += ["## How to run it", "", "```python", *_python(network, graph), "```", ""]
    elif "student.pt2" in names:
        lines += ["## How to run it", "", "`torch.export.load(\"student.pt2\").module()` answers a "
                  "batch of images.", ""]  # fmt: skip
    if "student.safetensors" in names:
        lines += ["`student.safetensors` is for `synthkd predict . IMAGE`, which takes pixels in "
                  "0..1 and answers in probabilities.", ""]  # fmt: skip
    return lines


def _python(network: Shipped, graph: str) -> list[str]:
    """Lines that name the class of image.png."""
    spec = network.student.spec
    array = "np.asarray(image)" + ("[None, None]" if spec.channels == 1 else "")
    if spec.channels > 1:
        array += ".transpose(2, 0, 1)[None]"
    if not network.bytes_in:
        array = f"{array}.astype(np.float32) / 255"
    last = ["probabilities = answer"]
    if not network.probabilities and network.student.independent:
        last = ["probabilities = 1 / (1 + np.exp(-answer))"]
    elif not network.probabilities:
        last = ["odds = np.exp(answer - answer.max())", "probabilities = odds / odds.sum()"]
    show = "print(names[probabilities.argmax()], probabilities.max())"
    if network.student.independent:
        show = "print({n: p for n, p in zip(names, probabilities) if p > 0.5})"
    return [
        "import json", "import numpy as np", "import onnxruntime", "from PIL import Image", "",
        f'session = onnxruntime.InferenceSession("{graph}")',
        'names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])',
        f'image = Image.open("image.png").convert("{_MODES[spec.channels]}")',
        f"image = image.resize(({spec.width}, {spec.height}), Image.Resampling.BILINEAR)",
        f"images = {array}",
        f'answer = session.run(None, {{"{INPUT}": images}})[0][0]', *last, show,
    ]  # fmt: skip


def _privacy(level: int, read: int) -> str:
    """The statement; where real images were read, by this run or by one before, without its first
    sentence."""
    if level <= 1 and not read:
        return PRIVACY
    began = "This run read real images. "
    if not read:
        began = "This run read no real images, but what it began with had seen some. "
    return began + PRIVACY.split("result. ", 1)[1]


def _code(text: object) -> str:
    """A foreign string between the marks of code: what is no letter or digit is left out."""
    return "".join(c for c in str(text) if c.isascii() and c.isalnum())


def _plain(text: str) -> str:
    """A foreign name in a table of Markdown."""
    kept = "".join(c if c.isprintable() else " " for c in text).replace("&", "&amp;")
    for mark in "\\|`<>[]*_#":
        kept = kept.replace(mark, "\\" + mark if mark in "\\|`*_#[]" else " ")
    return kept
