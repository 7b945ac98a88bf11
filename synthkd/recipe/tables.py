"""Every setting of a run, checked when built.

This file alone defines the TOML keys, the flags, the help and the table of docs/settings.md.
A `Table` is one TOML table; a field's description is its help; `ge`, `le` and friends are its
range; `Flag` gives a daily setting a short flag beside its dotted name. Knows only pydantic.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from synthkd.core.errors import InputError, quoted, suggest

MOST_CLASSES = 1_000_000
MOST = 10**12  # of what is counted one after the other
MOST_AT_ONCE = 65536  # images of a batch
MOST_MINUTES = 10_000_000.0  # nineteen years
MOST_SIDE = 1024  # pixels, of an image for a network


@dataclass(frozen=True)
class Flag:
    """The short flag of a daily setting, e.g. `--teacher` for `teacher.spec`."""

    name: str
    brief: str = ""  # its line in the short help ("": it shares the line of the flag before)


def _split(value: object) -> object:
    """Flags write lists with commas: `0.5,0.5` and `0.5` are both lists of numbers."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",")) if value.strip() else ()
    return tuple(value) if isinstance(value, list) else value  # strict pydantic wants a tuple here


def parted(value: object) -> object:
    """Flags write named numbers as `pixels=0.6,gan=0.2`."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    return {name.strip(): number.strip() for name, _, number in pairs}


def _sides(value: object) -> object:
    """Flags write a size as `32`, or as `8x32` or `8,32`: height, then width."""
    parts: object = value
    if isinstance(value, str):
        parts = re.split(r"\s*[x,]\s*", value.strip())
    if isinstance(parts, int) and not isinstance(parts, bool):
        parts = [parts]
    if isinstance(parts, list | tuple) and len(parts) in (1, 2):
        texts = [str(part) for part in parts]
        if all(re.fullmatch(r"[0-9]{1,4}", text) for text in texts):
            sides = [int(text) for text in texts]
            if all(8 <= side <= MOST_SIDE for side in sides):
                return sides[0] if sides[0] == sides[-1] else tuple(sides)
    shown = "x".join(str(part) for part in parts) if isinstance(parts, list | tuple) else value
    raise ValueError(
        f"one side, or HEIGHTxWIDTH, each of 8 to {MOST_SIDE:,} pixels; got {quoted(shown)}"
    )


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", name):
        known = "known devices: auto, cpu, cuda, cuda:N"
        raise ValueError(f"{known}; mps is not supported: use cpu" if name == "mps" else known)
    return name


Numbers = Annotated[tuple[float, ...], BeforeValidator(_split)]
Words = Annotated[tuple[str, ...], BeforeValidator(_split)]
Shares = Annotated[dict[str, float], BeforeValidator(parted)]


def _scales(value: dict[float, float]) -> dict[float, float]:
    """Shares of a side, each with its share of the steps."""
    if any(not 0 < side <= 1 for side in value):
        raise ValueError("sides are shares of the full side, above 0 and at most 1")
    if value and (min(value.values()) <= 0 or abs(sum(value.values()) - 1) > 1e-6):
        raise ValueError("shares of the steps are above 0, and their sum is 1")
    return dict(sorted(value.items()))


def _numbered(value: object) -> object:
    """Keys are texts in TOML and in flags; what is no number is left for the type to refuse."""
    found = parted(value)
    if not isinstance(found, dict):
        return found
    with suppress(ValueError, TypeError):
        return {float(key): share for key, share in found.items()}
    return found


Scales = Annotated[dict[float, float], BeforeValidator(_numbered), AfterValidator(_scales)]
Sides = Annotated[int | tuple[int, int], BeforeValidator(_sides)]
Arguments = Annotated[dict[str, str], BeforeValidator(parted)]


class Table(BaseModel):
    """A frozen group of settings; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TeacherTable(Table):
    """The network to learn from."""

    spec: Annotated[
        str,
        Field(
            description="teacher: demo, a run directory, a named network, torchvision:NAME, "
            "timm:NAME, hf:DIR, onnx:FILE, FILE.pt2, package.module:callable, or file.py:callable "
            "(the last three with --trust-code unless installed), or ensemble:FILE.toml"
        ),
        Flag("--teacher", "demo, timm:NAME, … (README: what a SPEC is)"),
    ] = "demo"
    weights: Annotated[
        str,
        Field(
            description="file of weights for the teacher, of safetensors or torch.save, whatever "
            "its suffix; hub: those that torchvision or timm offers, over the network"
        ),
        Flag("--teacher-weights", "file of its weights, or hub"),
    ] = ""
    weights_key: Annotated[
        str,
        Field(
            description="which of several sets of weights in its file, by the key or prefix of "
            "their names, e.g. model_ema (default: raw weights rather than averaged "
            "ones)"
        ),
    ] = ""
    output: Annotated[
        str,
        Field(
            description="which of several outputs of an ONNX graph holds the scores of classes, by "
            "name (default: recognised by name and shape)"
        ),
    ] = ""
    image_size: Annotated[
        Sides | None,
        Field(
            description="height and width of its input, 8 to 1024 pixels: one number for both, or "
            "HEIGHTxWIDTH, e.g. 32x100"
        ),
        Flag("--image-size", "shape of its input: 32 or 32x100; 1 to 4"),
    ] = None
    channels: Annotated[
        int | None, Field(description="channels of its input", ge=1, le=4), Flag("--channels")
    ] = None
    mean: Annotated[
        Numbers | None,
        Field(description="mean it subtracts, per channel, for pixels in 0..1"),
        Flag("--teacher-mean", "how its input is normalised, of pixels 0..1"),
    ] = None
    std: Annotated[
        Numbers | None,
        Field(description="standard deviation it divides by, per channel"),
        Flag("--teacher-std"),
    ] = None
    classes: Annotated[
        int | None,
        Field(
            description="number of classes (default: asked of the network)", ge=2, le=MOST_CLASSES
        ),
        Flag("--classes", "how many classes, and their names"),
    ] = None
    class_names: Annotated[
        str,
        Field(
            description="names of its classes in its own order, comma-separated or one per line "
            "in a text file (default: those stored with the network)"
        ),
        Flag("--class-names"),
    ] = ""
    only: Annotated[
        Words,
        Field(
            description="its classes that the student shall know, by name or number, "
            "comma-separated (default: all)"
        ),
        Flag("--only", "classes for the student: cat,dog or 3,5"),
    ] = ()
    none_of_these: Annotated[
        bool,
        Field(description="with --only: one more class, for whatever is none of them"),
        Flag("--none-of-these"),
    ] = False
    args: Annotated[
        Arguments,
        Field(description="keyword arguments for its callable, e.g. depth=20,width=16"),
        Flag("--teacher-args", "arguments of its callable: depth=20,width=16"),
    ] = {}
    access: Annotated[
        Literal["full", "logits", "labels"],
        Field(
            description="what may be used of it: everything; its answers, without gradients; or "
            "only the class it names"
        ),
        Flag("--teacher-access", "what may be used: full, logits or labels"),
    ] = "full"
    answers: Annotated[
        Literal[
            "auto", "logits", "probabilities", "log-probabilities", "percentages", "top-k",
            "binary-logit", "binary-probability", "binary-percentage", "multilabel-logits",
            "multilabel-probabilities", "multilabel-percentages", "labels",
        ],
        Field(
            description="what it answers (auto: recognised by asking it): scores of classes of "
                "which one applies; one score for two classes (binary-); one score per "
                "class, independent of the others (multilabel-); or class numbers"
        ),
        Flag("--teacher-answers", "what it answers (auto: recognised)"),
    ] = "auto"  # fmt: skip
    features: Annotated[
        str,
        Field(
            description="module whose output is taken as its features, by name (default: the "
            "input of its last linear layer); maps and tokens are averaged"
        ),
    ] = ""


