"""The documents say what the program does, and the command line answers at once."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from synthkd import cli, recipe
from synthkd.core.resources import shipped

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
MAKE_WORDS = ("setup", "test", "lint", "types", "demo", "bench", "seeds", "site")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("word", cli.COMMANDS)
def test_every_command_has_a_line_of_help_and_is_named_in_the_readme(word):
    assert cli.COMMANDS[word].help.strip() and "\n" not in cli.COMMANDS[word].help
    assert f"synthkd {word}" in text("README.md")


def test_every_shipped_pipeline_is_named_in_the_readme():
    names = [path.stem for path in shipped("pipelines").glob("*.toml")]
    assert "synthkd" in names
    assert [name for name in names if f"`{name}`" not in text("README.md")] == []


def test_every_setting_has_a_meaning_and_every_flag_is_given_once():
    every = [*recipe.settings(), *recipe.settings(recipe.Stage, "stage.NAME.")]
    assert len(every) > 50
    assert [setting.key for setting in every if len(setting.meaning) < 8] == []
    assert [setting.key for setting in every if "\n" in setting.meaning] == []
    flags = [setting.flag for setting in every if setting.flag]
    assert len(set(flags)) == len(flags)


def test_the_table_of_settings_is_what_the_recipe_prints():
    parts = text("docs/settings.md").split("<!-- settings -->")
    assert len(parts) == 3
    assert parts[1].strip() == recipe.settings_table().strip()


def test_the_words_of_make_are_targets_and_are_explained_to_contributors():
    targets = re.findall(r"^([a-z]+):", text("Makefile"), flags=re.MULTILINE)
    assert set(MAKE_WORDS) <= set(targets)
    assert [word for word in targets if f"`make {word}`" not in text("CONTRIBUTING.md")] == []


def test_every_document_is_in_the_index_of_the_documents():
    folder = ROOT / "docs"
    listed = set(re.findall(r"\]\(([^)#]+)\)", text("docs/README.md")))
    kept = {p.relative_to(folder).as_posix() for p in folder.rglob("*.md")} - {"README.md"}
    assert kept - listed == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_into_the_repository_leads_somewhere(document):
    links = re.findall(r"\]\(([^)\s#]+)[^)]*\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_importing_the_command_line_does_not_import_torch():
    code = "import sys, synthkd.cli; print(sorted({'torch', 'torchvision'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


LARGE = {  # each takes a part of the second in which help is there
    "PIL", "accelerate", "diffusers", "huggingface_hub", "jinja2", "kornia", "matplotlib", "numpy",
    "onnx", "onnxruntime", "optuna", "safetensors", "scipy", "timm", "torch",
    "torch_fidelity", "torchvision", "transformers",
}  # fmt: skip


@pytest.mark.parametrize("words", [(), *((word,) for word in cli.COMMANDS)], ids=" ".join)
def test_help_comes_without_any_large_library(words):
    # `-X importtime` lists every import on stderr
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "synthkd", *words, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "synthkd" in done.stdout
    imports = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "synthkd.cli" in imports
    assert not imports & LARGE
