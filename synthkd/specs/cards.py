"""The card of a saved network: what rebuilds it, in the header of its safetensors file."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from synthkd.errors import InputError, quoted
from synthkd.images import ImageSpec
from synthkd.networks.classifier import Classifier


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

    @property
    def image_spec(self) -> ImageSpec:
        """The input contract."""
        return ImageSpec(self.channels, self.height, self.width, tuple(self.mean), tuple(self.std))

    def header(self) -> dict[str, str]:
        """As safetensors metadata."""
        # one entry only: safetensors writes several in an order that changes from call to call
        return {"synthkd": json.dumps(asdict(self))}


def card_of(classifier: Classifier, network: str, names: tuple[str, ...]) -> Card:
    """The card that rebuilds a classifier from `network`."""
    spec = classifier.spec
    return Card(
        network, spec.channels, spec.height, spec.width, spec.mean, spec.std,
        classifier.classes, classifier.answers, names,
    )  # fmt: skip


def read_card(path: Path) -> Card:
    """The card in the header of a safetensors file of ours."""
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
        data = json.loads(header["synthkd"])
        data |= {key: tuple(data[key]) for key in ("mean", "std", "names")}
        return Card(**data)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError):
        raise InputError(
            f"{quoted(path)} is not a network saved by synthkd (no card in its header)"
        ) from None