class StudentTable(Table):
    """The small network that learns."""

    spec: Annotated[
        str,
        Field(
            description="student: a built-in network, slim:NAME, prune:RATIO (the teacher pruned), "
            "any other SPEC of --teacher, or auto: within --max-params, --max-flops and "
            "--max-latency-ms the largest network, of the built-in ones and, for images of 64 "
            "pixels or more, of small ones of timm and torchvision; without limits the default "
            "below 64 pixels, else the teacher pruned. Not given: the same"
        ),
        Flag("--student", "a SPEC, or auto: the largest within limits"),
    ] = "resnet8-w12"
    weights: Annotated[
        str,
        Field(description="file of weights that the student starts from"),
        Flag("--student-weights", "file of weights to start from"),
    ] = ""
    start: Annotated[
        Literal["new", "teacher"],
        Field(
            description="initial weights: random, or the teacher's: its layers of the same "
            "name, and of wider ones the channels that matter most, as far as the "
            "shapes allow"
        ),
    ] = "new"
    args: Annotated[
        Arguments,
        Field(description="keyword arguments for its callable"),
        Flag("--student-args", "arguments of its callable"),
    ] = {}
    max_params: Annotated[
        int | None,
        Field(description="auto: largest number of weights", ge=1, le=MOST),
        Flag("--max-params", "limits of --student auto"),
    ] = None
    max_flops: Annotated[
        float | None,
        Field(description="auto: largest number of floating-point operations per image", gt=0),
        Flag("--max-flops"),
    ] = None
    max_latency_ms: Annotated[
        float | None,
        Field(
            description="auto: longest time for a single image, in milliseconds, measured with "
            "the exported file on this machine",
            gt=0,
        ),
        Flag("--max-latency-ms", "limit of --student auto, for one image"),
    ] = None


