"""Files of weights: read without running anything, compared before they are loaded."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from synthkd.errors import InputError, quoted


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors from a file of weights. Nothing in the file is executed.

    Nested dictionaries under `state_dict`, `model_state_dict`, `model`, `net` or `weights` are
    opened, and prefixes that every name shares (`module.`, `_orig_mod.`) are taken away.
    """
    where = quoted(path)
    if not path.is_file():
        raise InputError(f"{where}: there is no such file of weights")
    with path.open("rb") as file:
        head = file.read(64)
    if path.suffix == ".safetensors":
        try:
            data: Any = load_file(str(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(
                f"{where} is not a readable safetensors file: {quoted(error)}"
            ) from None
    elif path.suffix in (".pt", ".pth", ".th", ".bin"):
        if head[:1] in (b"<", b"{") or head.startswith(b"version https://git-lfs"):
            raise InputError(
                f"{where} is text (a web page or a pointer?), not weights: download the file itself"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's words about pickles are not for users
                data = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # whatever a damaged or hostile file raises
            raise InputError(
                f"{where} is not plain weights: it is damaged, or a pickle that would run code; "
                "save the state_dict alone, best as .safetensors"
            ) from None
    else:
        raise InputError(f"{where}: weights must be .safetensors, .pt, .pth or .th")
    return _tensors(data, where)


def _tensors(data: Any, where: str) -> dict[str, Tensor]:
    for _ in range(3):
        if isinstance(data, Mapping):
            inner = [
                data[k]
                for k in ("state_dict", "model_state_dict", "model", "net", "weights")
                if k in data
            ]
            if inner and isinstance(inner[0], Mapping):
                data = inner[0]
    if not isinstance(data, Mapping):
        raise InputError(f"{where} holds a {type(data).__name__}, not named tensors")
    state = {str(key): value for key, value in data.items() if isinstance(value, Tensor)}
    if not state:
        raise InputError(f"{where} holds no named tensors")
    for key, tensor in state.items():
        if not _is_plain(tensor):
            raise InputError(f"{where}: {quoted(key)} is not a plain tensor")
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _is_plain(tensor: Tensor) -> bool:
    """Whether it holds every number that its shape promises: views of one number repeated, sparse,
    quantised and empty shells do not."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def classes_in(state: dict[str, Tensor] | None) -> int | None:
    """The length of the last vector in a state dict: the bias of the classifier."""
    vectors = [t for t in (state or {}).values() if t.dim() == 1]
    return len(vectors[-1]) if vectors else None


def fill(body: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Loads weights into a network after comparing names and shapes; what differs is one
    InputError."""
    own = body.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own]
    wrong = [k for k in own if k in state and state[k].shape != own[k].shape]
    if missing or extra or wrong:
        parts = [
            f"{label} {', '.join(quoted(k) for k in keys[:2])}"
            + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")
            for label, keys in (
                ("missing", missing),
                ("unknown", extra),
                ("of another shape", wrong),
            )
            if keys
        ]
        raise InputError(f"{quoted(where)} does not fit this architecture: {'; '.join(parts)}")
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"{quoted(where)}: the weights {quoted(key)} hold NaN or infinity")
    body.load_state_dict(state, strict=False)
