"""The pipelines that ship: each is read, planned and run for a few small rounds."""

import tomllib

import pytest
import torch

from synthkd.core.resources import shipped
from synthkd.engine.build import assemble
from synthkd.engine.loop import rounds
from synthkd.losses.synthesis import TERMS
from synthkd.recipe import Recipe, Stage, TeacherTable, load_recipe, settings, to_toml, validated
from synthkd.specs import load_teacher, new_student
from synthkd.synthesis.plan import plan
from synthkd.teachers.frozen import FrozenTeacher, digest_of

NAMES = sorted(path.stem for path in shipped("pipelines").glob("*.toml"))
ADVERSARIES = {
    "adaptive": "disagreement",
    "cmi": "disagreement",
    "dfad": "logit_gap",
    "dfad-mnist": "logit_gap",
    "dfq": "divergence",
    "fast-10": "disagreement",
    "fast-2": "disagreement",
    "fast-5": "disagreement",
    "gan": "disagreement",
    "mad": "divergence",
    "nayer": "disagreement",
    "zskt": "divergence",
}


@pytest.fixture(scope="module")
def teacher() -> FrozenTeacher:
    return load_teacher(TeacherTable())


def small(name: str) -> Recipe:
    """The pipeline with the same parts and proportions of stages, but few steps and images.

    The student begins with layers of the teacher's, so that it agrees now and then.
    """
    student = {"spec": "resnet8", "start": "teacher"}
    recipe = load_recipe(flags={"pipeline": name, "student": student})
    stages = tuple(
        stage.model_copy(
            update={
                "synthesis_steps": min(2, stage.synthesis_steps),
                # a denoiser wants four times its batch in the memory
                "synthesis_batch": 16 if stage.generator == "diffusion" else 20,
                "student_steps": min(2, stage.student_steps),
                "fresh": min(40, stage.fresh),
            }
        )
        for stage in recipe.stage
    )
    tables = {
        "stage": stages,
        "training": recipe.training.model_copy(update={"batch": 20}),
        "memory": recipe.memory.model_copy(update={"capacity": min(500, recipe.memory.capacity)}),
        "budget": recipe.budget.model_copy(update={"images": 160}),
    }
    return recipe.model_copy(update=tables)


@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_survives_being_written_and_read(name):
    flags = {"data": {"real": "x"}} if name == "real" else {}
    recipe = load_recipe(flags={"pipeline": name, **flags})
    assert validated(tomllib.loads(to_toml(recipe))) == recipe
    assert recipe.budget.images


@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_states_nothing_that_is_the_default(name):
    text = (shipped("pipelines") / f"{name}.toml").read_text()
    defaults = {setting.key: setting.default for setting in settings()}
    of_stages = {setting.key: setting.default for setting in settings(Stage)}
    stated = tomllib.loads(text)
    stages = stated.pop("stage")
    values = [(f"{table}.{key}", v) for table, keys in stated.items() for key, v in keys.items()]
    assert [key for key, value in values if as_kept(value) == defaults[key]] == []
    values = [(key, value) for stage in stages for key, value in stage.items()]
    assert [key for key, value in values if as_kept(value) == of_stages[key]] == []


def as_kept(value):
    """A value of TOML as a recipe holds it."""
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_says_what_it_is_before_anything_else(name):
    text = (shipped("pipelines") / f"{name}.toml").read_text()
    assert text.startswith("# ")
    assert max(len(line) for line in text.splitlines()) <= 120


@pytest.mark.parametrize("name", [name for name in NAMES if name != "real"])
def test_a_pipeline_runs_and_leaves_the_teacher_as_it_was(teacher, name):
    recipe = small(name)
    stages = plan(recipe, teacher).stages
    for asked, planned in zip(recipe.stage, stages, strict=True):
        if planned.generator in ("gan", "episodes", "pixels"):
            assert planned.terms == asked.terms  # this teacher can serve them all
    torch.manual_seed(0)
    lab = assemble(recipe, teacher, new_student(recipe.student, teacher))
    lowest: dict[str, float] = {}
    for round_ in rounds(lab):
        lowest |= {k: min(v, lowest.get(k, v)) for k, v in round_.measures.items()}
    assert lab.finished
    assert lab.progress.images_seen == 160
    assert lowest["loss"] > 0
    assert digest_of(teacher.classifier) == teacher.digest
    if name in ADVERSARIES:  # a public toolbox has the teacher as the student here, and reads 0
        assert lowest[f"term.{ADVERSARIES[name]}"] < -1e-3


def test_every_pipeline_with_an_adversary_is_known_here():
    found = {}
    for name in NAMES:
        recipe = load_recipe(flags={"pipeline": name, "data": {"real": "x"}})
        terms = {term for stage in recipe.stage for term in stage.terms}
        assert terms <= set(TERMS)
        for term in (t for t in terms if "student" in TERMS[t].needs):
            found[name] = term
    assert found == ADVERSARIES
