"""Every method of the program stands in docs/methods.md, and every public name says what it is."""

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from synthkd import measures, recipe, schedules
from synthkd.losses import distillation, synthesis
from synthkd.synthesis import GENERATORS
from synthkd.synthesis.drawings import DRAWINGS

ROOT = Path(__file__).parent.parent
METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
SECTIONS = {
    part.split("`")[1]: part for part in re.split(r"^### ", METHODS, flags=re.M) if part[0] == "`"
}
WRITTEN = [
    path
    for folder, kind in (("synthkd", "*.py"), ("pipelines", "*.toml"), ("docs", "*.md"))
    for path in (ROOT / folder).rglob(kind)
    if path.name != "log.md"
] + [ROOT / "README.md"]


def functions(module: ModuleType) -> list[str]:
    """The public functions that a module, or a package of modules, defines."""
    found = inspect.getmembers(module, inspect.isfunction)
    names = [name for name, f in found if f.__module__ == module.__name__ and name[0] != "_"]
    for _, part in inspect.getmembers(module, inspect.ismodule):
        if part.__name__.startswith(f"{module.__name__}."):
            names += functions(part)
    return names


def function(module: ModuleType, name: str) -> Any:
    """A function of a module or of one of its parts."""
    parts = [part for _, part in inspect.getmembers(module, inspect.ismodule)]
    return next(getattr(part, name) for part in (module, *parts) if hasattr(part, name))


@pytest.mark.parametrize("name", [*synthesis.TERMS, *GENERATORS])
def test_every_synthesis_term_and_generator_has_a_section_of_its_own(name):
    section = SECTIONS[name]
    for part in ("Source", "ettings", "Pitfalls"):
        assert part in section, f"{name} lacks its {part}"


@pytest.mark.parametrize("module", [synthesis, distillation, schedules, measures])
def test_every_formula_is_named(module):
    names = functions(module)
    assert len(names) > 4
    assert [name for name in names if f"`{name}`" not in METHODS] == []


def test_every_term_of_the_student_and_every_drawing_is_named():
    names = [f"training.terms.{name}" for name in distillation.TERMS]
    assert [name for name in [*names, *DRAWINGS] if f"`{name}`" not in METHODS] == []


def test_every_file_and_setting_that_is_named_is_there():
    files = set(re.findall(r"`(synthkd/[\w/.]+?)/?`", METHODS))
    assert len(files) > 15
    assert [name for name in files if not (ROOT / name).exists()] == []
    known = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    tables = ("generator|pixels|procedural|diffusion|discriminator|memory|difficulty|augment"
              "|training|student|teacher|evaluation|data")  # fmt: skip
    keys = {
        key
        for key in re.findall(rf"`((?:{tables})\.\w+)", METHODS)
        if not key.endswith((".py", ".terms"))
    }
    assert len(keys) > 30
    assert [key for key in sorted(keys) if f"`{key}`" not in known] == []


def test_every_short_name_of_a_setting_is_the_end_of_a_key():
    every = [*recipe.settings(), *recipe.settings(recipe.Stage, "stage.NAME.")]
    known = {setting.key.rpartition(".")[2] for setting in every}
    known |= {*synthesis.TERMS, *distillation.TERMS, *GENERATORS}
    clauses = re.findall(r"[Ss]ettings:?(.*?)(?:\n-|\n\n|Files?:|Pitfalls|\|)", METHODS, flags=re.S)
    named = {name for clause in clauses for name in re.findall(r"`([\w.]+)`", clause)}
    assert len(named) > 60
    assert [name for name in named if name.rpartition(".")[2] not in known] == []


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_refers_to_a_catalogue_that_is_not_here(path):
    text = path.read_text(encoding="utf-8")
    assert "catalogue" not in text.lower()
    assert re.findall(r"\([A-H]\d{1,2}\)|\"[A-H]\d{1,2} ", text) == []


def documented(path: Path) -> list[str]:
    """The public functions and classes of a module that have no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = [node for node in tree.body if isinstance(node, kinds) and node.name[0] != "_"]
    return [node.name for node in names if not ast.get_docstring(node)]


def test_every_public_function_and_class_and_every_module_says_what_it_is():
    modules = sorted((ROOT / "synthkd").rglob("*.py"))
    assert len(modules) > 60
    bare = [f"{p.name}: {name}" for p in modules for name in documented(p)]
    bare += [p.name for p in modules if not ast.get_docstring(ast.parse(p.read_text("utf-8")))]
    assert bare == []


@pytest.mark.parametrize("module", [synthesis, distillation, schedules, measures])
def test_every_formula_tells_its_shapes_or_its_unit(module):
    sign = re.compile(r"\[[A-Z]|0\.\.1|nats|factor|decay|rate|share|step")
    bare = []
    for name in functions(module):
        found = function(module, name)
        first = next(iter(inspect.signature(found).parameters.values()))
        takes_view = first.annotation is synthesis.View  # whose fields have their shapes
        if not takes_view and not sign.search(found.__doc__ or ""):
            bare.append(name)
    assert bare == []
