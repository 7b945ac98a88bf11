"""The pages of the site: their Python runs, and their commands and options are the program's."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from synthkd import recipe
from synthkd.cli import COMMANDS
from synthkd.core.resources import shipped

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs/start").glob("*.md")), *sorted((ROOT / "docs/how-to").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
OWN = {"--help", *(one.flag for command in COMMANDS.values() for one in command.switches)}


def blocks(page: Path, kind: str) -> list[str]:
    return [text for name, text in BLOCK.findall(page.read_text(encoding="utf-8")) if name == kind]


def ids(page: Path) -> str:
    return page.stem


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_block_says_whether_it_is_python_a_terminal_or_a_file(page):
    kinds = {name for name, _ in BLOCK.findall(page.read_text(encoding="utf-8"))}
    assert kinds <= {"python", "sh", "toml", "text"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in [*PAGES, ROOT / "README.md"] if blocks(p, "python")], ids=ids
)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path):
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def commands() -> list[tuple[str, list[str]]]:
    found = []
    for page in [*PAGES, ROOT / "docs/README.md"]:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.partition("#")[0].split("&&"):
                    words = shlex.split(part)
                    if words and words[0] == "synthkd":
                        found.append((page.stem, words[1:]))
    return found


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: str(value)[:60])
def test_the_commands_and_options_of_a_page_exist(page, words):
    assert words[0] in COMMANDS
    known = OWN | {f"--{setting.key}" for setting in recipe.settings()}
    known |= {setting.flag for setting in recipe.settings() if setting.flag}
    stage = {setting.key for setting in recipe.settings(recipe.Stage, "stage.NAME.")}
    for word in (word for word in words if word.startswith("--")):
        staged = re.sub(r"^--stage\.\w+\.", "stage.NAME.", word)
        staged = re.sub(r"\.terms\.\w+$", ".terms", staged)
        assert word in known or staged in stage, word
    if "--pipeline" in words:
        name = words[words.index("--pipeline") + 1]
        assert name.startswith("./") or (shipped("pipelines") / f"{name}.toml").is_file()


def test_the_recipe_on_the_page_for_research_is_one(tmp_path):
    (text,) = blocks(ROOT / "docs/start/research.md", "toml")
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    made = recipe.from_settings({"pipeline": str(path)})
    assert made.budget.images == 100_000
    assert [(stage.name, stage.generator) for stage in made.stages] == [
        ("draw", "procedural"),
        ("study", "none"),
    ]
