"""The model card of a student: in its run directory, and beside its exported files.

Every string that came from elsewhere is text in it, and paths lose their folders.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from synthkd.cards import text
from synthkd.cards.text import plain
from synthkd.core.privacy import statement
from synthkd.core.words import estimate_in_words, without_folders
from synthkd.export.formats import Exported, Shipped, Truth
from synthkd.networks.classifier import Classifier
from synthkd.networks.pruned import is_pruned
from synthkd.recipe import is_installed_call
from synthkd.students.latency import INPUT, Conditions

TASK = "image-classification"
# what a summary tells of the student on labelled images, and how the card calls it
_SCORES = {
    "student_accuracy": ("accuracy", "accuracy"),
    "student_balanced_accuracy": ("balanced_accuracy", "balanced accuracy"),
    "agreement": ("agreement", "agreement with the teacher"),
    "student_ece": ("expected_calibration_error", "expected calibration error"),
}


def run_card(
    summary: Mapping[str, Any], manifest: Mapping[str, Any], names: Sequence[str],
    student: Classifier,
) -> str:  # fmt: skip
    """The card of a finished run: README.md of its directory."""
    shape = ", ".join(map(str, student.spec.shape))
    made_by, more, trusted = _builder(summary, manifest), "", ""
    if _is_code(made_by):
        more, trusted = ", trust_code=True", " --trust-code"
    elif made_by.startswith("<"):
        more = ", network=network"
    lines = [
        *_beginning(summary, manifest, names, "summary.json"),
        "## How to load it", "",
        *(["`network` is a network of the same form as the one that was given.", ""]
          if "network=" in more else []),
        "```python", "import synthkd", "import torch", "",
        f'student = synthkd.load_student("."{more})  # the folder of this file',
        f"images = torch.rand(1, {shape})  # [batch, channels, height, width], pixels in 0..1",
        f"print(student(images))  # logits [1, {student.classes}]; normalisation is inside",
        "```", "",
        f"`synthkd export .{trusted}` writes it as ONNX and in other formats, "
        f"`synthkd predict . IMAGE{trusted}` names the class of an image.", "",
        *_end(summary, manifest),
        "## How to repeat it", "",
        "```sh", f"synthkd distill --config recipe.toml{_trust(manifest)} --out again", "```", "",
        *_repeated(manifest),
    ]  # fmt: skip
    return "\n".join(lines)


def export_card(
    summary: Mapping[str, Any], manifest: Mapping[str, Any], names: Sequence[str],
    network: Shipped, files: Sequence[Exported] = (), conditions: Sequence[Conditions] = (),
    licence: str = "",
) -> str:  # fmt: skip
    """The card of an exported student: README.md beside its files."""
    lines = [
        *_beginning(summary, manifest, names, "classes.txt", licence),
        *_handling(network, files),
        "## Files", "",
        "| file | MB | ms per image, alone | in batches of 64 | same votes | largest difference |",
        "|---|---:|---:|---:|---:|---:|",
        *(f"| {f.name} | {f.megabytes:.2f} | {f.milliseconds:.3g} | {f.batched:.3g} "
          f"| {f.parity.agreement:.1%} of {f.parity.images:,} | {f.parity.largest:.2g} |"
          for f in files), "",
    ]  # fmt: skip
    if files and not files[0].parity.independent:
        named, known = files[0].parity.named, len(names)
        lines.append(f"Of {known:,} classes the student names {named:,} on these images.")
    lines += [
        f"Times by `synthkd export`, the machine otherwise idle: {plain(one)}."
        for one in conditions
    ]
    lines += [line for f in files if f.truth for line in ("", *_quantised(f.name, f.truth))]
    lines += ["", *_end(summary, manifest), "## How to repeat it", "",
              "From the run directory, by `synthkd distill --config recipe.toml"
              f"{_trust(manifest)} --out again` and `synthkd export again"
              f"{' --trust-code' * _is_code(_builder(summary, manifest))}`.", "",
              *_repeated(manifest)]  # fmt: skip
    return "\n".join(lines)


def _beginning(
    summary: Mapping[str, Any], manifest: Mapping[str, Any], names: Sequence[str],
    elsewhere: str, licence: str = "",
) -> list[str]:  # fmt: skip
    """Header, title, what is wrong with it, figures, and how it was made."""
    student, teacher = (
        without_folders(str(spec)) for spec in (summary["student"], manifest["teacher"])
    )
    read = summary["real_images_read"]
    tags = ["knowledge-distillation", "synthetic-data", *([] if read else ["data-free"])]
    measured = _measured(summary)
    head = text.header({
        "library_name": "synthkd", "pipeline_tag": TASK, "license": licence or None, "tags": tags,
        "metrics": ["accuracy"] if measured else None,
        "model-index": [{"name": student, "results": measured}] if measured else None,
    })  # fmt: skip
    return [
        head, "", f"# {plain(student)}, distilled from {plain(teacher)}", "",
        "A small image classifier, made with synthkd. It learned what its teacher answers to "
        f"{_learned_from(summary)}. It is derived from that teacher, whose licence may apply to "
        "it.", "",
        *text.findings(summary.get("findings")),
        *text.table(_figures(summary, manifest, names, elsewhere)),
        *_made(summary, manifest),
    ]  # fmt: skip


def _learned_from(summary: Mapping[str, Any]) -> str:
    """Which images it saw."""
    share, read = summary["synthetic_share"], summary["real_images_read"]
    if not read:
        return "synthetic images; no real image was read"
    return f"images of which {share:.1%} were synthetic; {read:,} real ones were read"


def _measured(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was measured on labelled images, as an entry of `model-index`."""
    if summary.get("student_accuracy") is None:
        return []
    name = without_folders(str(summary["val_data"]))
    word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "images"
    metrics = [
        {"type": kind, "value": float(summary[key]), "name": title}
        for key, (kind, title) in _SCORES.items()
        if summary.get(key) is not None
    ]
    return [{"task": {"type": TASK}, "dataset": {"type": word, "name": name}, "metrics": metrics}]


