"""Diffusion models as folders of diffusers: ours are written as such, others' are borrowed.

A folder is data: JSON and safetensors. Nothing in it is run, whatever its model_index.json asks
for; weights that are pickles are refused.

B batch, C channels, H height, W width of what is denoised.
"""

import functools
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd.core import files
from synthkd.core.errors import InputError, quoted
from synthkd.core.files import read_table
from synthkd.core.images import ImageSpec, recoloured, resized
from synthkd.core.promise import inherited_level
from synthkd.specs import limits
from synthkd.synthesis.diffusion.maths import classifier_free
from synthkd.teachers.protocol import Teacher

HUB = "hub:"
INDEX = "model_index.json"
OURS = "synthkd.json"  # what we know about a folder that we wrote
# what is understood: pipelines of diffusers by what they can be asked for
PIXELS = ("DDPMPipeline", "DDIMPipeline", "ConsistencyModelPipeline")
CLASSES = ("DiTPipeline",)
TEXT = ("StableDiffusionPipeline",)
KNOWN = (*PIXELS, *CLASSES, *TEXT)
NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder")
LIBRARIES = ("diffusers", "transformers")
PREDICTED = ("epsilon", "v_prediction", "sample")
LATENT = {"clip_sample": False, "thresholding": False}  # latents have no range to be kept to


def is_diffusers_folder(path: str) -> bool:
    """Whether a path is a diffusers folder, a run that has left one, or `hub:OWNER/NAME`."""
    return path.startswith(HUB) or (bool(path) and _folder(path) is not None)


_offline = ContextVar("_offline", default=False)


@contextmanager
def offline(wanted: bool = True) -> Iterator[None]:
    """Nothing is fetched while the `with` lasts, as in a dry run: what `hub:` names is then a model
    that has been fetched before, or an InputError."""
    token = _offline.set(wanted)
    try:
        yield
    finally:
        _offline.reset(token)


