"""Diffusion models as folders of diffusers: ours are written as such, others' are borrowed.

A folder is data: JSON and safetensors. Nothing in it is run, whatever its model_index.json asks
for; weights that are pickles are refused.

B batch, C channels, H height, W width of what is denoised.
"""

import functools
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd import files
from synthkd.denoising import classifier_free
from synthkd.errors import InputError, quoted
from synthkd.files import read_table
from synthkd.images import ImageSpec, recoloured, resized
from synthkd.teachers import Teacher

HUB = "hub:"
INDEX = "model_index.json"
OURS = "synthkd.json"  # what we know about a folder that we wrote
# what is understood: pipelines of diffusers by what they can be told
PIXELS = ("DDPMPipeline", "DDIMPipeline", "ConsistencyModelPipeline")
CLASSES = ("DiTPipeline",)
TEXT = ("StableDiffusionPipeline",)
KNOWN = (*PIXELS, *CLASSES, *TEXT)
NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder")
LIBRARIES = ("diffusers", "transformers")


def is_folder(path: str) -> bool:
    """Whether a path is a diffusers folder, a run that has left one, or `hub:OWNER/NAME`."""
    return path.startswith(HUB) or (bool(path) and _folder(path) is not None)


@functools.cache
def _fetched(name: str) -> Path:
    """A model of the hub, as data alone: JSON, text and safetensors; over the network, because the
    user wrote `hub:`."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except Exception as error:  # no network, no such model, no room
        said = " ".join(str(error).split())[:120]
        raise InputError(
            f"--generator-from {quoted(HUB + name)}: it cannot be fetched: {quoted(said)}"
        ) from None


def _folder(path: str) -> Path | None:
    if path.startswith(HUB):
        return _fetched(path.removeprefix(HUB))
    for folder in (Path(path), Path(path) / "diffusion"):
        if (folder / INDEX).is_file():
            return folder
    return None


class Borrowed:
    """A denoiser out of a folder, as the sampler sees it. It is frozen."""

    def __init__(
        self,
        network: torch.nn.Module,
        schedule: Mapping[str, Any],
        spec: ImageSpec,
        *,
        classes: int = 0,
        words: Tensor | None = None,
        vae: Any = None,
        scale: float = 1.0,
    ) -> None:
        self.network = network.requires_grad_(False).eval()
        self.schedule, self.spec, self.classes = schedule, spec, classes
        self.vae = vae.requires_grad_(False).eval() if vae is not None else None
        self.words = words  # [K + 1, L, E] embeddings of the class names, the empty text last
        self.scale = scale
        config: Any = network.config
        side = config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        self.shape = (int(config.in_channels), int(height), int(width))
        self.kind = str(schedule.get("prediction_type", "epsilon"))
        self.bfloat16 = False

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.network.parameters()).device

    def __call__(self, noisy: Tensor, step: int, labels: Tensor) -> Tensor:
        """The prediction [B, C, H, W]; label −1 is no class."""
        if not self.classes:
            return self._ask(noisy, step, None)
        return classifier_free(
            lambda images, asked: self._ask(images, step, asked), noisy, labels, self.classes,
            self.scale,
        )  # fmt: skip

    def _ask(self, noisy: Tensor, step: int, labels: Tensor | None) -> Tensor:
        times = torch.full((len(noisy),), step, device=noisy.device)
        more: dict[str, Tensor] = {}
        if labels is not None and self.words is not None:
            more = {"encoder_hidden_states": self.words[labels]}
        elif labels is not None:
            more = {"class_labels": labels}
        with torch.autocast(noisy.device.type, torch.bfloat16, enabled=self.bfloat16):
            found = self.network(noisy, timestep=times, **more).sample
        # some also predict their variance
        return found[:, : self.shape[0]].float()  # type: ignore[no-any-return]

    def decoded(self, clean: Tensor) -> Tensor:
        """Images for the teacher, in 0..1 where the denoiser keeps to its range."""
        if self.vae is not None:
            factor = float(self.vae.config.scaling_factor)
            clean = self.vae.decode(clean / factor).sample
        images = resized(clean / 2 + 0.5, (self.spec.height, self.spec.width))
        return recoloured(images, self.spec.channels)


# Reading


def open_folder(path: Path, teacher: Teacher, *, scale: float, prompt: str) -> Borrowed:
    """The denoiser of a local folder, in float32, for this teacher's images and classes.

    Raises InputError, one line, for whatever is missing, foreign or unsafe in it.
    """
    folder = _folder(str(path))
    if folder is None:
        raise InputError(f"--generator-from {quoted(path)}: there is no {INDEX} in it")
    index = read_table(folder / INDEX, _where(folder))
    kind = index.get("_class_name")
    if not isinstance(kind, str):
        raise InputError(f"{_where(folder)}: its pipeline is code of its own, which is never run")
    if kind not in KNOWN:
        known = ", ".join(KNOWN)
        raise InputError(f"{_where(folder)}: {quoted(kind)} is not known; known: {known}")
    for name, entry in index.items():
        if name.startswith("_") or name in NOT_NEEDED or not isinstance(entry, list):
            continue
        if len(entry) != 2 or (entry[0] is not None and entry[0] not in LIBRARIES):
            raise InputError(
                f"{_where(folder)}: component {quoted(name)} is code of its own, which is never run"
            )
    schedule = read_table(folder / "scheduler" / "scheduler_config.json", _where(folder))
    if "beta_schedule" not in schedule:
        raise InputError(
            f"{_where(folder)}: its scheduler has no betas: a consistency model of another kind, "
            "which is not understood"
        )
    spec, device = teacher.spec, teacher.classifier.mean.device
    if kind in PIXELS:
        unet = _network(folder, "unet", "UNet2DModel")
        _check_channels(folder, unet.config.in_channels, spec)
        told = unet.config.num_class_embeds or 0
        if told not in (0, teacher.classes, teacher.classes + 1):
            raise InputError(
                f"{_where(folder)}: it makes {told} classes, the teacher sees {teacher.classes}"
            )
        free = told == teacher.classes + 1  # the last label is that of no class
        made = Borrowed(
            unet, schedule, spec, classes=min(told, teacher.classes), scale=scale if free else 1.0
        )
    elif kind in CLASSES:
        network = _network(folder, "transformer", "DiTTransformer2DModel")
        vae = _network(folder, "vae", "AutoencoderKL")
        classes = int(network.config.num_embeds_ada_norm)
        made = Borrowed(network, schedule, spec, classes=classes, vae=vae, scale=scale)
    else:
        unet = _network(folder, "unet", "UNet2DConditionModel")
        vae = _network(folder, "vae", "AutoencoderKL")
        words = _embeddings(folder, [prompt.replace("{}", name) for name in teacher.names])
        made = Borrowed(
            unet, schedule, spec, classes=teacher.classes, words=words.to(device), vae=vae,
            scale=scale,
        )  # fmt: skip
    for part in (made.network, made.vae):
        if part is not None:
            part.to(device)
    return made


def notes(path: str) -> list[str]:
    """What a person should know about a borrowed folder before it is used, a line each."""
    folder = _folder(path)
    if folder is None:
        return []
    index = read_table(folder / INDEX, _where(folder))
    known = about(folder)
    told = [f"generator borrowed: {index.get('_class_name')} in {folder}"]
    if not known:
        told.append("nobody here knows what it was trained on: promise level 1, outside prior")
    if isinstance(index.get("safety_checker"), list) and index["safety_checker"][0]:
        told.append("its safety checker is not used: images are judged by your teacher")
    if any(folder.glob("*/*.fp16.safetensors")):
        told.append("its weights are half precision: read as float32")
    return told


def about(folder: Path) -> dict[str, Any]:
    """What we wrote down about a folder of ours; nothing for others'."""
    path = folder / OURS
    return read_table(path, _where(folder)) if path.is_file() else {}