def _figures(
    summary: Mapping[str, Any], manifest: Mapping[str, Any], names: Sequence[str], elsewhere: str
) -> dict[str, str]:
    """What it is and how good it is; beside each share stands a constant's, where it is known."""
    large = summary["teacher_parameters"]
    share = f" ({summary['student_parameters'] / large:.1%} of the teacher's)" if large else ""
    kind = plain(summary.get("held_out", "synthetic"))
    rows = {
        "parameters": f"{summary['student_parameters']:,}{share}",
        "teacher": plain(without_folders(str(manifest["teacher"]))),
        "teacher, SHA-256": f"`{text.code(manifest['teacher_sha256'])}`",
        "student, SHA-256": f"`{text.code(summary['student_sha256'])}`",
        "classes": text.classes(names, elsewhere),
        "images seen in training": f"{summary['images_seen']:,}, "
        f"{summary['synthetic_share']:.1%} synthetic",
        "real images read": f"{summary['real_images_read']:,}",
        "promise level": f"{plain(manifest.get('promise_level', 3))}: "
        f"{plain(manifest.get('promise', ''))}",
        f"agreement on held-out {kind} images": f"{summary['held_out_agreement']:.2%}",
        **_balanced(summary, kind),
        **_estimated(summary),
        "accuracy": "not measured",
    }
    if summary.get("student_accuracy") is None:
        return rows
    data = plain(without_folders(str(summary["val_data"])))
    rows["accuracy"] = (
        f"{summary['student_accuracy']:.2%} on {summary['val_images']:,} images of {data}; "
        f"the teacher {summary['teacher_accuracy']:.2%}{_constant(summary, 'constant_accuracy')}"
    )
    if summary.get("student_balanced_accuracy") is not None:
        rows["balanced accuracy"] = (
            f"{summary['student_balanced_accuracy']:.2%}; the teacher "
            f"{summary['teacher_balanced_accuracy']:.2%}"
            f"{_constant(summary, 'constant_balanced_accuracy')}"
        )
    rows["agreement with the teacher"] = f"{summary['agreement']:.2%} of these images"
    if summary.get("student_ece") is not None:
        rows["expected calibration error"] = f"{summary['student_ece']:.2%}"
    return rows


def _constant(summary: Mapping[str, Any], key: str) -> str:
    """What naming the same class every time would get."""
    value = summary.get(key)
    return "" if value is None else f"; a constant classifier {value:.2%}"