class DataTable(Table):
    """Images that exist already. All are optional; a data-free run opens none of them."""

    mix_ratio: Annotated[
        float,
        Field(description="share of synthetic images in every batch", ge=0, le=1),
        Flag("--mix-ratio", "share of synthetic images in every batch"),
    ] = 1.0
    real: Annotated[
        str,
        Field(
            description="real images for training, labels not needed: a folder, "
            "an .npz with x (and y), "
            "or file.py:callable[:argument]; distill: read only below mix ratio 1"
        ),
        Flag("--real-data", "real images to learn from, if allowed"),
    ] = ""
    val: Annotated[
        str,
        Field(
            description="labelled images for the final score; they never influence the run "
            "(demo teacher: digits that it never saw; none: no score)"
        ),
        Flag("--val-data", "labelled images, for the final score alone"),
    ] = ""
    class_order: Annotated[
        str,
        Field(
            description="which class of the teacher each class of the images is: auto, names, "
            "numeric, alphabetical, one-based, background-first, or for each class "
            "in turn the teacher's number or name, comma-separated or one per line "
            "in a text file"
        ),
        Flag("--class-order", "how classes of images match the teacher's"),
    ] = "auto"
    range: Annotated[
        Numbers,
        Field(
            description="values that are black and white, BLACK,WHITE, in images of more than 8 "
            "bits and in arrays (default: inferred from all values of a set)"
        ),
    ] = ()
    background: Annotated[
        Literal["auto", "white", "black"],
        Field(
            description="background of transparent images; auto: whichever of the two their "
            "content stands out from"
        ),
    ] = "auto"
    resize: Annotated[
        Literal["stretch", "crop", "pad"],
        Field(
            description="images of another proportion than the teacher's: stretched, cropped to "
            "the middle, or padded"
        ),
    ] = "stretch"
    synthetic: Annotated[
        str,
        Field(description="a data set made by `synthkd generate`, used instead of a generator"),
        Flag("--synthetic", "a data set of `synthkd generate` to learn from"),
    ] = ""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.range and (len(self.range) != 2 or self.range[0] == self.range[1]):
            raise ValueError("range takes two different numbers, the values of black and of white")
        return self


class BudgetTable(Table):
    """How long a run lasts: minutes, or images shown to the student."""

    minutes: Annotated[
        float | None,
        Field(
            description="wall clock of the run, in minutes (generate: of the training)",
            gt=0,
            le=MOST_MINUTES,
        ),
        Flag("--minutes", "length of the run, in minutes or images"),
    ] = None
    images: Annotated[
        int | None,
        Field(
            description="images shown to the student (generate: to the generator)", ge=1, le=MOST
        ),
        Flag("--images-seen"),
    ] = None
    cycles: Annotated[
        int,
        Field(
            description="times that all stages follow one another, each time with an even part of "
            "the budget, so that images are synthesized while the student learns",
            ge=1,
            le=MOST,
        ),
    ] = 1


class RunTable(Table):
    """Where and how a run computes."""

    out: Annotated[
        str,
        Field(description="directory to write; must be empty or new"),
        Flag("--out", "directory to write; empty or new"),
    ] = ""
    seed: Annotated[
        int,
        Field(description="seed of everything random", ge=0, lt=2**31),
        Flag("--seed", "seed of everything random"),
    ] = 0
    stages: Annotated[
        Words, Field(description="names of the stages to run, comma-separated (default: all)")
    ] = ()
    device: Annotated[
        str, Field(description="auto, cpu, cuda or cuda:N"), AfterValidator(_device)
    ] = "auto"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(
            description="arithmetic of the networks; auto: bfloat16 where the machine is fast at it"
        ),
    ] = "auto"
    threads: Annotated[
        int, Field(description="CPU threads (0: as many as there are cores)", ge=0, le=1024)
    ] = 0
    checkpoint_seconds: Annotated[float, Field(description="seconds between checkpoints", gt=0)] = (
        60.0
    )
    snapshots: Annotated[
        int,
        Field(
            description="number of copies of the student's weights to keep along the way",
            ge=0,
            le=MOST,
        ),
    ] = 0
    plugins: Annotated[
        Words,
        Field(
            description="Python files that add losses, generators, synthesis terms or controllers "
            "of your own before a run begins, e.g. mine.py; they are run, so trust_code is needed"
        ),
    ] = ()
    trust_code: Annotated[
        bool,
        Field(
            description="allow inputs that run code: file.py: specs, plugins, .pt2 and "
            "TorchScript files, and installed callables that a file names"
        ),
        Flag("--trust-code", "allow inputs that run code (file.py:, .pt2, …)"),
    ] = False
    anyway: Annotated[
        bool,
        Field(description="go on although a check found a serious fault in the teacher"),
        Flag("--anyway", "go on although a check found a serious fault"),
    ] = False


