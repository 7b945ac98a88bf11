"""The card of a saved network: what rebuilds it, in the header of its safetensors file."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

from safetensors import SafetensorError, safe_open

from synthkd.core.errors import InputError, quoted
from synthkd.core.images import ImageSpec
from synthkd.networks.classifier import Classifier
from synthkd.recipe import MOST_CLASSES


@dataclass(frozen=True)
class Card:
    """What rebuilds a classifier beside its weights: kept in the header of a safetensors file."""

    network: str  # a SPEC
    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    answers: str
    names: tuple[str, ...] = ()
    args: dict[str, str] = field(default_factory=dict)  # of the SPEC, if it is a callable
    of: str = ""  # of a `prune:RATIO`: the SPEC of the network that was pruned

    def __post_init__(self) -> None:
        """Raises ValueError where it contradicts itself."""
        sizes = (self.channels, self.height, self.width, self.classes)
        words = (self.network, self.of)
        if not all(isinstance(n, int) for n in sizes) or not all(isinstance(w, str) for w in words):
            raise ValueError("numbers or names that are none")
        if not (1 <= self.channels <= 4 and 8 <= self.height <= 1024 and 8 <= self.width <= 1024):
            raise ValueError("images of no size")
        if not (len(self.mean) == len(self.std) == self.channels):
            raise ValueError("means and deviations for other channels")
        if not all(math.isfinite(v) for v in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ValueError("means and deviations that are none")
        if not 2 <= self.classes <= MOST_CLASSES or len(self.names) not in (0, self.classes):
            raise ValueError("names for other classes")

    @property
    def image_spec(self) -> ImageSpec:
        """The input contract."""
        return ImageSpec(self.channels, self.height, self.width, tuple(self.mean), tuple(self.std))

    def header(self) -> dict[str, str]:
        """As safetensors metadata."""
        # one entry only: safetensors writes several in an order that changes from call to call
        return {"synthkd": json.dumps(asdict(self))}


def card_of(
    classifier: Classifier, network: str, names: tuple[str, ...],
    args: Mapping[str, str] = MappingProxyType({}), of: str = "",
) -> Card:  # fmt: skip
    """The card that rebuilds a classifier from `network`, called with `args` if it is code; where
    it is pruned, from one that is pruned `of`."""
    spec = classifier.spec
    return Card(
        network, spec.channels, spec.height, spec.width, spec.mean, spec.std,
        classifier.classes, classifier.answers, names, dict(args), of,
    )  # fmt: skip


def read_card(path: Path) -> Card:
    """The card in the header of a safetensors file of ours."""
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
        data = json.loads(header["synthkd"])
        data |= {key: tuple(float(v) for v in data[key]) for key in ("mean", "std")}
        data["names"] = tuple(str(name) for name in data["names"])
        data["args"] = {str(k): str(v) for k, v in dict(data.get("args") or {}).items()}
        return Card(**data)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        card = isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError)
        why = f"its card has {error}" if card else "no card in its header"
        raise InputError(f"{quoted(path)} is not a network saved by synthkd ({why})") from None
