"""Several teachers as one: rules, other images, black boxes, files of them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import status
from torch import Tensor

import synthkd
from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec
from synthkd.core.states import load_state, save_state
from synthkd.engine.build import assemble
from synthkd.engine.controllers import TeacherChoice
from synthkd.engine.loop import rounds
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import TeacherTable, TrainingTable
from synthkd.specs import load_teachers, new_student
from synthkd.specs.ensembles import ensemble_tables
from synthkd.students.learner import Learner
from synthkd.students.objective import DistillationObjective
from synthkd.teachers.ensemble import RULES, EnsembleTeacher, by_agreement, by_entropy
from synthkd.teachers.frozen import FrozenTeacher
from synthkd.teachers.protocol import asked_freely


def teacher(
    size: int = 16, channels: int = 1, seed: int = 0, classes: int = 4, **more: Any
) -> FrozenTeacher:
    torch.manual_seed(seed)
    body = build_network("resnet8-w4", channels=channels, size=size, classes=classes)
    spec = ImageSpec(channels, size, size, (0.5,) * channels, (0.25,) * channels)
    return FrozenTeacher(Classifier(body, spec, classes), **more)


def random(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


# --- rules


def test_a_sure_teacher_counts_more_by_its_entropy():
    rows = [[2.0, 0.0, 0.0], [0.3, 0.1, 0.0]]
    log_p = torch.tensor(rows).log_softmax(1)[:, None, None]  # [M, 1 image, 1 question, 3]
    certainty = []
    for row in rows:
        p = [math.exp(v) / sum(math.exp(w) for w in row) for v in row]
        certainty.append(1 + sum(q * math.log(q) for q in p) / math.log(3))
    expected = [c / sum(certainty) for c in certainty]
    assert by_entropy(log_p).exp().flatten().tolist() == pytest.approx(expected, rel=1e-4)


def test_a_teacher_counts_where_it_goes_with_the_others():
    """Three teachers, three images of the common answers 0, 0, 1: the third errs in the second."""
    votes = torch.tensor([[0, 0, 1], [0, 0, 1], [0, 1, 1]])
    log_p = (4.0 * torch.nn.functional.one_hot(votes, 2)).log_softmax(2)[:, :, None]
    found = by_agreement(log_p).exp()[:, 0, 0]
    shares = torch.tensor([[3 / 4, 2 / 3], [3 / 4, 2 / 3], [2 / 4, 2 / 3]])
    assert torch.allclose(found, shares / shares.sum(0))


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("independent", [False, True])
def test_teachers_that_answer_alike_are_answered_for_by_one(rule, independent):
    one = teacher()
    if independent:
        body = build_network("resnet8-w4", channels=1, size=16, classes=4)
        one = FrozenTeacher(Classifier(body, one.spec, 4, "multilabel-logits"))
    images = random(6, 1, 16, 16)
    found = EnsembleTeacher([one, one, one], rule)(images)
    assert torch.allclose(one.probabilities(found), one.probabilities(one(images)), atol=1e-5)


def test_the_chosen_one_teaches_alone_and_all_are_asked_where_nobody_chose():
    members = [teacher(seed=s) for s in range(2)]
    both, images = EnsembleTeacher(members, "selected"), random(5, 1, 16, 16)
    mean = (members[0](images).softmax(1) + members[1](images).softmax(1)) / 2
    assert torch.allclose(both.teach(images).logits.softmax(1), mean, atol=1e-6)
    both.chosen = 1
    assert torch.equal(both.teach(images).logits, members[1].teach(images).logits)
    assert torch.allclose(both(images).softmax(1), mean, atol=1e-6)  # what is held out, by all
    shown = both.teach(images, ["layer1"])  # of the first, who is not asked for an answer
    expected = members[0].teach(images, ["layer1"]).features["layer1"]
    assert torch.allclose(shown.features["layer1"], expected)


def test_the_choice_prefers_the_teacher_that_raises_agreement():
    """Teacher 1 gains a point a round, teacher 0 nothing: in the long run 1 is asked more often,
    and neither is forgotten."""
    choice, agreement, asked = TeacherChoice([1.0, 0.5]), 0.3, [0, 0]
    for _ in range(400):
        place = int(choice.value)
        asked[place] += 1
        agreement += 0.05 * place - 0.025
        choice.update({"agreement": agreement, "kl": 0.5})
    assert asked[1] > 1.2 * asked[0] > 20
    twin = TeacherChoice([1.0, 0.5])
    twin.load_state_dict(choice.state_dict())
    assert [twin.update({"agreement": 0.9}) for _ in range(5)] == [
        choice.update({"agreement": 0.9}) for _ in range(5)
    ]
    assert TeacherChoice([1.0]).update({"loss": 1.0}) == 0


@pytest.mark.slow
def test_a_teacher_is_not_blamed_for_a_network_that_begins_anew():
    """When an assistant's turn is over, what the student lacks against it is nobody's doing."""
    settings = {
        "run.stages": ("draw", "study"), "training.batch": 32, "run.threads": 1,
        "student.spec": "resnet8-w4", "student.start": "new", "budget.images": 3200,
        "teaching.assistants": ("resnet8-w8",), "training.repeats": 1,
    }  # fmt: skip
    both = EnsembleTeacher([load_teachers(TeacherTable()) for _ in range(2)], "selected")
    lab = synthkd.build(synthkd.Recipe.of(settings), teacher=both)
    choice, before = lab.controllers["teacher"], None
    assert isinstance(choice, TeacherChoice) and lab.chain is not None
    for round_ in rounds(lab):
        assert lab.controllers["teacher"] is choice
        if before is None and lab.chain.last:
            before = (list(choice.counts), list(choice.sums))
            assert choice.agreement is None and sum(before[0]) > 2
        elif before is not None:
            assert (choice.counts, choice.sums) == before  # the first round rewards nobody
            assert choice.agreement == round_.measures["agreement"]
            break
    assert before is not None


@pytest.mark.slow
def test_a_run_chooses_among_its_teachers_and_goes_on_exactly(tmp_path):
    settings = {
        "run.stages": ("draw", "study"), "training.batch": 32, "run.threads": 1,
        "student.spec": "resnet8-w4", "student.start": "new", "budget.images": 6400,
    }  # fmt: skip
    recipe = synthkd.Recipe.of(settings)

    def lab() -> Any:
        members = [load_teachers(TeacherTable()) for _ in range(2)]
        torch.manual_seed(0)
        both = EnsembleTeacher(members, "selected")
        return assemble(recipe, both, new_student(recipe.student, both))

    whole = [round_.measures for round_ in rounds(lab())]
    chosen = [found["teacher"] for found in whole if "loss" in found]
    assert {0.0, 1.0} == set(chosen)
    first, second = lab(), lab()
    going = rounds(first)
    for _ in range(len(whole) - 6):
        next(going)
    save_state(first.state_dict(), tmp_path / "x", "lab")
    second.load_state_dict(load_state(tmp_path / "x", "lab"))
    assert [round_.measures for round_ in rounds(second)] == whole[-6:]


# --- members


def test_each_member_sees_the_image_as_it_wants_it():
    small, large = teacher(16, 1), teacher(32, 3, seed=1)
    both, images = EnsembleTeacher([small, large]), random(4, 1, 16, 16).requires_grad_()
    assert both.spec == small.spec
    enlarged = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear")
    expected = small.forward_network(images).softmax(1)
    expected = (expected + large.forward_network(enlarged.expand(-1, 3, -1, -1)).softmax(1)) / 2
    found = both.forward_network(images)
    assert torch.allclose(found.softmax(1), expected, atol=1e-5)
    (slope,) = torch.autograd.grad(found[:, 0].sum(), images)
    assert slope.abs().sum() > 0
    assert len(both.stored) == len(small.stored) + len(large.stored)
    assert len(both.observe(images).moments) == len(both.stored)


def test_a_black_box_among_them_answers_and_hides():
    closed, open_one = teacher(access="labels"), teacher(seed=1)
    both = EnsembleTeacher([closed, open_one])
    assert both.abilities == open_one.abilities and both.access == "full"
    images = random(4, 1, 16, 16).requires_grad_()
    assert torch.equal(both.forward_network(images), open_one.forward_network(images))
    assert both.feature_layer == open_one.feature_layer
    assert both.shown == 1
    mean = (closed(images.detach()).softmax(1) + open_one(images.detach()).softmax(1)) / 2
    assert torch.allclose(both(images.detach()).softmax(1), mean, atol=1e-6)


def test_layers_are_compared_where_the_first_is_closed_and_takes_other_images():
    both = EnsembleTeacher([teacher(access="logits"), teacher(32, 3, seed=1)])
    student = Classifier(build_network("resnet8-w4", channels=1, size=16, classes=4), both.spec, 4)
    before = both.queries
    for term in ("hint", "projection", "cross_attention"):
        objective = DistillationObjective(TrainingTable(terms={term: 1.0}), student, both)
        images = random(4, 1, 16, 16)
        shown = both.teach(images, objective.teacher_layers)
        learner = Learner(student, TrainingTable(terms={term: 1.0}), objective)
        assert learner.step(images, shown, 0.5).loss.isfinite()
    assert both.queries == before + 3 * (4 + 4)
    assert not asked_freely(both) and asked_freely(both.teachers[1])


def test_nothing_of_a_member_changes():
    members = [teacher(), teacher(32, 3, seed=1)]
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in members]
    both, images = EnsembleTeacher(members, "agreement"), random(8, 1, 16, 16).requires_grad_()
    seen = both.observe(images)
    (seen.logits.sum() + sum(m.sum() + v.sum() for m, v in seen.moments)).backward()
    both.teach(images.detach())
    for member, state in zip(members, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in member.state_dict().items())
        assert all(p.grad is None for p in member.parameters())


@pytest.mark.parametrize(
    ("members", "rule", "said"),
    [
        ([teacher(), teacher(classes=5)], "average", "other classes cannot teach together"),
        (
            [teacher(names=("a", "b", "c", "d")), teacher(names=("A", "b", "x", "d"))],
            "average",
            "class 2 is 'c' to 'teacher' and 'x'",
        ),
        (
            [teacher(), *(teacher(names=tuple(names)) for names in ("abcd", "abxd"))],
            "average",
            "class 2 is 'c' to 'teacher' and 'x'",
        ),
        (
            [*(teacher(names=tuple(names)) for names in ("abcd", "abcd", "dcba"))],
            "average",
            "class 0 is 'a' to 'teacher' and 'd'",
        ),
        ([teacher(), teacher()], "mean", r"is one of average, .*; got 'mean'"),
        ([], "average", "there are none"),
    ],
)
def test_what_cannot_teach_together_is_refused(members, rule, said):
    with pytest.raises(InputError, match=said):
        EnsembleTeacher(members, rule)


def test_names_are_those_of_the_first_teacher_that_brings_any():
    unnamed, named = teacher(), teacher(names=("a", "b", "c", "d"))
    assert unnamed.names == ("0", "1", "2", "3")
    assert EnsembleTeacher([unnamed, unnamed, named, unnamed]).names == named.names
    assert EnsembleTeacher([unnamed, unnamed]).names == unnamed.names


# --- files


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A file of two teachers: the demo, and a student of it."""
    folder = tmp_path_factory.mktemp("two")
    synthkd.distill(images=8000, out=folder / "run", settings={"run.threads": 1})
    path = folder / "two.toml"
    path.write_text(
        f'rule = "entropy"\n[[teacher]]\nspec = "demo"\n[[teacher]]\nspec = "{folder / "run"}"\n',
        encoding="utf-8",
    )
    return path