class GeneratorTable(Table):
    """What makes images; and the decoder of `gan` and `episodes`."""

    kind: Annotated[
        str,
        Field(
            description="what makes images in the stages that leave it open (generator = "
            '"auto"), by name; auto: chosen by looking at the teacher',
            pattern=r"^[a-z][a-z0-9_]*$",
        ),
        Flag("--generator", "generator of auto stages; a trained one to load"),
    ] = "auto"
    start: Annotated[
        str,
        Field(
            description="trained generator to use instead of training a new one: a run's, a "
            "diffusers folder, or hub:OWNER/NAME (over the network)"
        ),
        Flag("--generator-from"),
    ] = ""
    latent: Annotated[int, Field(description="length of the noise vector", ge=1, le=4096)] = 128
    width: Annotated[int, Field(description="channels of its last layer", ge=4, le=512)] = 32
    conditional: Annotated[
        bool, Field(description="ask for classes (false: an image's class is the teacher's vote)")
    ] = True
    source: Annotated[
        Literal["noise", "noisy_layer"],
        Field(
            description="where variety comes from: a noise vector, or a first layer whose "
            "random weights are drawn again for every batch (NAYER)"
        ),
    ] = "noise"
    output: Annotated[
        Literal["sigmoid", "standard"],
        Field(
            description="how pixels are made: a sigmoid, or tanh brought to the mean and deviation "
            "that the teacher normalises by (DAFL)"
        ),
    ] = "sigmoid"
    ema: Annotated[
        float,
        Field(
            description="decay of an averaged copy that offers half of gan's new samples (MAD; "
            "0: none)",
            ge=0,
            lt=1,
        ),
    ] = 0.0
    statistics_ema: Annotated[
        float,
        Field(
            description="share of a running average in the statistics that are compared "
            "(0: the batch alone)",
            ge=0,
            lt=1,
        ),
    ] = 0.0
    latent_rate: Annotated[
        float,
        Field(description="Adam's rate for the noise itself, in episodes (0: fixed)", ge=0, le=1),
    ] = 0.0
    meta: Annotated[
        Literal["none", "maml", "reptile"],
        Field(
            description="in episodes: how the weights that every episode starts from learn "
            "(none: the episodes go on from each other)"
        ),
    ] = "none"
    restart: Annotated[
        int,
        Field(
            description="episodes after which its weights are drawn again (0: never)", ge=0, le=MOST
        ),
    ] = 0
    schedule: Annotated[
        Literal["constant", "cosine"], Field(description="how the learning rate falls over the run")
    ] = "constant"
    learning_rate: Annotated[float, Field(description="Adam's learning rate", gt=0, le=1)] = 2e-3
    beta1: Annotated[float, Field(description="Adam's first decay", ge=0, lt=1)] = 0.5
    clip: Annotated[float, Field(description="largest norm of a gradient (0: no limit)", ge=0)] = (
        5.0
    )


class ProceduralTable(Table):
    """Images drawn by a formula."""

    kinds: Annotated[
        Words,
        Field(
            description="noise, spectrum, leaves, shaders, strokes, fractals, polygons; auto: "
            "strokes for a teacher of one channel whose images are mostly black or mostly white by "
            "the mean it subtracts, all but noise where that mean tells nothing (0, or 0.5 with "
            "deviation 0.5), else all but noise and strokes"
        ),
    ] = ("auto",)
    evolve: Annotated[
        float,
        Field(
            description="share of the drawings that are changed copies of remembered ones "
            "(strokes only)",
            ge=0,
            le=1,
        ),
    ] = 0.0


class PixelsTable(Table):
    """Pixels improved directly by gradients through the teacher."""

    start: Annotated[
        Literal["noise", "drawings", "memory"],
        Field(description="what they start from: Gaussian noise, drawings, remembered images"),
    ] = "memory"
    basis: Annotated[
        Literal["pixels", "fourier"],
        Field(description="what is moved: pixels, or their spectrum scaled by 1/frequency"),
    ] = "fourier"
    learning_rate: Annotated[
        float,
        Field(
            description="Adam's learning rate (0: the best of three that are tried, where images "
            "have 64 pixels and more; below 0.05)",
            ge=0,
            le=1,
        ),
    ] = 0.05
    beta1: Annotated[float, Field(description="Adam's first decay", ge=0, lt=1)] = 0.5
    beta2: Annotated[float, Field(description="Adam's second decay", ge=0, lt=1)] = 0.9
    decay: Annotated[
        float,
        Field(description="share by which the rate falls, step by step, until the end", ge=0, le=1),
    ] = 0.9
    roll: Annotated[
        float,
        Field(description="random shift between steps, as a share of the image", ge=0, le=0.5),
    ] = 0.125
    scales: Annotated[
        Scales,
        Field(
            description="sides at which the steps are taken, as shares of the full side, each with "
            "its share of the steps, e.g. 0.5=0.7,1=0.3: first small, then large (none given: all "
            "at full size, unless progressive)"
        ),
    ] = {}
    crop: Annotated[
        float,
        Field(
            description="smallest share of the area that a random crop shows at the last step; at "
            "the first it shows all (1: no crop)",
            gt=0,
            le=1,
        ),
    ] = 1.0
    progressive: Annotated[
        bool,
        Field(
            description="without scales: most steps at smaller sizes, where the teacher's "
            "BatchNorm statistics still fit"
        ),
    ] = False
    least_per_class: Annotated[
        int,
        Field(
            description="with more than ten classes, a stage that would refine fewer images of "
            "each in its part of the budget is left out, and drawings do alone (not for a student "
            "that is cut out of its teacher, nor where run.stages names the stages)",
            ge=0,
            le=MOST,
        ),
    ] = 0


