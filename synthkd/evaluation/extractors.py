"""Networks that look at images to score them: a classifier, or torch-fidelity's Inception-v3."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from synthkd.core.errors import InputError, quoted
from synthkd.core.files import sha256_of
from synthkd.core.images import fitted, to_float
from synthkd.data.sources import Images
from synthkd.specs.pickles import check_room, read_pickled
from synthkd.teachers.protocol import Observation, Teacher

STANDARD_INCEPTION = "6726825d"  # how the SHA-256 of torch-fidelity's published file begins


@dataclass(frozen=True)
class Extractor:
    """Who looks at images: uint8 [B, C, H, W] of any size in, features and logits out."""

    name: str  # teacher, inception or a SPEC
    digest: str  # SHA-256 of its weights
    kind: str  # in words, for tables
    standard: bool  # its scores can be compared with published ones
    look: Callable[[Tensor], Observation]
    teacher: Teacher | None = None  # the classifier behind it


def classifier_extractor(teacher: Teacher, name: str = "teacher") -> Extractor:
    """A classifier as an extractor: the input of its last linear layer, or else its logits."""

    def look(pixels: Tensor) -> Observation:
        with torch.no_grad(), teacher.exact():
            seen = teacher.observe(to_float(fitted(pixels, teacher.spec).to(teacher.device)))
        return seen if seen.features is not None else seen._replace(features=seen.logits)

    what = "features" if teacher.feature_size else "logits"
    return Extractor(name, teacher.digest, f"{what} of a classifier", False, look, teacher)


def inception_extractor(
    weights: Path | None = None, device: torch.device | None = None
) -> Extractor:
    """torch-fidelity's Inception-v3: 2048 features of the last pool, 1008 logits without bias.

    `weights` is a local copy of its file; without one it is downloaded once into torch's cache. The
    file must be a plain state dict, and no larger than this machine bears (`specs.pickles`):
    torch-fidelity would unpickle anything, so it gets the tensors alone. Only the published file,
    known by its SHA-256, is called standard.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import (
        URL_INCEPTION_V3,
        FeatureExtractorInceptionV3,
    )

    path = weights or downloaded(URL_INCEPTION_V3)
    where = quoted(path)
    try:
        check_room(path.stat().st_size, where)
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {quoted(error.strerror)}") from None
    try:
        state = read_pickled(path, where)
    except InputError as error:
        said = str(error).partition("; save the state_dict")[0]
        raise InputError(f"{said}; get the file from {URL_INCEPTION_V3}") from None
    named = state.items() if isinstance(state, dict) else [("", None)]
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in named):
        raise InputError(f"{where} is not a plain state dict; get the file from {URL_INCEPTION_V3}")
    plain = io.BytesIO()  # written by us: nothing else of the file reaches torch-fidelity
    torch.save(dict(state), plain)
    plain.seek(0)
    try:
        network = FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=plain
        )
    except RuntimeError:
        raise InputError(
            f"{where} holds weights of another architecture than torch-fidelity's Inception; "
            f"get the file from {URL_INCEPTION_V3}"
        ) from None
    place = device or torch.device("cpu")
    network.to(place)

    def look(pixels: Tensor) -> Observation:
        with torch.no_grad():
            features, logits = network(_colour(pixels).to(place))
        return Observation(logits, features, ())

    digest = sha256_of(path)
    standard = digest.startswith(STANDARD_INCEPTION)
    kind = "standard Inception-v3" if standard else "unverified Inception-v3"
    return Extractor("inception", digest, kind, standard, look)


def downloaded(url: str, folder: Path | None = None) -> Path:
    """The file behind `url` in torch's cache, fetched once and held to STANDARD_INCEPTION."""
    path = (folder or Path(torch.hub.get_dir()) / "checkpoints") / url.rsplit("/", 1)[1]
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            url, str(path), hash_prefix=STANDARD_INCEPTION, progress=False
        )
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"the Inception weights could not be downloaded ({quoted(error)}): copy {url} here "
            "and give --extractor-weights FILE, or use --extractor teacher"
        ) from None
    return path


class FidelityDataset(Dataset[Tensor]):
    """Images as torch-fidelity wants them: one uint8 tensor [3, H, W] per item."""

    def __init__(self, pixels: Tensor) -> None:
        if pixels.dtype != torch.uint8 or pixels.dim() != 4:
            raise TypeError(
                f"images must be uint8 [N, C, H, W]; got {pixels.dtype} {tuple(pixels.shape)}"
            )
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return _colour(self.pixels[index : index + 1])[0]


def fidelity_dataset(images: Images) -> FidelityDataset:
    """`images` for torch-fidelity: grey is copied to three channels, alpha is dropped, no resizing.

    >>> images = Images(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), None, (), "memory", "")
    >>> fidelity_dataset(images)[1].shape
    torch.Size([3, 4, 4])
    """
    return FidelityDataset(images.pixels)


def _colour(pixels: Tensor) -> Tensor:
    """uint8 [B, C, H, W] with three channels."""
    return pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1].expand(-1, 3, -1, -1)
