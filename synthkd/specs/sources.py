"""The network behind a SPEC: made, built or read, with weights if there are any."""

import copy
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.core.errors import InputError, quoted, suggest
from synthkd.core.files import sha256_of
from synthkd.core.findings import Finding
from synthkd.networks import NAMES, build_network, is_known, is_named
from synthkd.networks.classifier import Classifier
from synthkd.recipe import TeacherTable, is_installed_call
from synthkd.specs import graphs, zoo
from synthkd.specs.code import call_from_file, call_installed, callables_in, foreign_code, literal
from synthkd.specs.contract import Known, Source, contract
from synthkd.specs.weights import classes_in, fill, is_checkpoint

STUDENT = "student.safetensors"  # of a run directory
_FILE_CALL = re.compile(r"\.py:[A-Za-z_]\w*$")


def is_call(spec: str) -> bool:
    """Whether a SPEC names a callable, in a file or in an installed package."""
    return bool(_FILE_CALL.search(spec)) or is_installed_call(spec)


class BlackBox(nn.Module):
    """A function of the user's as a network: images in, answers out, no gradients.

    It gets a float32 array [B, C, H, W] with pixels in 0..1 (normalised only if --teacher-mean or
    --teacher-std say so), whatever precision the rest is computed in, and may answer in any form
    that `answers.recognise` knows. `digest` stands for what torch cannot see of it.
    """

    digest: Tensor
    KNOWN = Known(mean=(0.0,), std=(1.0,))  # of its input

    def __init__(self, function: Callable[..., Any], spec: str, digest: str) -> None:
        super().__init__()
        self.function, self.spec = function, spec
        self.register_buffer("digest", graphs.as_bytes(digest))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        """[B, C, H, W] to what the function answers."""
        pixels = x.detach().cpu().float().contiguous().numpy()
        with (
            foreign_code(quoted(self.spec)),
            torch.autocast(x.device.type, enabled=False),
            torch.autocast("cpu", enabled=False),
        ):
            return self.function(pixels)


def living(network: Any) -> str:
    """What stands for a living object where a SPEC is written."""
    return f"<{getattr(network, '__name__', type(network).__name__)}>"


def is_saved(spec: str) -> bool:
    """Whether a SPEC brings weights and contract in a file of ours: the demo, or a run. A folder
    that happens to be called as a network of ours is none, unless it holds a student."""
    if is_known(spec):
        return (Path(spec) / STUDENT).is_file()
    return spec == "demo" or Path(spec).is_dir()


def is_fresh(spec: str) -> bool:
    """Whether a SPEC makes a network with random weights, or stands for a Python object."""
    return is_named(spec) or spec.startswith(("torchvision:", "timm:", "<"))


def is_code(spec: str) -> bool:
    """Whether building a network runs somebody's code. Folders of Hugging Face and graphs of ONNX
    that bring some are refused."""
    return not is_fresh(spec) and not spec.startswith(("hf:", "onnx:"))


def is_graph(spec: str) -> bool:
    """Whether a SPEC names a graph: of ONNX, of torch.export, of TorchScript."""
    return spec.startswith("onnx:") or Path(spec).suffix == ".pt2" or graphs.is_script(Path(spec))


def guard(classifier: Classifier, spec: str, role: str) -> None:
    """Lets a classifier whose network is code of the user's be called in `foreign_code`."""
    if is_call(spec):
        classifier.guard = partial(guarded, spec, role)


def guarded(spec: str, role: str) -> AbstractContextManager[None]:
    """What code of the user's is called in: see `foreign_code`. Other networks need none."""
    if is_call(spec):
        return foreign_code(f"--{role} {quoted(spec)}")
    return nullcontext()


def source_of(
    spec: str, weights: str, table: TeacherTable, *, trust_code: bool, role: str,
    network: Any = None,
) -> Source:  # fmt: skip
    """The network behind a SPEC, with weights if there are any."""
    if network is not None:
        return _made(_copied(network, spec, role), spec, weights, table, role)
    if spec.startswith("<"):
        raise InputError(
            f"--{role} {quoted(spec)} was given as a Python object, which no file can bring back: "
            f"give it again, as {role}= of synthkd.distill or network= of synthkd.load_student"
        )
    if table.args and not is_call(spec):
        raise InputError(f"--{role}-args are for a callable; {quoted(spec)} is none")
    if is_named(spec):
        return _named(spec, weights, table, role)
    kind, _, rest = spec.partition(":")
    if kind == "torchvision":
        return zoo.from_torchvision(rest, weights, table, role)
    if kind == "timm":
        return zoo.from_timm(rest, weights, table, role)
    if weights == zoo.HUB:
        raise InputError(f"--{role}-weights hub: only for torchvision: and timm: networks")
    found: Source | None = None
    if kind == "hf":
        found = zoo.from_hugging_face(Path(rest), role)
    elif kind == "onnx":
        found = graphs.from_onnx(Path(rest), role, table)
    elif is_graph(spec):
        found = graphs.from_code(Path(spec), role, table, trust_code=trust_code)
    if found is not None:
        if weights:
            raise InputError(
                f"--{role} {quoted(spec)} brings its own weights: omit --{role}-weights"
            )
        return found
    if Path(spec).is_file():
        _check_file(Path(spec), role)
    named = {key: literal(value) for key, value in table.args.items()}
    if _FILE_CALL.search(spec):
        body = call_from_file(spec, (), trust_code=trust_code, what=f"--{role}", named=named)
    elif is_installed_call(spec):
        body = call_installed(spec, named, role=role)
    else:
        raise InputError(
            f"--{role} {quoted(spec)}: neither a run directory, nor a built-in network, nor "
            "torchvision:NAME, timm:NAME, hf:DIR, onnx:FILE, FILE.pt2, "
            "package.module:callable or file.py:callable"
        )
    return _made(body, spec, weights, table, role)