class DiffusionTable(Table):
    """The denoiser of the generator `diffusion`, and how it is sampled."""

    size: Annotated[
        int,
        Field(
            description="side of the square at which it works, in pixels, a multiple of 4 "
            "(0: the shape of the teacher's images, at most 64)",
            ge=0,
            le=256,
            multiple_of=4,
        ),
    ] = 0
    width: Annotated[
        int, Field(description="channels of its first level", ge=8, le=512, multiple_of=8)
    ] = 32
    label_dropout: Annotated[
        float,
        Field(description="share of a training batch whose classes are hidden from it", ge=0, le=1),
    ] = 0.1
    learning_rate: Annotated[float, Field(description="AdamW's learning rate", gt=0, le=1)] = 1e-3
    ema: Annotated[
        float, Field(description="longest decay of the averaged weights", ge=0, lt=1)
    ] = 0.999
    curriculum: Annotated[
        Literal["none", "linear", "difficulty"],
        Field(
            description="how training opens from coarse, noisy steps to fine ones: all at once, "
            "over the first half of the stage, or with the run's difficulty"
        ),
    ] = "none"
    steps: Annotated[int, Field(description="denoising steps of a sample", ge=1, le=1000)] = 8
    solver: Annotated[
        Literal["auto", "ddim", "dpm", "ddpm"],
        Field(description="sampler; auto: the one whose images the teacher agrees with most"),
    ] = "ddim"
    guidance_scale: Annotated[
        float,
        Field(
            description="scale of classifier-free guidance (1: none, at half the price; 0: without "
            "classes; models of others that always need a class: 1)",
            ge=0,
            le=100,
        ),
    ] = 1.0
    teacher_guidance: Annotated[
        float,
        Field(
            description="guidance by the teacher: how far its gradient may move the predicted "
            "clean image at each step, by the stage's terms or, without any, towards the class "
            "(0: none)",
            ge=0,
        ),
    ] = 0.0
    accept: Annotated[
        Literal["agreed", "all"],
        Field(
            description="which samples are kept: all, or those in which the teacher sees the class"
        ),
    ] = "agreed"
    confidence: Annotated[
        float,
        Field(
            description="least probability of that class for a sample to be kept (agreed)",
            ge=0,
            le=1,
        ),
    ] = 0.0
    batch: Annotated[int, Field(description="images denoised at once", ge=1, le=MOST_AT_ONCE)] = 64
    prompt: Annotated[
        str,
        Field(description="prompt of a borrowed text-to-image model; {} is the class's name"),
    ] = "a photo of a {}"


class DiscriminatorTable(Table):
    """The critic behind the term `realism`."""

    width: Annotated[int, Field(description="channels of its first layer", ge=4, le=512)] = 16
    learning_rate: Annotated[float, Field(description="Adam's learning rate", gt=0, le=1)] = 4e-4
    spectral_norm: Annotated[
        bool, Field(description="bound every layer's largest singular value by 1")
    ] = True


class MemoryTable(Table):
    """Synthetic images that the student may see again."""

    capacity: Annotated[
        int, Field(description="images remembered (0: no memory, fresh images only)", ge=0, le=MOST)
    ] = 20_000
    replayed: Annotated[
        float,
        Field(
            description="share of the synthetic images of a batch that is taken from it", ge=0, le=1
        ),
    ] = 0.75
    shares: Annotated[
        Shares,
        Field(
            description="share of the replay by generator, e.g. pixels=0.6; the others divide "
            "the rest (none given: all images are equal)"
        ),
    ] = {}
    form: Annotated[
        Literal["images", "autoencoder"],
        Field(
            description="what is remembered: images, or a variational autoencoder that learns to "
            "make them again (PRE-DFKD)"
        ),
    ] = "images"
    boundary: Annotated[
        float,
        Field(
            description="share of the replay drawn near the teacher's boundary, at difficulty 1",
            ge=0,
            le=1,
        ),
    ] = 0.0
    priority: Annotated[
        float,
        Field(
            description="prioritised replay: how often an image is drawn is its last loss to this "
            "power (0: all alike, 0.6 as published)",
            ge=0,
            le=2,
        ),
    ] = 0.0
    priority_correction: Annotated[
        float,
        Field(
            description="how far weights in the loss make up for priorities at the beginning; at "
            "the end wholly (1)",
            ge=0,
            le=1,
        ),
    ] = 0.4
    curriculum: Annotated[
        bool,
        Field(
            description="easy images first: replay draws from a growing share of the images, "
            "beginning with those of which the teacher is surest"
        ),
    ] = False

    @model_validator(mode="after")
    def _stored(self) -> Self:
        stored = self.form == "images" and self.capacity > 0
        if (self.priority or self.curriculum) and not stored:
            raise ValueError(
                "priority and curriculum choose among stored images: form must be images, and "
                "capacity above 0"
            )
        return self


class DifficultyTable(Table):
    """The difficulty scheduler: agreement on held-out synthetic images drives it."""

    enabled: Annotated[
        bool, Field(description="move the difficulty (false: it stays at start)")
    ] = False
    start: Annotated[float, Field(description="difficulty at the beginning", ge=0, le=1)] = 1.0
    ceiling: Annotated[float, Field(description="largest difficulty", ge=0, le=1)] = 1.0
    per_image: Annotated[
        bool,
        Field(
            description="an image's augmentation is as hard as the teacher is sure of it: times "
            "its margin (false: all alike)"
        ),
    ] = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.start <= self.ceiling:
            raise ValueError(f"start must not exceed ceiling; got {self.start} and {self.ceiling}")
        return self