def promise_of(path: str) -> int:
    """The promise level that images of a borrowed generator can have."""
    folder = _folder(path)
    if folder is None:
        return 0
    level = about(folder).get("promise_level", 1)
    return level if isinstance(level, int) and level in (0, 1, 2, 3) else 1


def _network(folder: Path, name: str, kind: str) -> Any:
    """A network out of its subfolder: config.json and safetensors, float32."""
    import diffusers

    place = folder / name
    read_table(place / "config.json", _where(place))
    plain = place / "diffusion_pytorch_model.safetensors"
    half = place / "diffusion_pytorch_model.fp16.safetensors"
    if not plain.is_file() and not half.is_file():
        pickled = sorted([*place.glob("*.bin"), *place.glob("*.pt"), *place.glob("*.ckpt")])
        if pickled:
            raise InputError(
                f"{_where(folder)}: {name}/{pickled[0].name} is a pickle, which can run code: "
                "convert it to safetensors"
            )
        raise InputError(f"{_where(folder)}: {name}/{plain.name} is missing")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = getattr(diffusers, kind).from_pretrained(
                str(place), local_files_only=True, use_safetensors=True,
                torch_dtype=torch.float32, low_cpu_mem_usage=False,
                variant=None if plain.is_file() else "fp16",
            )  # fmt: skip
    except Exception as error:  # whatever a damaged file makes the library say
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{_where(folder)}: {name} cannot be read as a {kind}: {said}") from None
    return network.float()