@pytest.mark.slow
def test_a_file_of_teachers_teaches_and_the_run_goes_on(two, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["distill", "--teacher", f"ensemble:{two}", "--images-seen", "12000", "--out", str(out),
             "--run.threads", "1", "--val-data", "demo:unseen"]  # fmt: skip
    assert status(*words) in (0, 3)  # 3: with warnings
    summary = json.loads((out / "summary.json").read_text())
    assert summary["teacher_answers"] == "2 teachers' probabilities by entropy"
    assert summary["student_accuracy"] > 0.5
    assert summary["teacher_parameters"] > 172_218
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["promise_level"] == 0 and manifest["real_images_read"] == 0
    capsys.readouterr()
    assert status("evaluate", "--student", str(out), "--val-data", "demo:unseen") in (0, 3)
    assert "agreement" in capsys.readouterr().out


@pytest.mark.slow
def test_a_student_is_cut_out_of_the_first_who_can_be_looked_into(two, tmp_path):
    out = tmp_path / "run"
    settings = {"run.threads": 1}
    synthkd.distill(f"ensemble:{two}", "prune:0.5", images=1500, out=out, settings=settings)
    again = synthkd.load_student(out)
    assert sum(p.numel() for p in again.parameters()) < 172_218 / 1.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rule = 3\n[[teacher]]\nspec='demo'\n[[teacher]]\nspec='demo'", "rule: a text"),
        ("[[teacher]]\nspec = 'demo'", r"2 to 16 tables \[\[teacher\]\]"),
        ("teacher = 'demo'", r"2 to 16 tables \[\[teacher\]\]"),
        ("rules = 'x'\n[[teacher]]\nspec='demo'", "unknown key 'rules'; did you mean 'rule'"),
        ("[[teacher]]\nspec='demo'\n[[teacher]]\nspex='demo'", "teacher 2: spex"),
        ("[[teacher]]\nspec='demo'\n[[teacher]]\nclasses=1", "teacher 2: classes"),
        ("[[teacher]]\nspec='demo'\n[[teacher]]\nspec='ensemble:a.toml'", "names no other file"),
        ("[[teacher]]\nspec='os:system'\n[[teacher]]\nspec='demo'", "give --trust-code"),
        ("[[teacher]]\nspec='demo'\n[[teacher]]\nspec='demo'\nonly=['1','2']", "teach all classes"),
        ("x = [", "not valid TOML"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(text, said, tmp_path):
    path = tmp_path / "some.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        ensemble_tables(TeacherTable(spec=f"ensemble:{path}"))


@pytest.mark.slow
def test_flags_beside_a_file_and_commands_for_one_teacher_say_so(two, tmp_path, capsys):
    with pytest.raises(InputError, match="bring their own"):
        load_teachers(TeacherTable(spec=f"ensemble:{two}", mean=(0.5,)))
    assert status("inspect", f"ensemble:{two}") == 2
    assert "several teachers serve distill and generate alone" in capsys.readouterr().err
    missing = tmp_path / "none.toml"
    assert status("distill", "--teacher", f"ensemble:{missing}", "--dry-run") == 2
    assert "there is no such file" in capsys.readouterr().err


def test_the_file_on_the_page_about_teachers_is_one(tmp_path):
    page = (Path(__file__).parent.parent / "docs/how-to/teach.md").read_text(encoding="utf-8")
    path = tmp_path / "both.toml"
    path.write_text(page.partition("```toml\n")[2].partition("```")[0], encoding="utf-8")
    rule, tables = ensemble_tables(TeacherTable(spec=f"ensemble:{path}"))
    assert rule == "entropy"
    assert [table.image_size for table in tables] == [32, 64]
    assert tables[1].access == "logits"
