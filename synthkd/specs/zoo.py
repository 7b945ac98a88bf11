"""Networks of torchvision, timm and Hugging Face: architecture, weights, input contract.

Nothing is fetched unless the user says so with `--teacher-weights hub` or `--student-weights hub`.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.core.errors import InputError, quoted, suggest
from synthkd.core.files import read_table
from synthkd.core.findings import Finding
from synthkd.recipe import TeacherTable
from synthkd.specs import limits
from synthkd.specs.contract import Known, Source
from synthkd.specs.weights import Checkpoint, fill, read_checkpoint

REACHING = {"checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained"}  # outside the folder
# of torchvision: with auxiliary heads for training, and published weights for pixels in -1..1,
# which torchvision's networks make out of ImageNet's normalisation themselves
INCEPTIONS = ("inception_v3", "googlenet")
HALF = (0.5,) * 3
HUB = "hub"  # in place of a file of weights: those that the zoo offers
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def from_torchvision(name: str, weights: str, table: TeacherTable, role: str) -> Source:
    """`torchvision:NAME`."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise InputError(
            f"--{role} torchvision:{quoted(name)}: there is no such classifier in torchvision"
            f"{suggest(name, known) if len(name) > 2 else ''}"
        )
    offered = models.get_model_weights(name)
    default: Any = offered.DEFAULT if len(list(offered)) else None
    told = _of_torchvision(default)
    if weights == HUB:
        if default is None:
            raise InputError(f"--{role} torchvision:{name}: torchvision offers no weights for it")
        body = _fetched(lambda: models.get_model(name, weights=default), role, name)
        if name in INCEPTIONS:
            _simplify(body)
            told = replace(told, mean=HALF, std=HALF)
        return Source(body, told, True)
    held = held_in(weights, table, role)
    more = {"aux_logits": False} if name in INCEPTIONS else {}

    def build(classes: int) -> nn.Module:
        made: nn.Module = models.get_model(name, weights=None, num_classes=classes, **more)
        return made

    classes = table.classes or _classes_of(build, held, role, name)
    body = _built(lambda: build(classes), role, name)
    notes = fill(body, held) if held is not None else ()
    if name in INCEPTIONS and held is not None and classes == 1000:  # the published weights
        told = replace(told, mean=HALF, std=HALF)
    return Source(body, Known(3, told.size, told.mean, told.std), held is not None, notes)


def _simplify(body: Any) -> None:
    """Leaves out of one of the INCEPTIONS its auxiliary heads, and its change of the input's range,
    which no file of weights tells: the input contract has it."""
    body.transform_input = body.aux_logits = False
    for head in ("AuxLogits", "aux1", "aux2"):
        if hasattr(body, head):
            setattr(body, head, None)


def _of_torchvision(default: Any) -> Known:
    """What the transforms of the published weights do to an image."""
    if default is None:
        return Known(3, (224, 224), *IMAGENET)
    seen = default.transforms()
    side = int(seen.crop_size[0])
    names = tuple(str(name) for name in default.meta.get("categories", ()))
    return Known(3, (side, side), tuple(seen.mean), tuple(seen.std), len(names) or None, names)


def from_timm(name: str, weights: str, table: TeacherTable, role: str) -> Source:
    """`timm:NAME`."""
    import timm

    if not timm.is_model(name):
        close = suggest(name, timm.list_models())
        raise InputError(
            f"--{role} timm:{quoted(name)}: there is no such network in timm"
            f"{close if close.startswith('; did') else ''}"
        )
    try:
        found = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a known network, with a tag that nobody knows
        raise InputError(
            f"--{role} timm:{quoted(name)}: there are no weights of this tag"
        ) from None
    told = _of_timm(found.to_dict() if found is not None else {})
    if weights == HUB:
        body = _fetched(lambda: timm.create_model(name, pretrained=True), role, name)
        return Source(body, told, True)
    held = held_in(weights, table, role)
    channels = table.channels or told.channels or 3
    extra = {"img_size": table.image_size} if table.image_size and _is_sized(name) else {}

    def build(classes: int) -> nn.Module:
        made: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=classes, in_chans=channels, **extra
        )
        return made

    classes = table.classes or _classes_of(build, held, role, name)
    body = _built(lambda: build(classes), role, name)
    notes = fill(body, held) if held is not None else ()
    fits = channels == told.channels
    known = Known(channels, told.size, told.mean if fits else None, told.std if fits else None)
    return Source(body, known, held is not None, notes)


