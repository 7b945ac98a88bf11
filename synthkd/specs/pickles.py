"""Files of torch.save, read through torch's weights-only reader: nothing in them is executed.

Beside weights people save what else was at hand: options, paths, numpy's numbers, whole networks.
The reader refuses such files outright, though the objects are harmless. Here each name that a file
asks for is given an inert stand-in of our own instead, which takes what it is handed and does
nothing: no module of theirs is imported, no function of theirs can be called.
"""

import io
import pickletools
import sys
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from synthkd.core.errors import InputError, quoted
from synthkd.core.memory import machine_memory

MOST_GROWTH = 4  # times its size on the disk a file may take unpacked
ALLOWANCE = 64 << 20  # bytes that it may take in any case
MOST_PICKLED = 128 << 20  # bytes of structure, the tensors left out
ZIP = b"PK\x03\x04"
OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how such files begin


class Opaque:
    """Stands for a value: a number of numpy's, a path, a date. It forgets what it is given."""

    def __init__(self, *values: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Forgets."""


class Record:
    """Stands for a class whose objects hold others: each becomes a plain ordered dictionary, with
    attributes as attributes."""

    def __new__(cls, *values: Any) -> Any:
        """An empty one."""
        return OrderedDict()


class Items:
    """Stands for a class of lists."""

    def __new__(cls, *values: Any) -> Any:
        """An empty list."""
        return []


class _Uncalled(type):
    def __call__(cls, *values: Any) -> Any:
        raise ValueError("a foreign name would be called")


class Foreign(metaclass=_Uncalled):
    """Stands for a class that nobody here knows. Its objects may hold others, as those of `Record`;
    a file that wants to call it, as every payload must, is refused."""

    def __new__(cls, *values: Any) -> Any:
        """An empty one."""
        return OrderedDict()


# what people keep beside weights, by full name
VALUES = {
    *(f"pathlib{m}.{kind}{c}" for m in ("", "._local") for kind in ("Posix", "Windows", "Pure",
      "PurePosix", "PureWindows", "") for c in ("Path",)),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in (
        "scalar", "_reconstruct")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
    *(f"numpy.random._{name.lower()}.{name}" for name in (
        "PCG64", "MT19937", "Philox", "SFC64")),
    "numpy.random.bit_generator.SeedSequence",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    *(f"numpy.random._pickle.__{name}_ctor" for name in (
        "generator", "randomstate", "bit_generator")),
    *(f"numpy.{name}" for name in (
        "dtype", "ndarray", "float16", "float32", "float64", "int8", "int16", "int32", "int64",
        "uint8", "uint16", "uint32", "uint64", "bool", "bool_", "str_")),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(f"builtins.{name}" for name in (
        "int", "float", "str", "bool", "bytes", "list", "dict", "tuple", "frozenset", "slice",
        "range", "object", "type", "NoneType", "Ellipsis")),
    "decimal.Decimal", "fractions.Fraction", "uuid.UUID", "re._compile", "copyreg._reconstructor",
    "functools.partial", "torch.Generator", "torch.memory_format",
    "torch.serialization._get_memory_format",
    *(f"typing.{name}" for name in (
        "Any", "Union", "Optional", "List", "Dict", "Tuple", "Set", "Literal", "Sequence",
        "Mapping", "Callable")),
}  # fmt: skip
RECORDS = {
    "argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict",
    "collections.ChainMap", "collections.UserDict", "logging.Logger", "random.Random",
}  # fmt: skip
LISTS = {"collections.deque", "collections.UserList"}
# packages of settings and of training loops
PACKAGES = {
    "omegaconf", "antlr4", "yacs", "easydict", "addict", "ml_collections", "munch", "mmengine",
    "mmcv", "mmcls", "mmpretrain", "detectron2", "fvcore", "iopath", "lightning",
    "lightning_fabric", "lightning_utilities", "pytorch_lightning", "torchmetrics", "hydra",
    "transformers", "timm", "accelerate", "ignite", "catalyst", "fastai", "composer", "box",
}  # fmt: skip
# of torch itself, classes whose objects hold others
INERT = (
    "torch.nn.modules.", "torch.nn.parallel.", "torch.optim.", "torch.amp.", "torch.cuda.amp.",
)  # fmt: skip
_HARMFUL = {  # never a class of the user's, and never needed to read weights
    "builtins", "torch", "numpy", "posix", "nt", "_io", "__builtin__", "pip", "setuptools",
    "pkg_resources", "scipy", "onnxruntime", "pandas", "IPython", "pytest", "_pytest",
}  # fmt: skip


def stand_in(name: str) -> Any:
    """What stands for a name that a file asks for; None where it is refused."""
    root = name.partition(".")[0]
    if name in VALUES:
        return Opaque
    if name in RECORDS or root in PACKAGES:
        return Record
    if name in LISTS:
        return Items
    if name.startswith(INERT):
        return Foreign
    # `__main__` is where scripts define their classes
    known = root in sys.stdlib_module_names and root != "__main__"
    return None if known or root in _HARMFUL or root.startswith("_io") else Foreign


def read_pickled(path: Path, where: str) -> Any:
    """What a file of torch.save holds: tensors, plain data, and stand-ins for the rest."""
    try:
        names = _names(path, where)
        stands = [(stand_in(name), name) for name in sorted(names)]
        strange = [name for stand, name in stands if stand is None and not _is_torchs(name)]
        if strange:
            raise InputError(
                f"{where} is not plain weights: a pickle that asks for {quoted(strange[0])}, which "
                "could run code; save the state_dict alone, best as .safetensors"
            )
        more: Any = [(stand, name) for stand, name in stands if stand and not _is_torchs(name)]
        with warnings.catch_warnings(), torch.serialization.safe_globals(more):
            warnings.simplefilter("ignore")  # torch's words about pickles are not for users
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception:  # whatever a damaged or hostile file raises
        raise InputError(
            f"{where} is not plain weights: it is damaged, or a pickle that would run code; "
            "save the state_dict alone, best as .safetensors"
        ) from None


def _is_torchs(name: str) -> bool:
    """Whether torch's own reader knows a name."""
    from torch._weights_only_unpickler import _get_allowed_globals

    return name in _get_allowed_globals()


def _names(path: Path, where: str) -> set[str]:
    """The full names of what the pickles in a file ask for, found without unpickling."""
    names: set[str] = set()
    with path.open("rb") as file:
        if file.read(len(ZIP)) == ZIP:  # so judges torch, too
            with zipfile.ZipFile(path) as archive:
                check_archive(archive, path, where)
                _check_kind(archive.namelist(), where)
                for info in archive.infolist():
                    if info.filename.rpartition("/")[2] != "data.pkl":
                        continue
                    if info.file_size > MOST_PICKLED:
                        raise InputError(f"{where}: more structure than weights have: not read")
                    names |= _asked(io.BytesIO(archive.read(info)), where)
            return names
        file.seek(0)
        old = file.read(len(OLD)) == OLD  # the old form: some pickles in a row, then tensors
        file.seek(0)
        for _ in range(5 if old else 1):
            names |= _asked(file, where)
    return names


def _check_kind(names: list[str], where: str) -> None:
    """Refuses an archive that is none of weights, and says what it is."""
    if any("/code/" in name for name in names):
        raise InputError(
            f"{where} is TorchScript, which brings its own network: give it as the network itself"
        )
    if any(name.rpartition("/")[2] == "archive_format" for name in names):
        raise InputError(
            f"{where} is an export of torch (.pt2), which brings its own network: give it as the "
            "network itself"
        )
    if any(name.endswith(".npy") for name in names):
        raise InputError(
            f"{where} is an archive of numpy's arrays: save the state_dict as .safetensors"
        )


def _asked(file: Any, where: str) -> set[str]:
    found = set()
    for code, value, _ in pickletools.genops(file):
        if code.name == "PROTO" and value is not None and value > 2:
            raise InputError(
                f"{where} is not plain weights: a pickle of protocol {value}, which torch reads "
                "only where it may run code; save the state_dict alone by torch.save, or as "
                ".safetensors"
            )
        if code.name in ("GLOBAL", "INST"):
            module, _, name = str(value).partition(" ")
            module, name = NAME_MAPPING.get((module, name), (module, name))
            found.add(f"{IMPORT_MAPPING.get(module, module)}.{name}")
    return found


def check_archive(archive: zipfile.ZipFile, path: Path, where: str) -> None:
    """Refuses a zip archive that unpacks to far more than it takes on the disk, or to more than
    half of the machine's memory. Only its directory is read."""
    whole, size = sum(info.file_size for info in archive.infolist()), path.stat().st_size
    if whole > MOST_GROWTH * size + ALLOWANCE:
        raise InputError(
            f"{where} unpacks to {whole / 1e6:,.0f} MB out of {size / 1e6:,.1f} MB: not read"
        )
    check_room(whole, where)


def check_room(size: int, where: str) -> None:
    """Refuses what would take more than half of the machine's memory."""
    memory = machine_memory()
    if size > memory / 2:
        raise InputError(
            f"{where} holds {size / 1e9:,.1f} GB, this machine {memory / 1e9:,.1f} GB of memory: "
            "not read"
        )