def _estimated(summary: Mapping[str, Any]) -> dict[str, str]:
    """The agreement that is to be expected on real images, where it was estimated."""
    found = summary.get("estimated_agreement")
    if not isinstance(found, dict):
        return {}
    return {"agreement on real images, estimated without data": estimate_in_words(found)}


def _balanced(summary: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Agreement in which every class counts alike, and the worst class."""
    found = summary.get("held_out_balance")
    if not isinstance(found, dict) or found.get("balanced_agreement") is None:
        return {}
    told = f"{found['balanced_agreement']:.2%}; a constant classifier "
    told += f"{found['constant_classifier']:.2%}"
    worst = found.get("worst_class")
    if isinstance(worst, dict) and worst.get("agreement") is not None:
        told += f"; worst class {plain(worst['name'])}: {worst['agreement']:.1%} of "
        told += f"{worst['images']:,}"
    return {f"the same, every class counted alike, on held-out {kind} images": told}


def _made(summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[str]:
    """The recipe in short."""
    stages = manifest.get("stages")
    names = [
        f"{plain(one.get('name', ''))} ({plain(one.get('generator', ''))})"
        for one in (stages if isinstance(stages, list) else [])[: text.NAMED]
        if isinstance(one, dict)
    ]
    said = [f"Stages, each with what makes its images: {', '.join(names)}."] if names else []
    made = summary.get("images_synthesized")
    if made is not None:
        said.append(f"{made:,} images were synthesized and {summary['images_seen']:,} learned.")
    if summary.get("teacher_queries") is not None:
        access = plain(summary.get("teacher_access", "full"))
        said.append(
            f"The teacher was asked about {summary['teacher_queries']:,} images (access: {access})."
        )
    said.append("Labelled images never chose the weights.")
    level = manifest.get("promise_level", 3)
    return [
        "## How it was made", "", " ".join(said), "",
        *text.promise(level, manifest.get("promise", "")),
    ]  # fmt: skip


def _end(summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[str]:
    """Limits, time and machine, and the statement about privacy."""
    tested = (
        "Not tested on any real image. Agreement on synthetic images says whether it follows the "
        "teacher there; it is no estimate of the accuracy on real ones."
    )
    if summary.get("student_accuracy") is not None:
        data = plain(without_folders(str(summary["val_data"])))
        tested = f"Tested on {summary['val_images']:,} images of {data}, and on no others."
    level = manifest.get("promise_level", 3)
    return [
        "## Limits", "",
        f"- {tested}",
        "- Not tested on images of another origin, on noise, blur or other corruptions, on images "
        "made to mislead it, or for differences between groups of people.",
        "- What its teacher gets wrong, or was built to get wrong, it has learned.", "",
        *text.machine(summary.get("wall_seconds"), manifest, summary.get("peak_memory_mb")),
        "## Privacy", "", statement(summary["real_images_read"], level=level), "",
    ]  # fmt: skip


def _repeated(manifest: Mapping[str, Any]) -> list[str]:
    """What has to be the same for the same result."""
    return [
        "It takes the teacher and the recipe of these SHA-256, "
        f"`{text.code(manifest.get('teacher_sha256', ''))}` and "
        f"`{text.code(manifest.get('recipe_sha256', ''))}`, seed {plain(manifest.get('seed', 0))}. "
        "With a budget in images the student is the same bit for bit on the same kind of machine "
        "with as many threads; with one in minutes the clock decides. Versions: "
        f"{text.versions(manifest)}.", "",
    ]  # fmt: skip


def _builder(summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """The SPEC of what builds the student's network: of a pruned one, the teacher."""
    student = str(summary["student"])
    return str(manifest["teacher"]) if is_pruned(student) else student


def _trust(manifest: Mapping[str, Any]) -> str:
    """The flag that running the recipe again needs: a recipe never carries it."""
    specs = (manifest.get("teacher"), manifest.get("student"))
    return " --trust-code" if any(map(_is_code, specs)) else ""


def _is_code(spec: object) -> bool:
    """Whether a SPEC names code that builds a network."""
    return ".py:" in str(spec) or is_installed_call(str(spec))


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
                  "0..1 and answers in probabilities; it takes the code that built it, if any, and "
                  "then `--trust-code`.", ""]  # fmt: skip
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