def held_in(weights: str, table: TeacherTable, role: str) -> Checkpoint | None:
    """What a file of weights holds, if there is one."""
    flag = "--teacher.weights_key" if role == "teacher" else ""
    return read_checkpoint(Path(weights), chosen=table.weights_key, flag=flag) if weights else None


def _classes_of(
    build: Callable[[int], nn.Module], held: Checkpoint | None, role: str, name: str
) -> int:
    """The number of classes that weights are for: the rows of what stands in the place of the
    network's last layer. 1000 where there are no weights."""
    if held is None:
        return 1000
    body = _built(lambda: build(1000), role, name)
    last = [
        key for key, m in body.named_modules() if getattr(m, "weight", None) is not None
        and isinstance(m, nn.Linear | nn.Conv2d) and len(m.weight) == 1000
    ]  # fmt: skip
    found = held.by_name(body.state_dict()).get(f"{last[-1]}.weight") if last else None
    return 1000 if found is None else len(found)


def _is_sized(name: str) -> bool:
    """Whether a network of timm is built for one size of image: those with position embeddings."""
    return any(word in name for word in ("vit", "deit", "swin", "mixer", "beit", "cait", "xcit"))


def _of_timm(config: dict[str, Any]) -> Known:
    shape = config.get("input_size")
    channels, size = (shape[0], (int(shape[1]), int(shape[2]))) if shape else (None, None)
    return Known(
        channels, size,
        tuple(config["mean"]) if config.get("mean") else None,
        tuple(config["std"]) if config.get("std") else None,
        config.get("num_classes") or None,
        tuple(str(n) for n in config.get("label_names") or ()),
    )  # fmt: skip


class Answer(nn.Module):
    """A network of transformers as one that takes images and returns logits; `flipped`, it wants
    the channels the other way round (blue, green, red)."""

    def __init__(self, network: nn.Module, *, flipped: bool = False) -> None:
        super().__init__()
        self.network, self.flipped = network, flipped

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, K]."""
        logits: Tensor = self.network(pixel_values=x.flip(1) if self.flipped else x).logits
        return logits


def from_hugging_face(folder: Path, role: str) -> Source:
    """`hf:DIR`: a local folder of an image classifier, of transformers or of timm."""
    where = f"--{role} hf:{quoted(folder)}"
    limits.check_folder(folder, where)
    config = read_table(folder / "config.json", where)
    if config.get("auto_map") or any(folder.glob("*.py")):
        raise InputError(f"{where}: it brings code of its own, which is never run")
    limits.check_numbers(config, where)
    files, held = _weights_in(folder, where)
    numbers, tensors = _size(files, held, where)
    if "architecture" in config or config.get("model_type") == "timm_wrapper":
        if held is None:
            held = read_checkpoint(files[0])
        body, told, notes = _of_timm_folder(held, config, numbers, tensors, where)
        return Source(body, told, True, notes)
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
    except ImportError:
        raise InputError(f"{where}: it needs the package transformers: install it") from None
    notes = ()
    try:
        with limits.quietly(), limits.within(numbers, tensors, where):
            if held is None:
                body, found = AutoModelForImageClassification.from_pretrained(
                    str(folder), local_files_only=True, use_safetensors=True,
                    trust_remote_code=False, output_loading_info=True,
                )  # fmt: skip
            else:
                plan = AutoConfig.from_pretrained(str(folder), local_files_only=True)
                body = AutoModelForImageClassification.from_config(plan, trust_remote_code=False)
    except InputError:
        raise
    except Exception as error:  # whatever a damaged folder makes the library say
        said = quoted(" ".join(str(error).split())[:200])
        if "ignore_mismatched_sizes" in said:  # it refers to a table that is not shown
            said = "its weights have other shapes than its config.json says"
        raise InputError(f"{where}: cannot be read as an image classifier: {said}") from None
    if held is not None:
        notes, found = fill(body, held), {"missing_keys": ()}
    counters = "num_batches_tracked"  # of BatchNorm: without meaning in eval mode
    if lacking := sorted(k for k in found["missing_keys"] if not k.endswith(counters)):
        # the library would make them up
        raise InputError(
            f"{where}: its weights lack {len(lacking)} tensors, {quoted(lacking[0])} among them: "
            "is this a classifier?"
        )
    path = folder / "preprocessor_config.json"
    seen = read_table(path, where) if path.is_file() else {}
    known = _sensible(lambda: _of_transformers(seen, config, where), where)
    flipped = bool(seen.get("do_flip_channel_order"))
    return Source(Answer(body.float(), flipped=flipped), known, True, notes)


def _weights_in(folder: Path, where: str) -> tuple[list[Path], Checkpoint | None]:
    """The files of weights in a folder: safetensors, else one of torch.save, read."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = read_table(index, where).get("weight_map")
        parts = set(named.values()) if isinstance(named, dict) else {None}
        for part in parts:
            plain = isinstance(part, str) and part == Path(part).name == PureWindowsPath(part).name
            if not plain or not (folder / str(part)).is_file():
                raise InputError(
                    f"{where}: {index.name} names {quoted(part)}, which is not a file in this "
                    "folder"
                )
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files, None
    others = [folder / name for name in ("pytorch_model.bin", "model.pth", "model.pt")]
    there = [path for path in others if path.is_file()]
    if not there:
        raise InputError(f"{where}: there is no .safetensors in it, and no pytorch_model.bin")
    return there[:1], read_checkpoint(there[0])