class AugmentTable(Table):
    """What happens to an image before teacher and student see it (both see the same view)."""

    shift: Annotated[
        float, Field(description="random shift, as a share of the image", ge=0, le=0.5)
    ] = 0.125
    crop: Annotated[
        float,
        Field(
            description="smallest share of the area that a random crop shows, enlarged to the "
            "whole (1: no crop)",
            gt=0,
            le=1,
        ),
    ] = 1.0
    flip: Annotated[bool, Field(description="mirror half of the images")] = False
    affine: Annotated[
        float,
        Field(description="rotation (x 30 degrees), scale and shear at difficulty 1", ge=0, le=1),
    ] = 0.0
    jitter: Annotated[
        float, Field(description="brightness and contrast change at difficulty 1", ge=0, le=1)
    ] = 0.0
    erase: Annotated[
        float, Field(description="probability of an erased rectangle at difficulty 1", ge=0, le=1)
    ] = 0.0
    mixup: Annotated[
        float, Field(description="probability that a batch is blended with itself", ge=0, le=1)
    ] = 0.5


class TrainingTable(Table):
    """How the student learns."""

    batch: Annotated[
        int,
        Field(
            description="images per student step (0: by their size, 256 at most; with fewer the "
            "learning rate is lowered in proportion)",
            ge=0,
            le=65536,
        ),
    ] = 128
    terms: Annotated[
        Shares, Field(description="weights of the distillation terms, e.g. soft_targets=1")
    ] = {"soft_targets": 1.0}
    scale_by_classes: Annotated[
        bool,
        Field(
            description="with K classes, more than ten, terms of softened answers (soft_targets) "
            "weigh (K / 10)^1.5 times as much: their gradient falls so with the classes (not for "
            "a student that is cut out of its teacher)"
        ),
    ] = False
    weighting: Annotated[
        Literal["fixed", "capacity", "uncertainty", "gradnorm", "agreement"],
        Field(
            description="how the weights of the terms move: not at all; answers against features "
            "by the student's share of the teacher's weights (capacity), or by agreement; by "
            "learned uncertainty; by the sizes of their gradients (gradnorm)"
        ),
    ] = "fixed"
    widths: Annotated[
        Literal["one", "two", "needed"],
        Field(
            description="at which widths between the narrowest and the full one a slimmable "
            "student learns in a step: one by chance, two (all that slim:NAME has), or one by how "
            "much of its gradient the full width's leaves over (needed)"
        ),
    ] = "one"
    scales: Annotated[
        Scales,
        Field(
            description="sides at which the student sees its images, as shares of the full side, "
            "each with its share of the training, e.g. 0.5=0.7,1=0.3 (none given: all at full "
            "size, unless progressive)"
        ),
    ] = {}
    progressive: Annotated[
        bool,
        Field(
            description="without scales: images of 64 pixels and more at half their size in the "
            "first 70 % of the training"
        ),
    ] = False
    repeats: Annotated[
        int,
        Field(
            description="student steps for each answer of the teacher: its answers to so many "
            "batches are mixed and used again",
            ge=1,
            le=64,
        ),
    ] = 1
    student_layers: Annotated[
        Words,
        Field(
            description="layers of the student that terms compare, by name (default: the last of "
            "each resolution)"
        ),
    ] = ()
    teacher_layers: Annotated[
        Words, Field(description="the teacher's layers they are compared with, one by one")
    ] = ()
    optimizer: Annotated[
        Literal["sgd", "adamw"], Field(description="sgd (Nesterov's momentum) or adamw")
    ] = "sgd"
    learning_rate: Annotated[float, Field(description="peak learning rate", gt=0)] = 0.1
    lr_factor_without_norm: Annotated[
        float,
        Field(
            description="factor of the learning rate for a student without normalisation layers",
            gt=0,
            le=1,
        ),
    ] = 1.0
    lr_factor_pruned: Annotated[
        float,
        Field(
            description="factor of the learning rate for a student that is cut out of its teacher "
            "(prune:RATIO) and so begins trained",
            gt=0,
            le=1,
        ),
    ] = 0.07
    batchnorm: Annotated[
        Literal["auto", "batch", "frozen"],
        Field(
            description="by which statistics the student's BatchNorm layers normalise while it "
            "learns: those of the batch, or frozen ones; auto: frozen in a student that is cut out "
            "of its teacher, where they are the teacher's, of real images"
        ),
    ] = "auto"
    schedule: Annotated[
        Literal["one_cycle", "constant", "steps"],
        Field(description="course of the learning rate; steps: a tenth from each milestone on"),
    ] = "one_cycle"
    milestones: Annotated[
        Numbers, Field(description="milestones of the schedule steps, as shares of the run")
    ] = (0.4, 0.8)
    momentum: Annotated[float, Field(description="momentum of sgd", ge=0, lt=1)] = 0.9
    weight_decay: Annotated[
        float,
        Field(
            description="weight decay, not of biases and norms: for sgd an L2 penalty, for adamw "
            "decoupled (times the learning rate, each step)",
            ge=0,
        ),
    ] = 5e-4
    warmup: Annotated[
        float,
        Field(
            description="share of the run in which the learning rate rises (one_cycle)", ge=0, lt=1
        ),
    ] = 0.1
    temperature: Annotated[
        float, Field(description="softening of the logits (soft_targets)", gt=0, le=100)
    ] = 4.0
    temperature_schedule: Annotated[
        Literal["constant", "linear", "cosine", "adaptive"],
        Field(
            description="course of the temperature: constant, from temperature to temperature_end "
            "along a line or a cosine, or between them by how far the student's answers to "
            "held-out images are from the teacher's (adaptive)"
        ),
    ] = "constant"
    temperature_end: Annotated[
        float,
        Field(description="last, or lowest, temperature of such a course", gt=0, le=100),
    ] = 4.0
    clip: Annotated[float, Field(description="largest norm of a gradient (0: no limit)", ge=0)] = (
        5.0
    )
    ema: Annotated[
        float, Field(description="decay of the averaged student (0: none)", ge=0, lt=1)
    ] = 0.999
    recalibrate: Annotated[
        bool,
        Field(
            description="also try the averaged student with BatchNorm statistics estimated anew on "
            "remembered images, and keep it where it agrees more often"
        ),
    ] = False

    @model_validator(mode="after")
    def _within_the_run(self) -> Self:
        if self.temperature_schedule != "constant" and self.temperature == self.temperature_end:
            raise ValueError(
                f"temperature and temperature_end are both {self.temperature:g}: a course needs "
                "two temperatures"
            )
        if self.recalibrate and not self.ema:
            raise ValueError("recalibrate is for the averaged student: give ema, e.g. 0.999")
        if not all(0 <= milestone <= 1 for milestone in self.milestones):
            raise ValueError(f"milestones are shares of the run, 0..1; got {self.milestones}")
        return self