def _embeddings(folder: Path, texts: list[str]) -> Tensor:
    """The text encoder's states of some texts and of the empty one, [K + 1, L, E]."""
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError:
        raise InputError(
            f"{_where(folder)}: text-conditional models want the package transformers: install it"
        ) from None
    if not (folder / "text_encoder" / "model.safetensors").is_file():
        raise InputError(f"{_where(folder)}: text_encoder/model.safetensors is missing")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(
            str(folder / "tokenizer"), local_files_only=True, trust_remote_code=False
        )
        encoder = CLIPTextModel.from_pretrained(
            str(folder / "text_encoder"), local_files_only=True, use_safetensors=True,
            torch_dtype=torch.float32,
        )  # fmt: skip
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{_where(folder)}: its text encoder cannot be read: {said}") from None
    tokens = tokenizer(
        [*texts, ""], padding="max_length", truncation=True, return_tensors="pt",
        max_length=tokenizer.model_max_length,
    )  # fmt: skip
    with torch.no_grad():
        return encoder(tokens.input_ids)[0].float()  # type: ignore[no-any-return]


def _check_channels(folder: Path, channels: int, spec: ImageSpec) -> None:
    if (channels, spec.channels) not in ((1, 1), (3, 3), (1, 3), (3, 1)):
        raise InputError(
            f"{_where(folder)}: it makes images of {channels} channels, "
            f"the teacher takes {spec.channels}"
        )


def _where(folder: Path) -> str:
    return f"--generator-from {quoted(folder)}"


# Writing


def save_folder(
    unet: Any, schedule: Mapping[str, Any], folder: Path, known: dict[str, Any]
) -> None:
    """Writes a denoiser as a folder that diffusers alone can load and sample:

        DiffusionPipeline.from_pretrained(folder)(batch_size=2, class_labels=[3, 5],
                                                  num_inference_steps=8)

    `ConsistencyModelPipeline` is the pipeline of theirs that tells a UNet2DModel its classes; with
    a DDIM scheduler it samples as DDIM does. Label K stands for no class. `known` is written beside
    it. The folder appears whole or not at all.
    """
    from diffusers import ConsistencyModelPipeline, DDIMScheduler

    scheduler: Any = DDIMScheduler(**schedule)
    partial = folder.with_name(f".{folder.name}.tmp")
    if partial.exists():
        shutil.rmtree(partial)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ConsistencyModelPipeline(unet=unet, scheduler=scheduler).save_pretrained(
            str(partial), safe_serialization=True
        )
    files.write_json(partial / OURS, known)
    if folder.exists():  # of a run that was interrupted while it was scored
        shutil.rmtree(folder)
    partial.rename(folder)