@functools.cache
def _fetched(name: str, offline: bool) -> Path:
    """A model of the hub, as data alone: JSON, text and safetensors; over the network, because the
    user wrote `hub:`, unless `offline`."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=offline))
    except Exception as error:  # no network, no such model, no room
        if offline:
            raise InputError(
                f"--generator-from {quoted(HUB + name)}: it is not on this machine yet, and a dry "
                "run fetches nothing: give the name of a folder, or run without --dry-run"
            ) from None
        said = " ".join(str(error).split())[:120]
        raise InputError(
            f"--generator-from {quoted(HUB + name)}: it cannot be fetched: {quoted(said)}"
        ) from None


def _folder(path: str) -> Path | None:
    if path.startswith(HUB):
        return _fetched(path.removeprefix(HUB), _offline.get())
    for folder in (Path(path), Path(path) / "diffusion"):
        if (folder / INDEX).is_file():
            return folder
    return None


class PretrainedDenoiser:
    """A denoiser out of a folder, as the sampler sees it. It is frozen."""

    def __init__(
        self,
        network: torch.nn.Module,
        schedule: Mapping[str, Any],
        spec: ImageSpec,
        *,
        classes: int = 0,
        none: int | None = None,
        words: Tensor | None = None,
        vae: Any = None,
        scale: float = 1.0,
    ) -> None:
        self.network = network.requires_grad_(False).eval()
        self.schedule, self.spec = schedule, spec
        self.classes = classes  # of the teacher's, those it can be asked for: all or 0
        self.none = none  # its label of no class, if it takes labels
        self.vae = vae.requires_grad_(False).eval() if vae is not None else None
        self.words = words  # [K + 1, L, E] embeddings of the class names, the empty text last
        self.scale = scale
        config: Any = network.config
        height, width = sides(config)
        self.shape = (int(config.in_channels), int(height), int(width))
        self.prediction_type = str(schedule.get("prediction_type", "epsilon"))
        self.bfloat16 = False

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.network.parameters()).device

    def __call__(self, noisy: Tensor, step: int, labels: Tensor | None) -> Tensor:
        """The prediction [B, C, H, W]; label −1 is no class, None that no image has one."""
        if self.none is None:
            return self._ask(noisy, step, None)
        if not self.classes:  # those it knows are others
            labels = None
        return classifier_free(
            lambda images, asked: self._ask(images, step, asked), noisy, labels, self.none,
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

    def decoded(self, x0: Tensor) -> Tensor:
        """Images for the teacher, in 0..1 where the denoiser keeps to its range."""
        if self.vae is not None:
            factor = float(self.vae.config.scaling_factor)
            x0 = self.vae.decode(x0 / factor).sample
        images = resized(x0 / 2 + 0.5, (self.spec.height, self.spec.width))
        return recoloured(images, self.spec.channels)


def sides(config: Any) -> tuple[int, int]:
    """Height and width of what a network of diffusers denoises, by its configuration; ValueError
    where that does not tell."""
    side = config.sample_size
    both = (side, side) if isinstance(side, int) else tuple(side or ())
    if len(both) != 2 or not all(isinstance(n, int) and n > 0 for n in both):
        raise ValueError("its config.json has no sample_size")
    return both[0], both[1]


# Reading


def open_folder(path: Path, teacher: Teacher, *, scale: float, prompt: str) -> PretrainedDenoiser:
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
            "which is not supported"
        )
    betas = [schedule.get(key, 0.5) for key in ("beta_start", "beta_end")]
    trained = schedule.get("trained_betas") or []
    whole = isinstance(trained, list)
    betas += trained if whole else []
    if not whole or not all(type(beta) in (int, float) and 0 <= beta < 1 for beta in betas):
        raise InputError(f"{_where(folder)}: its scheduler has betas that do not lie in 0..1")
    if (aim := schedule.get("prediction_type", "epsilon")) not in PREDICTED:
        raise InputError(f"{_where(folder)}: it predicts {quoted(aim)}, which is not supported")
    spec, device = teacher.spec, teacher.device
    if kind in PIXELS:
        unet = _network(folder, "unet", "UNet2DModel")
        _check_channels(folder, unet.config.in_channels, spec)
        labels = unet.config.num_class_embeds or 0
        if labels not in (0, teacher.classes, teacher.classes + 1):
            raise InputError(
                f"{_where(folder)}: it makes {labels} classes, the teacher sees {teacher.classes}"
            )
        free = labels == teacher.classes + 1  # the last label is that of no class
        made = PretrainedDenoiser(
            unet, schedule, spec, classes=min(labels, teacher.classes),
            none=teacher.classes if labels else None, scale=scale if free else 1.0,
        )  # fmt: skip
    elif kind in CLASSES:
        network = _network(folder, "transformer", "DiTTransformer2DModel")
        vae = _decoder(folder, spec)
        labels = int(network.config.num_embeds_ada_norm)
        made = PretrainedDenoiser(
            network, schedule | LATENT, spec, classes=labels if labels == teacher.classes else 0,
            none=labels, vae=vae, scale=scale,
        )  # fmt: skip
    else:
        unet = _network(folder, "unet", "UNet2DConditionModel")
        vae = _decoder(folder, spec)
        words = _embeddings(folder, [prompt.replace("{}", name) for name in teacher.names])
        made = PretrainedDenoiser(
            unet, schedule | LATENT, spec, classes=teacher.classes, none=teacher.classes,
            words=words.to(device), vae=vae, scale=scale,
        )  # fmt: skip
    for part in (made.network, made.vae):
        if part is not None:
            part.to(device)
    return made


def describe(path: str, classes: int) -> list[str]:
    """What a person should know about a borrowed folder before it is used for a teacher of so many
    classes, a line each."""
    folder = _folder(path)
    if folder is None:
        return []
    index = read_table(folder / INDEX, _where(folder))
    known = about(folder)
    lines = [f"generator borrowed: {index.get('_class_name')} in {folder}"]
    if not known:
        lines.append("what it was trained on is not known: promise level 1, outside prior")
    if index.get("_class_name") in CLASSES:
        config = read_table(folder / "transformer" / "config.json", _where(folder))
        if (other := config.get("num_embeds_ada_norm")) != classes:
            lines.append(
                f"its {other} classes are not the teacher's {classes}: it is sampled "
                "without classes"
            )
    checker = index.get("safety_checker")
    if isinstance(checker, list) and any(checker):
        lines.append("its safety checker is not used: images are judged by your teacher")
    if any(folder.glob("*/*.fp16.safetensors")):
        lines.append("its weights are half precision: read as float32")
    return lines


def about(folder: Path) -> dict[str, Any]:
    """What we wrote down about a folder of ours; nothing for others'."""
    path = folder / OURS
    return read_table(path, _where(folder)) if path.is_file() else {}