class TeachingTable(Table):
    """Who teaches the student beside its teacher."""

    assistants: Annotated[
        Words,
        Field(
            description="networks that learn first, one from another, e.g. resnet14,resnet10: the "
            "student learns from the last of them (the student's own SPEC: born-again networks)"
        ),
    ] = ()
    assistants_share: Annotated[
        float, Field(description="share of the training that the assistants have", gt=0, lt=1)
    ] = 0.5
    assistant_weight: Annotated[
        float,
        Field(
            description="share of an assistant's answers in what its successor is taught; the "
            "teacher has the rest",
            gt=0,
            le=1,
        ),
    ] = 1.0
    promote_at: Annotated[
        float,
        Field(
            description="agreement with the teacher at which an assistant's turn ends early, e.g. "
            "0.95 (0: never)",
            ge=0,
            le=1,
        ),
    ] = 0.0
    rollback: Annotated[
        float,
        Field(
            description="loss of agreement after which the teacher teaches alone again, e.g. 0.05 "
            "(0: never)",
            ge=0,
            le=1,
        ),
    ] = 0.0
    peer: Annotated[
        str,
        Field(description="a second student that learns along, each also from the other's answers"),
    ] = ""
    peer_weight: Annotated[
        float, Field(description="weight of the peer's answers in the loss", gt=0)
    ] = 1.0
    average_weight: Annotated[
        float,
        Field(
            description="share of the answers of the student's own running average in what it is "
            "taught (0: none)",
            ge=0,
            lt=1,
        ),
    ] = 0.0


class DatasetTable(Table):
    """What `synthkd generate` writes."""

    count: Annotated[
        int, Field(description="images to write", ge=1, le=MOST), Flag("--count", "images to write")
    ] = 1_000
    shard: Annotated[int, Field(description="images per shard file", ge=1, le=MOST)] = 8_192
    folders: Annotated[
        bool, Field(description="also write class folders of PNG files, as ImageFolder wants them")
    ] = True


class EvaluationTable(Table):
    """What `synthkd evaluate` compares."""

    images: Annotated[
        str,
        Field(description="images to score: a synthetic data set or any data path"),
        Flag("--images", "images to score"),
    ] = ""
    reference: Annotated[
        str,
        Field(description="real images to compare them with (FID, KID)"),
        Flag("--reference", "real images to compare them with (FID, KID)"),
    ] = ""
    extractor: Annotated[
        str,
        Field(description="features for FID and KID: teacher, inception, or another SPEC"),
        Flag("--extractor", "features for these: teacher, inception, a SPEC"),
    ] = "teacher"
    extractor_weights: Annotated[
        str,
        Field(
            description="weights of the extractor; "
            "for inception: a local copy of torch-fidelity's file"
        ),
        Flag("--extractor-weights", "file of weights of the extractor"),
    ] = ""
    no_data: Annotated[
        bool,
        Field(description="estimate a student's agreement on real images without any"),
        Flag("--no-data", "estimate agreement on real images without any"),
    ] = False
    batch: Annotated[int, Field(description="images per forward pass", ge=1, le=MOST_AT_ONCE)] = 256


class Stage(Table):
    """One stage of a run: `[[stage]]` in TOML, `--stage.NAME.key VALUE` on the command line."""

    name: Annotated[str, Field(description="its name", pattern=r"^[a-z][a-z0-9_-]*$")]
    generator: Annotated[
        str,
        Field(
            description="what makes images, by name; auto: as generator.kind says; none: nothing",
            pattern=r"^[a-z][a-z0-9_]*$",
        ),
    ] = "auto"
    share: Annotated[float, Field(description="share of the budget", gt=0, le=1)] = 1.0
    seconds: Annotated[
        float,
        Field(
            description="most seconds of a budget in minutes, whose rest the other stages share "
            "(0: no limit)",
            ge=0,
        ),
    ] = 0.0
    synthesis_steps: Annotated[
        int, Field(description="generator steps per round", ge=0, le=MOST)
    ] = 1
    synthesis_batch: Annotated[
        int,
        Field(
            description="images per generator step (0: by their size, 256 at most)",
            ge=0,
            le=MOST_AT_ONCE,
        ),
    ] = 128
    offer: Annotated[
        Literal["new", "last", "best"],
        Field(
            description="what a round adds: fresh samples, or the images of the generator's "
            "last or best step themselves"
        ),
    ] = "new"
    fresh: Annotated[
        int, Field(description="fresh images added to the memory per round", ge=0, le=MOST)
    ] = 128
    student_steps: Annotated[int, Field(description="student steps per round", ge=0, le=MOST)] = 10
    terms: Annotated[dict[str, float], Field(description="weights of the synthesis terms")] = {}
    options: Annotated[
        dict[str, bool | int | float | str],
        Field(description="settings of a generator of your own"),
    ] = {}

    @property
    def synthesizes(self) -> bool:
        """Whether it has a generator."""
        return self.generator != "none"


