"""Parts of one's own: each of the examples is a file that adds one, and runs; what it adds resumes
exactly, and is checked by another route than its own code."""

import copy
import inspect as python_inspect
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from decimal import Decimal, localcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthkd
from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec
from synthkd.core.states import load_state, save_state
from synthkd.engine import controllers
from synthkd.jobs.generation import Generation
from synthkd.losses import distillation, synthesis
from synthkd.losses.distillation import DistillationView
from synthkd.networks.classifier import Classifier
from synthkd.recipe import from_settings
from synthkd.specs import load_teacher
from synthkd.synthesis import GENERATORS
from synthkd.teachers.ensemble import EnsembleTeacher
from synthkd.teachers.frozen import FrozenTeacher

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What an example adds is gone after the test."""
    tables: tuple[dict[str, Any], ...] = (
        distillation.TERMS, controllers.CONTROLLERS, synthesis.TERMS, GENERATORS
    )  # fmt: skip
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="example")


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_says_what_it_is_for(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert text.startswith('"""') and f"python examples/{name}.py" in text
    assert 30 <= len(text.splitlines()) <= 85


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main = example(name)["main"]
    given = {"images": 800 if name == "sweep" else 3000, "out": str(tmp_path / "out"), "seeds": 2}
    wanted = python_inspect.signature(main).parameters
    with pytest.warns() if name in ("distil_your_network", "sweep") else nullcontext():
        main(**{key: value for key, value in given.items() if key in wanted})


@pytest.mark.slow
def test_an_example_runs_as_a_file_of_its_own(tmp_path):
    code = f"import runpy; runpy.run_path({str(EXAMPLES / 'relational_loss.py')!r})['main'](2000)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "study 100%" in done.stdout


# --- the same bytes after a break, with each part


