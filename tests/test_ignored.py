"""Settings that do nothing are named; those that do something are not."""

import json
import re
import shlex

import pytest

from synthkd.cli import main
from synthkd.recipe import load_recipe
from synthkd.recipe.unused import given_keys, ignored
from synthkd.synthesis import readers


def found(**given: object) -> list[str]:
    pipeline = str(given.pop("pipeline", "synthkd"))
    nested: dict[str, dict[str, object]] = {}
    for key, value in given.items():
        table, _, leaf = key.partition("__")
        nested.setdefault(table, {})[leaf] = value
    recipe = load_recipe(None, {"pipeline": pipeline, **nested}, {})
    told = ignored(recipe, recipe.stage, given_keys(nested), readers())
    assert all(one.code == "ignored-setting" and not one.serious for one in told)
    return [one.seen for one in told]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"data__real": "scans"}, "--real-data is not used"),
        ({"diffusion__teacher_guidance": 3}, "diffusion.teacher_guidance"),
        ({"discriminator__width": 8}, "generator gan"),
        ({"training__momentum": 0.5, "training__optimizer": "adamw"}, "training.momentum"),
        ({"training__milestones": (0.5,)}, "training.milestones"),
        ({"difficulty__ceiling": 1.0, "difficulty__enabled": False}, "difficulty.ceiling"),
        ({"pixels__decay": 0.5, "pipeline": "shaders"}, "pixels.decay"),
        ({"generator__kind": "pixels", "pipeline": "fast-5"}, "--generator is not used"),
    ],
)
def test_what_does_nothing_is_named(given, words):
    (seen,) = found(**given)
    assert words in seen


@pytest.mark.parametrize(
    "given",
    [
        {"data__real": "scans", "data__mix_ratio": 0.5},
        {"diffusion__teacher_guidance": 3, "pipeline": "diffusion"},
        {"student__max_params": 9000, "student__spec": "auto"},
        {"pixels__decay": 0.5, "pipeline": "deepinversion"},
        {"generator__kind": "procedural"},
        {"training__momentum": 0.5, "training__optimizer": "sgd"},
        {"run__seed": 3, "budget__minutes": 1, "augment__flip": True},
    ],
)
def test_what_does_something_is_not(given):
    assert found(**given) == []


def test_a_pipelines_own_settings_are_nobodys_mistake():
    recipe = load_recipe(None, {"pipeline": "gan"}, {})
    assert ignored(recipe, recipe.stage, given_keys({}, {"pipeline": "gan"}), readers()) == []


def test_the_command_line_names_them_before_it_runs(capsys):
    main(
        shlex.split(
            "distill --dry-run --run.threads 1 --real-data scans --diffusion.teacher_guidance 2"
        )
    )
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("warning: ")]
    assert any("--real-data is not used at --mix-ratio 1.0" in line for line in told)
    assert any("diffusion.teacher_guidance" in line for line in told)


def test_the_example_of_the_help_runs(capsys):
    main(["distill", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    example = re.findall(r"--stage\.\S+ [\d.]+", shown)
    assert len(example) == 2
    main(["distill", "--dry-run", "--quiet", "--run.threads", "1", *" ".join(example).split()])
    assert "statistics = 5" in capsys.readouterr().out


def test_generate_can_print_its_manifest_alone(tmp_path, capsys):
    words = "generate --pipeline shaders --count 30 --run.threads 1 --json --out"
    main([*shlex.split(words), str(tmp_path / "set")])
    printed = json.loads(capsys.readouterr().out)
    assert printed["drawn"] >= 30
    assert printed["verdict"] == json.loads((tmp_path / "set/manifest.json").read_text())["verdict"]