def _size(files: list[Path], held: Checkpoint | None, where: str) -> tuple[int, int]:
    """Numbers and tensors of the weights in a folder."""
    if held is None:
        return limits.size_of(files, where)
    return sum(t.numel() for t in held.tensors.values()), len(held.tensors)


def _sensible(read: Callable[[], Known], where: str) -> Known:
    """What the settings of a folder say; InputError where their form is one that nobody expects."""
    try:
        return read()
    except (TypeError, ValueError, KeyError, IndexError, AttributeError):
        raise InputError(f"{where}: its settings about images and classes make no sense") from None


def _of_timm_folder(
    held: Checkpoint, config: dict[str, Any], numbers: int, tensors: int, where: str
) -> tuple[nn.Module, Known, tuple[Finding, ...]]:
    import timm

    name = str(config.get("architecture"))
    arguments = config.get("model_args") or {}
    if not timm.is_model(name) or not isinstance(arguments, dict) or REACHING & set(arguments):
        raise InputError(f"{where}: {quoted(name)} is not a plain network of timm")

    def read() -> Known:
        cfg = config.get("pretrained_cfg") or {}
        return _of_timm({**cfg, "num_classes": config.get("num_classes") or cfg.get("num_classes"),
                         "label_names": config.get("label_names")})  # fmt: skip

    limits.check_numbers(arguments, f"{where}: model_args", most=limits.MOST_IN_ARGUMENTS)
    told = _sensible(read, where)

    def build() -> nn.Module:
        made: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=told.classes, **arguments
        )
        return made

    with limits.quietly(), limits.within(numbers, tensors, where) as most:
        try:
            with limits.on_paper(most, where):
                build()
        except InputError:
            raise
        except Exception:  # some networks want numbers while they are built
            pass
    with limits.quietly(), limits.within(numbers, tensors, where):
        try:
            body = build()
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{where}: timm cannot build {quoted(name)} so: {quoted(error, 160)}"
            ) from None
    return body, told, fill(body, held)


def _of_transformers(seen: dict[str, Any], config: dict[str, Any], where: str) -> Known:
    """What a processor's settings `seen` do to an image, and the contract that follows."""
    scale = float(seen.get("rescale_factor") or 1 / 255)
    if (
        not seen.get("do_rescale", True)
        or seen.get("rescale_offset")
        or abs(scale - 1 / 255) > 1e-6
    ):
        raise InputError(
            f"{where}: its preprocessor_config.json does not scale pixels to 0..1 "
            "(do_rescale, rescale_factor, rescale_offset), which is not supported"
        )
    labels = config.get("id2label") or {}
    names = tuple(str(labels[k]) for k in sorted(labels, key=int))
    size = seen.get("crop_size") if seen.get("do_center_crop") else seen.get("size")
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        size = (size.get("height") or edge, size.get("width") or edge)
    size = size or config.get("image_size")
    height, width = size if isinstance(size, tuple | list) else (size, size)
    normal = seen.get("do_normalize", True)
    mean, std = (
        tuple(float(v) for v in seen[key]) if normal and key in seen else None
        for key in ("image_mean", "image_std")
    )
    if std and seen.get("include_top"):  # EfficientNet divides twice
        std = tuple(v * v for v in std)
    return Known(
        int(config.get("num_channels") or 3), (int(height), int(width)) if height else None,
        mean, std, len(names) or None, names,
    )  # fmt: skip


def _built(build: Any, role: str, name: str) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body: nn.Module = build()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"--{role} {quoted(name)}: {quoted(error, 160)}") from None
    return body


def _fetched(build: Any, role: str, name: str) -> nn.Module:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            body: nn.Module = build()
    except Exception as error:
        raise InputError(
            f"--{role} {quoted(name)}: its weights cannot be fetched: {quoted(error, 120)}; "
            "give a file with --teacher-weights"
        ) from None
    return body