PARTS: dict[str, Mapping[str, Any]] = {
    "attention_of_tokens_and_maps": {
        "training.terms": {"soft_targets": 1.0, "token_attention": 20.0},
        "training.student_layers": ["layer2", "layer3"],
        "training.teacher_layers": ["layer2", "layer3"],
    },
    "relational_loss": {"training.terms": {"soft_targets": 1.0, "answer_distances": 10.0}},
    "contrastive_loss": {"training.terms": {"soft_targets": 1.0, "contrastive": 0.5}},
    "temperature_controller": {},
    "your_generator": {},
    "your_synthesis_term": {"stage.refine.terms.contrast_range": 2.0},
}
TINY = {
    "budget.images": 1500, "training.batch": 32, "memory.capacity": 300,
    "stage.draw.fresh": 64, "stage.refine.synthesis_batch": 20, "stage.refine.synthesis_steps": 2,
    "run.threads": 1, "stage.study.student_steps": 5,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_a_run_with_a_part_of_ones_own_resumes_bit_for_bit(name, tmp_path):
    added = example(name)
    recipe = from_settings({**TINY, **PARTS[name]})
    if name == "your_generator":
        stage = added["STAGE"].model_copy(update={"fresh": 64, "student_steps": 5})
        recipe = recipe.model_copy(update={"stage": (stage,)})
    unbroken, first, second = (synthkd.build(recipe) for _ in range(3))
    rounds = len(list(unbroken))
    for done, _ in enumerate(first, start=1):
        if done == rounds - 2:
            break
    save_state(first.state_dict(), tmp_path / "x", "lab")
    second.load_state_dict(load_state(tmp_path / "x", "lab"))
    list(second)
    ours, theirs = (lab.learner.state_dict() for lab in (second, unbroken))
    assert ours["student"].keys() == theirs["student"].keys()
    for key in ("student", "objective", "average"):
        for tensor, value in theirs[key].items():
            assert torch.equal(ours[key][tensor], value), (key, tensor)
    kept, wanted = (lab.memory.everything() for lab in (second, unbroken))
    for field in ("images", "labels", "slots", "logits", "votes"):
        assert torch.equal(getattr(kept, field), getattr(wanted, field)), field
    assert kept.origins == wanted.origins
    assert {n: g.state_dict() for n, g in second.generators.items() if n == "blurred_noise"} == {
        n: g.state_dict() for n, g in unbroken.generators.items() if n == "blurred_noise"
    }
    assert {n: c.state_dict() for n, c in second.controllers.items()} == {
        n: c.state_dict() for n, c in unbroken.controllers.items()
    }


def test_a_teacher_is_checked_in_every_round():
    lab = synthkd.build(from_settings(TINY))
    lab.teacher._unsound = torch.tensor(True)  # as a GPU leaves it that nobody has waited for
    with pytest.raises(InputError, match=r"the teacher .* answers NaN or infinity"):
        next(iter(lab))


# --- what they compute


def view(**given: Any) -> DistillationView:
    logits = torch.zeros(2, 3)
    whole = {"images": torch.zeros(2, 1, 8, 8), "learned": logits, "taught": logits,
             "student_features": {}, "teacher_features": {}}  # fmt: skip
    return DistillationView(**{**whole, **given})


def test_tokens_that_look_where_maps_look_cost_nothing():
    term = example("attention_of_tokens_and_maps")["token_attention"]
    maps = torch.rand(2, 5, 4, 4)
    tokens = maps.flatten(2).transpose(1, 2)  # [B, T, D], the same places
    withed = torch.cat([torch.rand(2, 1, 5), tokens], 1)  # and a token for the class before them
    pairs = (("s", "t"),)
    for shown in (tokens, withed):
        alike = view(student_features={"s": shown}, teacher_features={"t": maps}, pairs=pairs)
        assert term(alike).tolist() == pytest.approx([0, 0], abs=1e-6)
    turned = view(student_features={"s": tokens.flip(1)}, teacher_features={"t": maps}, pairs=pairs)
    assert (term(turned) > 0.01).all()


def test_relations_do_not_see_scale_or_rotation_and_have_a_sound_gradient():
    term = example("relational_loss")["answer_distances"]
    taught = torch.randn(6, 3, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    assert term(view(learned=3 * taught @ turn, taught=taught)).item() == pytest.approx(0, abs=1e-9)
    learned = torch.randn(6, 3, requires_grad=True)
    found = term(view(learned=learned, taught=taught.float()))
    (gradient,) = torch.autograd.grad(found, learned)
    step = 1e-3 * torch.randn(6, 3)
    moved = [
        float(term(view(learned=learned.detach() + s * step, taught=taught.float())))
        for s in (1, -1)
    ]
    assert (moved[0] - moved[1]) / 2 == pytest.approx(float((gradient * step).sum()), rel=0.05)


def test_the_contrastive_bank_holds_the_teachers_last_embeddings_in_a_ring():
    module = example("contrastive_loss")
    known = distillation.KnownBeforehand({"s": (4, 2, 2)}, {"t": (6, 2, 2)}, (("s", "t"),), 3, 0)
    term = module["Contrastive"](known)
    shown = [torch.rand(300, 6, 2, 2) for _ in range(4)]
    for maps in shown:
        seen = {
            "student_features": {"s": torch.rand(300, 4, 2, 2)},
            "teacher_features": {"t": maps},
        }
        term(view(images=torch.zeros(300, 1, 8, 8), pairs=(("s", "t"),), **seen))
    every = torch.cat([term.teacher_head(maps.mean((2, 3))) for maps in shown])
    every = torch.nn.functional.normalize(every, dim=1)
    assert torch.allclose(term.bank[176 - 50 : 176], every[1150:1200], atol=1e-6)
    assert torch.allclose(term.bank[176:], every[176:1024], atol=1e-6)


@pytest.mark.slow
def test_the_temperature_falls_with_the_loss_and_is_told_every_round():
    temperatures = example("temperature_controller")["main"](images=6000)
    assert temperatures[0] == 8.0
    assert temperatures[-1] < 7.5
    assert all(1 <= t <= 8 for t in temperatures)
    assert any(a > b for a, b in pairwise(temperatures))


def test_a_generator_of_ones_own_makes_a_data_set_too(tmp_path):
    added = example("your_generator")
    recipe = synthkd.Recipe.of({"dataset.count": 40, "run.out": str(tmp_path / "set")})
    made = Generation(recipe.model_copy(update={"stage": (added["STAGE"],)})).start()
    assert made.manifest["generator"] == "blurred_noise"
    assert 0 < made.count <= 40
    with pytest.raises(InputError, match="blurred_noise has no option 'pases'; did you mean"):
        stage = added["STAGE"].model_copy(update={"options": {"pases": 2}})
        synthkd.build(recipe.model_copy(update={"stage": (stage,)}))


@pytest.mark.slow
def test_a_synthesis_term_of_ones_own_moves_the_images(tmp_path):
    added = example("your_synthesis_term")
    without, with_it = added["main"](images=600)
    assert with_it > 1.1 * without
    images = torch.rand(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    labels, taught = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: added["contrast_range"](synthesis.View(x, labels, taught)), images
    )


# --- two teachers


@pytest.fixture(scope="module")
def teachers() -> list[Any]:
    found = [load_teacher(synthkd.Recipe().teacher) for _ in range(2)]
    with torch.no_grad():
        found[1].classifier.body.linear.bias += torch.linspace(-1, 1, 10)
    return found


def test_an_average_is_that_of_the_probabilities_and_passes_gradients(teachers):
    both, images = EnsembleTeacher(teachers), torch.rand(5, 1, 16, 16, requires_grad=True)
    mean = sum(t.forward_network(images).softmax(1) for t in teachers) / 2
    found = both.forward_network(images)
    assert torch.allclose(found.softmax(1), mean, atol=1e-6)
    (gradient,) = torch.autograd.grad(found[:, 3].sum(), images)
    assert gradient.abs().sum() > 0
    with both.exact():
        assert not any(t.low_precision for t in teachers)
    before = both.queries
    both(images.detach())
    assert both.queries == before + 10  # each was asked
    assert both.abilities == {"gradients", "features", "statistics"}


SURE = ImageSpec(1, 1, 1, (0.0,), (1.0,))


class Answers(nn.Module):
    """The same logits for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1) + 0 * x.flatten(1)


def answering(*logits: float, kind: str = "logits", access: str = "full") -> FrozenTeacher:
    return FrozenTeacher(Classifier(Answers(*logits), SURE, len(logits), kind), access=access)


@pytest.mark.parametrize("z", [0.5, 20.0, -20.0, 60.0])
def test_log_odds_of_an_average_are_exact_where_teachers_are_sure(z):
    """By fractions of any length: p = 1 / (1 + e^−z), the mean of p and q, and its log-odds."""
    teachers = [answering(z, 0.0, kind="multilabel-logits") for z in (z, z / 2)]
    found = EnsembleTeacher(teachers)(torch.zeros(1, 1, 1, 1))[0]
    with localcontext(prec=80):
        p = sum(1 / (1 + (-Decimal(odds)).exp()) for odds in (z, z / 2)) / 2
        wanted = float((p / (1 - p)).ln())
    assert found.tolist() == pytest.approx([wanted, 0.0], rel=1e-5, abs=1e-6)
    teachers = [answering(odds, 0.0) for odds in (z, z / 2)]
    log_p = EnsembleTeacher(teachers)(torch.zeros(1, 1, 1, 1))[0]
    assert float(log_p[0] - log_p[1]) == pytest.approx(wanted, rel=1e-5)


def test_an_average_within_an_average_moves_counts_and_hides_as_its_members_do():
    inner = [answering(1.0, 0.0), answering(0.0, 1.0)]
    both = EnsembleTeacher([answering(2.0, 0.0), EnsembleTeacher(inner)])
    assert both.to(torch.device("meta")) is both
    assert {t.device.type for t in inner} == {"meta"}
    closed = [answering(1.0, 0.0, access="labels") for _ in range(2)]
    assert EnsembleTeacher(closed).access == "labels"
    assert EnsembleTeacher([closed[0], inner[0]]).access == "full"  # one can be looked into
    closed[1](torch.zeros(3, 1, 1, 1))
    average = EnsembleTeacher(closed)
    average.queries = 7
    assert [t.queries for t in closed] == [2, 5] and average.queries == 7
    inner[1]._unsound = torch.tensor(True)
    with pytest.raises(InputError, match="NaN or infinity"):
        both.check()


def test_teachers_of_other_classes_are_not_averaged(teachers):
    other = copy.deepcopy(teachers[0])
    other.classifier.classes = 7
    with pytest.raises(InputError, match="other classes cannot teach together"):
        EnsembleTeacher([teachers[0], other])


def test_terms_that_need_layers_see_those_of_the_first_who_shows_them(teachers):
    closed = copy.copy(teachers[1])
    closed.access = "logits"
    recipe = from_settings({**TINY, "training.terms": {"attention": 1.0}})
    lab = synthkd.build(recipe, teacher=EnsembleTeacher([closed, teachers[0]]))
    assert lab.learner is not None and lab.learner.objective.teacher_layers
    with pytest.raises(InputError, match="this one shows its logits alone"):
        synthkd.build(recipe, teacher=EnsembleTeacher([closed, closed]))


@pytest.mark.slow
def test_two_teachers_alike_teach_what_one_teaches(teachers):
    """The mean of equal answers is the answer itself, so the student is nearly the same."""
    plain = {**TINY, "run.precision": "float32", "pipeline": "leaves"}
    plain = {key: value for key, value in plain.items() if not key.startswith("stage.")}
    recipe = from_settings(plain)
    one, twin = teachers[0], copy.deepcopy(teachers[0])
    answers: list[Tensor] = []
    for teacher in (one, EnsembleTeacher([one, twin])):
        lab = synthkd.build(recipe, teacher=teacher)
        list(lab)
        answers.append(
            lab.learner.answer(
                torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
            ).softmax(1)
        )
    assert (answers[0] - answers[1]).abs().max() < 0.05
