"""The files that a recipe names, by what they are for. Knows no torch, and opens as little as it
can: the beginning of a file that names others."""

import functools
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from synthkd.core.errors import InputError
from synthkd.core.files import exists
from synthkd.proof.places import inside, package_places
from synthkd.recipe import Recipe, is_installed_call, pipeline_path, sources_of, val_of
from synthkd.recipe.toml import plain_toml

ENSEMBLE, HUB = "ensemble:", "hub"
STUDENT = "student.safetensors"
MOST_HEADER = 64 << 20  # bytes of a graph that are searched for the names of others
# what a folder of Hugging Face is read for
FOLDER = (".json", ".safetensors", ".bin", ".pth", ".pt", ".txt")
REAL, VALIDATION = "real data", "validation data"
DEMO_DIGITS = "datasets/data/digits.csv.gz"  # in scikit-learn's package

_LOCATION = re.compile(rb"\n\x08location\x12([\x01-\x7f])")  # of external data, as protobuf has it
_CODE = re.compile(r"(?P<file>.+\.py):[A-Za-z_]\w*(?::(?P<argument>.*))?", re.DOTALL)
_PART = re.compile(r"(?P<file>.+\.npz):[A-Za-z]+", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """A path that a run may read: a file, or with `tree` all below a folder; with `listed` the
    names in a folder, and none of its files."""

    path: Path
    role: str  # teacher, student, generator, recipe, real data, validation data, synthetic data
    tree: bool = False
    listed: bool = False

    @functools.cached_property
    def real(self) -> str:
        """The path with links followed, as it was when it was first asked for."""
        return os.path.realpath(self.path)


def holder(places: Sequence[Place], path: str) -> Place | None:
    """The first of the places that is a path, links followed, or has it below itself."""
    for place in places:
        if path == place.real or (place.tree and inside(path, place.real)):
            return place
    return None


def declared(recipe: Recipe, *, student: bool = True) -> list[Place]:
    """The places that a recipe names and that a run by it may read, those of a run that makes
    images alone where there is no `student`."""
    teacher, learner = recipe.teacher, recipe.student
    found = [Place(path, "recipe") for path in (pipeline_path(recipe.pipeline),) if exists(path)]
    found += _network(teacher.spec, teacher.weights, "teacher")
    found += _named_file(teacher.class_names, "teacher")
    found += [Place(Path(path), "plugin") for path in recipe.run.plugins]
    if student:
        found += _network(learner.spec, learner.weights, "student")
        for spec in (*recipe.teaching.assistants, *filter(None, (recipe.teaching.peer,))):
            found += _network(spec, "", "student")
        found += _images(val_of(recipe), VALIDATION)
        found += _named_file(recipe.data.class_order, VALIDATION)
        found += _images(recipe.data.synthetic, "synthetic data")
    if sources_of(recipe, student=student).real:
        found += _images(recipe.data.real, REAL)
    start = recipe.generator.start
    if start and not start.startswith(f"{HUB}:"):
        found.append(Place(Path(start), "generator", tree=True))
    return [place for place in dict.fromkeys(found) if exists(place.path)]


def needs_network(recipe: Recipe) -> str:
    """The setting for which a run by this recipe reaches into a network; "" where none does."""
    for name, value in (
        ("--teacher-weights", recipe.teacher.weights),
        ("--student-weights", recipe.student.weights),
    ):  # fmt: skip
        if value == HUB:
            return f"{name} {HUB}"
    start = recipe.generator.start
    return f"--generator-from {start}" if start.startswith(f"{HUB}:") else ""


def living(recipe: Recipe) -> bool:
    """Whether living objects stand in the place of files, so that the program that brought them may
    have opened anything."""
    specs = (recipe.teacher.spec, recipe.student.spec, recipe.data.real, recipe.data.val)
    return any(spec.startswith("<") for spec in specs)


def _network(spec: str, weights: str, role: str) -> Iterator[Place]:
    """The files of a SPEC and of its weights."""
    if weights and weights != HUB:
        yield Place(Path(weights), role)
    kind, _, rest = spec.partition(":")
    if spec.startswith(ENSEMBLE):
        yield Place(Path(rest), role)
        for each in _teachers_in(Path(rest)):
            yield from _network(str(each.get("spec", "demo")), str(each.get("weights", "")), role)
            yield from _named_file(str(each.get("class_names", "")), role)
    elif found := _CODE.fullmatch(spec):
        yield Place(Path(found["file"]), role)
    elif kind == "onnx":
        yield Place(Path(rest), role)
        yield from (Place(path, role) for path in external_files(Path(rest)))
    elif kind == "hf":
        yield from _folder(Path(rest), role)
    elif is_installed_call(spec):
        yield from _module(kind, role)
    elif Path(spec).is_dir():
        yield Place(Path(spec) / STUDENT, role)
        yield Place(Path(spec) / "manifest.json", role)
        network = _built_by(Path(spec) / STUDENT)
        if network and network != spec and not Path(network).is_dir():
            yield from _network(network, "", role)
    elif exists(Path(spec)):
        yield Place(Path(spec), role)


def _teachers_in(path: Path) -> list[Mapping[str, Any]]:
    """The tables of a file of several teachers; what is wrong with it is said where it is read."""
    try:
        listed = plain_toml(path).get("teacher")
    except InputError:
        return []
    tables = listed if isinstance(listed, list) else []
    return [
        t for t in tables if isinstance(t, dict) and not str(t.get("spec")).startswith(ENSEMBLE)
    ]


def external_files(path: Path) -> list[Path]:
    """The plain files beside an ONNX graph that it names as its external data."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_HEADER)
    except OSError:
        return []
    names = {data[m.end() : m.end() + m[1][0]] for m in _LOCATION.finditer(data)}
    beside = [path.parent / os.fsdecode(name) for name in names if b"\0" not in name]
    return sorted(
        p for p in beside if p.parent == path.parent and p.is_file() and not p.is_symlink()
    )


def _folder(folder: Path, role: str) -> Iterator[Place]:
    """The files of a folder of Hugging Face that are read, and its names."""
    yield Place(folder, role, listed=True)
    try:
        names = sorted(folder.iterdir())
    except OSError:
        return
    # in Hugging Face's own cache the files are links into a folder of blobs
    blobs = (folder.parent.parent / "blobs").resolve()
    snapshot = folder.parent.name == "snapshots"
    for path in names:
        target = path.resolve()
        near = target.parent == folder.resolve() or (snapshot and target.parent == blobs)
        if path.suffix in FOLDER and near and target.is_file():
            yield Place(path, role)


def _module(name: str, role: str) -> Iterator[Place]:
    """The package of an installed callable, where it lies outside Python's own folders."""
    for path in _package(name.partition(".")[0]):
        if not any(inside(os.path.realpath(path), place) for place in package_places()):
            yield Place(Path(path), role, tree=Path(path).is_dir())


def _package(name: str) -> list[str]:
    """The folders of a package, or the file of a module, which is not imported."""
    try:
        found = PathFinder.find_spec(name, sys.path)
    except (ImportError, ValueError):
        return []
    where = [*(found.submodule_search_locations or ())] if found else []
    return where or ([found.origin] if found and found.origin else [])


def _built_by(path: Path) -> str:
    """The SPEC that the card in the header of a student names; "" where there is none."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), MOST_HEADER)))
        card = json.loads(header["__metadata__"]["synthkd"])
        return str(card.get("of") or card["network"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""


def _named_file(text: str, role: str) -> list[Place]:
    """A text file of names, where a setting names one."""
    return [Place(Path(text), role)] if text and "," not in text and _is_file(Path(text)) else []


def _images(source: str, role: str) -> Iterator[Place]:
    """The files of a data path."""
    if source.startswith("demo:") and role == REAL:
        yield from (Place(Path(folder) / DEMO_DIGITS, role) for folder in _package("sklearn"))
    if source in ("", "none") or source.startswith(("demo:", "<")):
        return
    if found := _CODE.fullmatch(source):
        yield Place(Path(found["file"]), role)
        if found["argument"] and exists(Path(found["argument"])):
            yield Place(Path(found["argument"]), role, tree=True)
        return
    path = Path(source)
    part = _PART.fullmatch(source)
    if part and not exists(path):
        path = Path(part["file"])
    yield Place(path, role, tree=path.is_dir())


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