def _copied(network: Any, spec: str, role: str) -> Any:
    """A copy of a living network, so that the user's own is left as it is."""
    if not isinstance(network, nn.Module):
        return network
    try:
        return copy.deepcopy(network)
    except Exception as error:  # whatever the user's network holds that cannot be copied
        said = quoted(" ".join(str(error).split()) or type(error).__name__, 120)
        function = "a function that calls it, or " if role == "teacher" else ""
        raise InputError(
            f"--{role} {quoted(spec)}: a copy of this network would be used, and it cannot be "
            f"copied ({said}): give {function}'package.module:callable', which makes one"
        ) from None


def _made(body: Any, spec: str, weights: str, table: TeacherTable, role: str) -> Source:
    """What a callable of the user's made, or a living object, as a network."""
    if callable(body) and not isinstance(body, nn.Module):
        seen = getattr(body, "__code__", None)  # of a plain function, the file that it stands in
        path = Path(spec.rpartition(":")[0]) if seen is None else Path(seen.co_filename)
        body = BlackBox(body, spec, sha256_of(path) if path.is_file() else spec)
        if weights:
            raise InputError(
                f"--{role}-weights: {quoted(spec)} is a function and takes none: omit it"
            )
        return Source(body, BlackBox.KNOWN, True)
    if not isinstance(body, nn.Module):
        raise InputError(
            f"--{role} {quoted(spec)} must return a torch.nn.Module; got {type(body).__name__}"
        )
    try:
        body = body.cpu()  # it is moved to where it shall compute once it is known
    except NotImplementedError:
        raise InputError(
            f"--{role} {quoted(spec)} has no weights (its tensors are on the device meta): make it "
            "on the CPU, or call its to_empty and load its weights"
        ) from None
    held = zoo.held_in(weights, table, role)
    notes = fill(body, held) if held is not None else ()
    body, notes = _in_float32(body, notes)
    return Source(body, Known(), True, notes)


def _check_file(path: Path, role: str) -> None:
    """Refuses a file that is no network by itself, and says how it can be used."""
    if path.suffix == ".onnx":
        raise InputError(f"--{role} {quoted(path)}: give a graph as onnx:{path}")
    if path.suffix == ".py":
        names = callables_in(path)
        known = f"; in it: {', '.join(map(quoted, names[:8]))}" if names else ""
        raise InputError(
            f"--{role} {quoted(path)}: which callable of it? Give {quoted(f'{path}:NAME')}{known}"
        )
    raise InputError(
        f"--{role} {quoted(path)} holds weights: name the network that they belong to, and give "
        f"them with --{role}-weights"
        if is_checkpoint(path) else f"--{role} {quoted(path)}: not a network that synthkd can read"
    )  # fmt: skip


def _in_float32(
    body: nn.Module, notes: tuple[Finding, ...]
) -> tuple[nn.Module, tuple[Finding, ...]]:
    """A network of half or double precision as one that computes in float32."""
    kinds = {p.dtype for p in (*body.parameters(), *body.buffers()) if p.is_floating_point()}
    other = sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32})
    if not other:
        return body, notes
    seen = f"the network is made in {', '.join(other)}; it runs in float32"
    return body.float(), (*notes, Finding("network-precision", seen, ""))


def _named(spec: str, weights: str, table: TeacherTable, role: str) -> Source:
    """A built-in network. It is given its number of classes; the last layer in the file knows it
    best."""
    if not is_known(spec):
        raise InputError(
            f"there is no run directory {quoted(spec)}, and no network is called {quoted(spec)}"
            f"{suggest(spec, NAMES)}"
        )
    if weights == zoo.HUB:
        raise InputError(f"{quoted(spec)}: built-in networks have no weights on a hub")
    held = zoo.held_in(weights, table, role)
    known = None
    if held is not None:
        names = build_network(spec, channels=1, size=32, classes=10).state_dict()
        known = classes_in(held.by_name(names))
    if table.classes and known and table.classes != known:
        raise InputError(f"--classes {table.classes}: {quoted(weights)} has {known} classes")
    told = contract(spec, table, Known())
    body = build_network(
        spec, channels=told.channels, size=told.shape[1:], classes=table.classes or known or 10
    )
    notes = fill(body, held) if held is not None else ()
    return Source(body, Known(), held is not None, notes)