def promise_of(path: str, digest: str) -> int:
    """The promise level that images of a borrowed generator can have, for the teacher of this
    digest. One of a run that does not say what it learned from may have seen real images: level 3;
    a model of others has seen some of its own: level 1."""
    folder = _folder(path)
    if folder is not None:
        known, unknown = about(folder), 1
    elif path:
        place, unknown = Path(path) / "manifest.json", 3
        known = read_table(place, f"--generator-from {quoted(path)}") if place.is_file() else {}
    else:
        return 0
    return inherited_level(known, digest, unknown=unknown)


def _network(folder: Path, name: str, kind: str) -> Any:
    """A network out of its subfolder: config.json and safetensors, float32."""
    import diffusers

    place = folder / name
    limits.check_folder(place, _where(place))
    limits.check_numbers(read_table(place / "config.json", _where(place)), _where(place))
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
    size = limits.size_of([plain if plain.is_file() else half], _where(folder))
    try:
        with limits.quietly(), limits.within(*size, f"{_where(folder)}: {name}"):
            network, found = getattr(diffusers, kind).from_pretrained(
                str(place), local_files_only=True, use_safetensors=True,
                torch_dtype=torch.float32, low_cpu_mem_usage=False,
                variant=None if plain.is_file() else "fp16", output_loading_info=True,
            )  # fmt: skip
            if name != "vae":
                sides(network.config)
    except InputError:
        raise
    except Exception as error:  # whatever a damaged file makes the library say
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{_where(folder)}: {name} cannot be read as a {kind}: {said}") from None
    _check_whole(folder, name, network, found["missing_keys"])
    return network.float()


def _check_whole(folder: Path, name: str, network: torch.nn.Module, missing: Iterable[str]) -> None:
    """Refuses weights that lack some: the libraries would make these up."""
    own = {key for key, _ in network.named_parameters()}
    lacking = sorted(own.intersection(missing))
    if lacking:
        raise InputError(
            f"{_where(folder)}: the weights of {name} lack {len(lacking)} tensors, "
            f"{quoted(lacking[0])} among them"
        )


def _decoder(folder: Path, spec: ImageSpec) -> Any:
    """The half of an autoencoder that makes images of latents, and the other half."""
    vae = _network(folder, "vae", "AutoencoderKL")
    _check_channels(folder, vae.config.out_channels, spec)
    factor = vae.config.scaling_factor
    if type(factor) not in (int, float) or not 0 < factor < float("inf"):
        raise InputError(f"{_where(folder)}: the scaling_factor of its vae is no positive number")
    return vae


def _embeddings(folder: Path, texts: list[str]) -> Tensor:
    """The text encoder's states of some texts and of the empty one, [K + 1, L, E]."""
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError:
        raise InputError(
            f"{_where(folder)}: text-conditional models need the package transformers: install it"
        ) from None
    if not (folder / "text_encoder" / "model.safetensors").is_file():
        raise InputError(f"{_where(folder)}: text_encoder/model.safetensors is missing")
    place = folder / "text_encoder"
    for inner in (place, folder / "tokenizer"):
        limits.check_folder(inner, _where(folder))
    limits.check_numbers(read_table(place / "config.json", _where(place)), _where(place))
    size = limits.size_of([place / "model.safetensors"], _where(folder))
    try:
        tokenizer = CLIPTokenizer.from_pretrained(
            str(folder / "tokenizer"), local_files_only=True, trust_remote_code=False
        )
        with limits.quietly(), limits.within(*size, f"{_where(folder)}: text_encoder"):
            encoder, found = CLIPTextModel.from_pretrained(
                str(place), local_files_only=True, use_safetensors=True,
                torch_dtype=torch.float32, output_loading_info=True,
            )  # fmt: skip
    except InputError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{_where(folder)}: its text encoder cannot be read: {said}") from None
    _check_whole(folder, "text_encoder", encoder, found["missing_keys"])
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
    it. The folder appears whole or not at all; only one of ours is replaced.
    """
    from diffusers import ConsistencyModelPipeline, DDIMScheduler

    if folder.exists() and not (folder / OURS).is_file():
        raise InputError(f"{quoted(folder)} is there already, and holds something else")
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
