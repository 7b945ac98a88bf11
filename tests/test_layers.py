"""The direction of imports: a module sees its own layer and lower ones, wherever it imports."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import synthkd

PACKAGE = Path(__file__).parent.parent / "synthkd"
LAYERS = (  # from plain values up to effects
    ("core",),
    ("recipe", "measures", "schedules", "losses"),
    ("images", "labels"),
    ("networks",),
    ("teachers",),
    ("specs", "students", "replay", "data"),
    ("synthesis",),
    ("checks", "evaluation", "engine", "export"),
    ("runs", "reports", "cards", "proof"),
    ("jobs",),
    ("commands", "api"),
    ("cli", "__main__"),
)
HEIGHT = {name: height for height, layer in enumerate(LAYERS, start=1) for name in layer}
HEIGHT["__init__"] = HEIGHT["api"]
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if "_data" not in path.parts]


def unit(path: Path) -> str:
    """The module or the sub-package directly below `synthkd` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(source: str) -> Iterator[str]:
    """The dotted names that a source imports from us; a relative import shows its dots."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ("synthkd", ""))


def too_high(name: str, source: str) -> list[str]:
    """What a module called `name` imports from above itself, or in a way that cannot be judged."""
    found = []
    for target in imported(source):
        package, *rest = target.split(".")
        # `import synthkd` and `from synthkd import __version__` mean the package itself: height 0
        height = HEIGHT.get(rest[0], 0) if rest else 0
        if rest and rest[0] in set(synthkd.__all__) - {"__version__"}:
            height = HEIGHT["api"]  # what the package offers comes from there
        if not package or height > HEIGHT[name]:
            found.append(target)
    return found


def test_every_module_has_a_layer_and_no_layer_is_listed_twice():
    assert {unit(path) for path in FILES} == set(HEIGHT)
    assert len(HEIGHT) == 1 + sum(len(layer) for layer in LAYERS)


def test_packages_import_in_no_circle():
    """A package may be left for others and come back only within a layer's order: none does."""
    arrows: dict[str, set[str]] = {}
    for path in FILES:
        for target in imported(path.read_text(encoding="utf-8")):
            _, *rest = target.split(".")
            if rest and rest[0] in HEIGHT and rest[0] != unit(path) and unit(path) != "__init__":
                arrows.setdefault(unit(path), set()).add(rest[0])
    assert list(graphlib.TopologicalSorter(arrows).static_order())  # a circle is a CycleError


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_private_is_taken_from_another_module(path):
    targets = imported(path.read_text(encoding="utf-8"))
    private = [t for t in targets if any(p.startswith("_") and p[1] != "_" for p in t.split("."))]
    assert private == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_from_above(path):
    assert too_high(unit(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("inside", ["", "def later():\n    ", "class A:\n  def b(self):\n    "])
@pytest.mark.parametrize(
    "spelling",
    [
        "import synthkd.runs.directory",
        "import synthkd.runs.directory as r",
        "from synthkd import runs",
        "from synthkd import errors, runs",
        "from synthkd.runs import Run",
        "from synthkd import distill",
        "from . import runs",
        "from .runs import Run",
    ],
)
def test_a_planted_violation_is_caught_in_every_spelling(spelling, inside):
    assert len(too_high("losses", inside + spelling)) == 1


@pytest.mark.parametrize(
    "spelling",
    [
        "import synthkd",
        "from synthkd import __version__",
        "from synthkd import measures",
        "import synthkd.core.errors",
        "from synthkd.core.images import Batch",
        "from synthkd_extras import runs",
        "import torch",
    ],
)
def test_what_lies_level_or_below_or_elsewhere_passes(spelling):
    assert too_high("losses", spelling) == []