@dataclass(frozen=True)
class Sources:
    """Where the images of a run come from. `ratio` is used as a ratio and for nothing else."""

    real: bool  # real images may be read
    synthetic: bool  # synthetic images are made, or read
    ratio: float  # share of synthetic ones among those that the student sees, 0..1


class Recipe(Table):
    """One complete, frozen description of a run."""

    pipeline: Annotated[
        str,
        Field(description="stages and defaults to start from: a shipped name or a .toml file"),
        Flag("--pipeline", "stages and defaults: a shipped name or a file"),
    ] = "synthkd"
    teacher: TeacherTable = TeacherTable()
    student: StudentTable = StudentTable()
    data: DataTable = DataTable()
    budget: BudgetTable = BudgetTable()
    run: RunTable = RunTable()
    generator: GeneratorTable = GeneratorTable()
    procedural: ProceduralTable = ProceduralTable()
    pixels: PixelsTable = PixelsTable()
    diffusion: DiffusionTable = DiffusionTable()
    discriminator: DiscriminatorTable = DiscriminatorTable()
    memory: MemoryTable = MemoryTable()
    difficulty: DifficultyTable = DifficultyTable()
    augment: AugmentTable = AugmentTable()
    training: TrainingTable = TrainingTable()
    teaching: TeachingTable = TeachingTable()
    dataset: DatasetTable = DatasetTable()
    evaluation: EvaluationTable = EvaluationTable()
    stage: tuple[Stage, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.budget.minutes is not None and self.budget.images is not None:
            raise ValueError("give --minutes or --images-seen, not both")
        names = [stage.name for stage in self.stage]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names must differ; got {', '.join(names)}")
        for name in self.run.stages:
            if name not in names:
                raise ValueError(f"run.stages: no stage {quoted(name)}{suggest(name, names)}")
        if self.memory.priority and self.augment.mixup >= 1:
            raise ValueError(
                "memory.priority: every batch is blended, and a blend tells nothing of one image: "
                "give --augment.mixup 0.5 or less"
            )
        if self.teaching.average_weight and not self.training.ema:
            raise ValueError(
                "teaching.average_weight: the student has no average: give training.ema, e.g. 0.999"
            )
        limits = ("max_params", "max_flops", "max_latency_ms")
        if self.student.spec != "auto" and any(getattr(self.student, n) for n in limits):
            raise ValueError(
                "--max-params, --max-flops and --max-latency-ms are for --student auto"
            )
        for name in ("mean", "std"):
            values, channels = getattr(self.teacher, name), self.teacher.channels
            if values == ():
                raise ValueError(f"--teacher-{name} is empty")
            if values and channels and len(values) not in (1, channels):
                raise ValueError(
                    f"--teacher-{name} has {len(values)} numbers for {channels} channels"
                )
        if self.teacher.std is not None and any(s <= 0 for s in self.teacher.std):
            raise ValueError("--teacher-std must be positive")
        return self

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None = None) -> "Recipe":
        """The recipe of a pipeline with some settings changed, by dotted name.

        >>> Recipe.of({"training.batch": 32, "stage.refine.synthesis_steps": 10}).training.batch
        32
        """
        from synthkd.recipe.toml import from_settings

        return from_settings(settings or {})

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that run, in their order."""
        return tuple(s for s in self.stage if not self.run.stages or s.name in self.run.stages)


def sources_of(recipe: Recipe, *, student: bool = True) -> Sources:
    """The sources of a recipe. Without a student there is nothing to mix: real images may be read
    where they are given.

    >>> sources_of(Recipe())
    Sources(real=False, synthetic=True, ratio=1.0)
    """
    if not student:
        return Sources(real=bool(recipe.data.real), synthetic=True, ratio=1.0)
    ratio = recipe.data.mix_ratio
    return Sources(real=ratio < 1, synthetic=ratio > 0, ratio=ratio)


def val_of(recipe: Recipe) -> str:
    """The validation data of a recipe: those it names, the demo's with the demo, else "none"."""
    return recipe.data.val or ("demo:unseen" if recipe.teacher.spec == "demo" else "none")


def check_sources(recipe: Recipe) -> None:
    """Refuses a mix ratio that asks for real images where the recipe names none."""
    if sources_of(recipe).real and not recipe.data.real:
        raise InputError(
            f"mix ratio {recipe.data.mix_ratio:g} needs real images: give --real-data PATH, "
            "or leave --mix-ratio at 1.0 for a data-free run"
        )
