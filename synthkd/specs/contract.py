"""What a network wants to be fed, as far as its source tells."""

from dataclasses import dataclass

from torch import nn

from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec
from synthkd.recipe import TeacherTable


@dataclass(frozen=True)
class Known:
    """What a source says about its network; None where it is silent."""

    channels: int | None = None
    size: tuple[int, int] | None = None  # height, width
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: int | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A network out of a SPEC, weights included where `complete`. `notes` say what was understood
    of its files where they could be understood otherwise."""

    body: nn.Module
    known: Known
    complete: bool
    notes: tuple[Finding, ...] = ()


def sides(table: TeacherTable) -> tuple[int, int] | None:
    """Height and width that flags tell."""
    size = table.image_size
    return (size, size) if isinstance(size, int) else size


def own_first(flags: TeacherTable, known: Known) -> TeacherTable:
    """Flags that were said of another network, a student's teacher: what a source says of its own
    input stands in their place."""
    own = {
        "image_size": known.size, "channels": known.channels, "mean": known.mean, "std": known.std,
    }  # fmt: skip
    return flags.model_copy(update={key: value for key, value in own.items() if value is not None})


def check_inside(spec: str, flags: TeacherTable, known: Known) -> None:
    """Refuses flags that would normalise images before a graph that does so itself, which is all
    that a graph tells of its mean and deviation."""
    for given, own in ((flags.mean, known.mean), (flags.std, known.std)):
        if given and own and any(abs(value - own[0]) > 1e-4 for value in given):
            wanted = "pixels 0..255" if known.std == (1 / 255,) else "pixels in 0..1"
            raise InputError(
                f"--teacher {quoted(spec)}: it takes {wanted} and normalises by itself: omit "
                "--teacher-mean and --teacher-std"
            )


def contract(spec: str, flags: TeacherTable, known: Known) -> ImageSpec:
    """The input contract: flags first, then what the source says. What neither tells is one
    InputError."""
    size = sides(flags) or known.size
    channels = flags.channels or known.channels
    mean, std = flags.mean or known.mean, flags.std or known.std
    words = ("--image-size", "--channels", "--teacher-mean", "--teacher-std")
    if spec.startswith("<"):  # a living object, given in Python
        words = ("image_size=", "channels=", "mean=", "std=")
    values = (size, channels, mean, std)
    missing = [word for word, value in zip(words, values, strict=True) if value is None]
    if missing:
        raise InputError(
            f"{quoted(spec)} does not say what its input is: give {', '.join(missing)}"
        )
    assert size and channels and mean and std
    if not 1 <= channels <= 4 or not all(8 <= side <= 1024 for side in size):
        raise InputError(
            f"{quoted(spec)}: images of {channels} x {size[0]} x {size[1]}: 1 to 4 channels of 8 "
            "to 1,024 pixels are taken"
        )
    mean, std = (v * channels if len(v) == 1 else v for v in (mean, std))
    if len(mean) != channels or len(std) != channels:
        raise InputError(
            f"{quoted(spec)}: {len(mean)} means and {len(std)} deviations for {channels} channels: "
            "give --teacher-mean and --teacher-std"
        )
    return ImageSpec(channels, *size, mean, std)
