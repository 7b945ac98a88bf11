"""Settings that do nothing are named; those that do something are not."""

import json
import re
import shlex

import pytest

from synthkd.cli import main
from synthkd.losses.distillation import TERMS
from synthkd.losses.term import Term
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


FRESH = {"pipeline": "cmi", "memory__replayed": 0.0}  # every batch is of its round
HARD = {"soft_targets": 0.0, "votes": 1.0}
REAL = {"data__real": "scans", "data__mix_ratio": 0.0}


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
        ({"training__student_layers": ("layer1",)}, "training.student_layers is for terms that"),
        ({"training__teacher_layers": ("layr1",)}, "training.teacher_layers is for terms that"),
        ({"training__temperature": 3.0, "training__terms": HARD}, "training.temperature"),
        ({"memory__replayed": 0.0}, "memory.replayed is the share of remembered images beside"),
        ({**FRESH, "memory__priority": 0.6}, "memory.priority chooses among remembered images"),
        ({**FRESH, "memory__curriculum": True}, "memory.curriculum chooses among"),
        ({**FRESH, "memory__boundary": 0.5}, "memory.boundary chooses among"),
        ({**REAL, "memory__boundary": 0.5}, "memory.boundary chooses among"),
        ({**REAL, "memory__replayed": 0.5}, "memory.replayed is the share"),
        ({**REAL, "memory__shares": {"gan": 0.5}}, "memory.shares divides remembered images"),
        (
            {"memory__form": "autoencoder", "memory__shares": {"pixels": 0.6}},
            "memory.shares divides remembered images",
        ),
        (
            {"data__synthetic": "set", "memory__shares": {"pixels": 0.6}},
            "memory.shares divides remembered images",
        ),
        (
            {**FRESH, "difficulty__per_image": True, "augment__jitter": 0.3},
            "difficulty.per_image changes",
        ),
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
        {"difficulty__start": 0.3},
        {"training__student_layers": ("a",), "training__teacher_layers": ("b",),
         "training__terms": {"soft_targets": 0.0, "hint": 1.0}},
        {"training__temperature": 3.0, "training__terms": HARD | {"class_correlation": 1.0}},
        {"memory__priority": 0.6, "memory__curriculum": True, "memory__boundary": 0.5},
        {"memory__priority": 0.6, "memory__priority_correction": 0.5, "pipeline": "cmi"},
        # a stage without fresh images has the memory alone, whatever its share
        {"memory__priority": 0.6, "memory__replayed": 0.0, "pipeline": "gan"},
        {"difficulty__per_image": True, "augment__jitter": 0.3, "memory__replayed": 0.0,
         "pipeline": "gan"},
        {"memory__boundary": 0.5, "data__synthetic": "set", "memory__capacity": 0},
        {"memory__shares": {"pixels": 0.6}},
        {"memory__replayed": 0.5, "pipeline": "gan"},
    ],
)  # fmt: skip
def test_what_does_something_is_not(given):
    assert found(**given) == []


def test_what_a_term_of_ones_own_reads_is_not_known(monkeypatch):
    own = Term("of a test", lambda view: view.learned.mean(), frozenset({"features"}))
    monkeypatch.setitem(TERMS, "own", own)
    given = {"training__terms": HARD | {"own": 1.0}, "training__temperature": 3.0}
    assert found(**given, training__student_layers=("a",), training__teacher_layers=("b",)) == []


@pytest.mark.slow
def test_the_narrow_widths_of_a_student_are_taught_by_softened_answers(capsys):
    words = "distill --dry-run --run.threads 1 --training.terms votes=1,soft_targets=0"
    words += " --training.temperature 3"
    told = []
    for student in ("resnet8-w8", "slim:resnet8-w8"):
        main(shlex.split(f"{words} --student {student}"))
        told.append("training.temperature is for terms" in capsys.readouterr().out)
    assert told == [True, False]


def test_a_pipelines_own_settings_are_nobodys_mistake():
    recipe = load_recipe(None, {"pipeline": "gan"}, {})
    assert ignored(recipe, recipe.stage, given_keys({}, {"pipeline": "gan"}), readers()) == []


@pytest.mark.slow
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


def test_flags_of_a_stage_that_does_not_run_are_told():
    changed = {"refine": {"synthesis_steps": "9"}, "draw": {"fresh": "64"}}
    recipe = load_recipe(None, {"run": {"stages": ("draw", "study")}}, changed)
    given = given_keys({"stage": changed}) | {"stage.refine.fresh"}  # as the library names them
    [one] = ignored(recipe, recipe.stages, given, readers())
    assert one.seen == "--stage.refine is not used: the stages of this run are draw, study"
