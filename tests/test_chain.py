"""Assistants, peers and averages: who teaches beside the teacher."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import synthkd
from synthkd import schedules
from synthkd.core.errors import InputError
from synthkd.core.logits import blended
from synthkd.core.states import load_state, save_state
from synthkd.engine.chain import Chain
from synthkd.engine.loop import Lab, rounds
from synthkd.recipe import Recipe, TeacherTable, TeachingTable, load_recipe
from synthkd.replay import Memory
from synthkd.specs import load_teacher
from synthkd.students.learner import Learner
from synthkd.teachers.ensemble import EnsembleTeacher

SMALL = {
    "run.stages": ("draw", "study"), "training.batch": 32, "run.threads": 1,
    "student.spec": "resnet8-w4", "budget.images": 6400, "run.precision": "float32",
    "training.repeats": 1,
}  # fmt: skip


LEFT = (2, 6, 10)  # rounds, where runs are stopped


def lab_of(*, rule: str = "", **settings: Any) -> Lab:
    """A lab whose teacher is the demo's, or by a `rule` two of them."""
    given_ = {key.replace("__", "."): value for key, value in settings.items()}
    two = [load_teacher(TeacherTable()) for _ in range(2)] if rule else []
    teacher = EnsembleTeacher(two, rule) if rule else None
    return synthkd.build(Recipe.of({**SMALL, **given_}), teacher=teacher)


# --- what is taught


@pytest.mark.parametrize("independent", [False, True])
def test_a_blend_is_the_weighted_mean_of_probabilities(independent):
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    found = blended((a, b), (0.3, 0.7), independent=independent)
    if independent:
        mean = 0.3 * a.sigmoid() + 0.7 * b.sigmoid()
        assert torch.allclose(found.sigmoid(), mean, atol=1e-6)
    else:
        mean = 0.3 * a.softmax(1) + 0.7 * b.softmax(1)
        assert torch.allclose(found.softmax(1), mean, atol=1e-6)


def answers_of(lab: Lab, images: Tensor) -> Tensor:
    assert lab.chain is not None
    return lab.chain.teach(lab.teacher, images, ()).logits


@pytest.mark.slow
def test_each_learns_from_the_one_before_it_and_the_last_is_the_student():
    lab = lab_of(teaching__assistants=("resnet14-w8", "resnet8-w8"), teaching__assistants_share=0.6)
    assert lab.chain is not None and lab.learner is lab.chain.learners[0]
    turns, taught = [], []
    images = torch.rand(8, 1, 16, 16)
    for round_ in rounds(lab):
        if "turn" in round_.measures:
            turns.append(round_.measures["turn"])
        taught.append(answers_of(lab, images))
    assert turns == sorted(turns) and set(turns) == {0, 1, 2}
    shares = [turns.count(turn) / len(turns) for turn in (0, 1, 2)]
    assert shares == pytest.approx([0.3, 0.3, 0.4], abs=0.06)
    assert torch.allclose(taught[0], lab.teacher(images), atol=1e-4)  # the first, by the teacher
    own = lab.chain.learners[1].answer(images)
    assert torch.equal(taught[-1], own)  # the student, by the second assistant alone
    assert lab.learner is lab.chain.learners[2]
    assert [sum(p.numel() for p in each.student.parameters()) for each in lab.chain.learners] == (
        sorted((sum(p.numel() for p in each.student.parameters()) for each in lab.chain.learners),
               reverse=True)
    )  # fmt: skip


@pytest.mark.slow
def test_an_assistant_that_has_been_promoted_learns_no_more():
    lab = lab_of(teaching__assistants=("resnet8-w8",))
    kept: dict[str, Tensor] | None = None
    for _ in rounds(lab):
        assert lab.chain is not None
        if lab.chain.last and kept is None:
            kept = {k: v.clone() for k, v in lab.chain.learners[0].student.state_dict().items()}
    assert lab.chain is not None and kept is not None
    for key, value in lab.chain.learners[0].student.state_dict().items():
        assert torch.equal(value, kept[key])


@pytest.mark.slow
def test_the_learning_rate_runs_its_course_in_every_turn(monkeypatch):
    seen: list[float] = []
    plain = Learner.step

    def step(self: Learner, images: Tensor, taught: Any, progress: float, **more: Any) -> Any:
        seen.append(progress)
        return plain(self, images, taught, progress, **more)

    monkeypatch.setattr(Learner, "step", step)
    list(rounds(lab_of(teaching__assistants=("resnet8-w8",))))
    falls = [place for place in range(1, len(seen)) if seen[place] < seen[place - 1] - 0.5]
    assert len(falls) == 1 and seen[falls[0] - 1] > 0.85 and seen[-1] > 0.95


ADAPTING = {
    "training__terms": {"soft_targets": 1.0, "hint": 0.3}, "training__weighting": "agreement",
    "training__temperature_schedule": "adaptive", "training__temperature_end": 2.0,
    "memory__priority": 0.6, "memory__curriculum": True, "difficulty__enabled": True,
    "difficulty__start": 0.5,
}  # fmt: skip


@pytest.mark.slow
def test_what_follows_an_assistant_begins_anew_with_the_next_network(monkeypatch):
    corrected: list[float] = []

    def correction(progress: float, *, first: float) -> float:
        corrected.append(progress)
        return plain(progress, first=first)

    plain = schedules.correction
    monkeypatch.setattr(schedules, "correction", correction)
    lab = lab_of(teaching__assistants=("resnet8-w8",), **ADAPTING)
    assert lab.chain is not None and isinstance(lab.memory, Memory)
    fresh = lab_of(**ADAPTING).controllers
    assert set(fresh) == {"difficulty", "temperature", "answers_share"}
    shares, moved, promoted = [], False, False
    for round_ in rounds(lab):
        if "loss" not in round_.measures:
            continue
        shares.append(round_.measures["competence"])
        states = {name: one.state_dict() for name, one in lab.controllers.items()}
        if lab.chain.last and not promoted:
            promoted = True
            assert moved
            assert states == {name: one.state_dict() for name, one in fresh.items()}
            assert lab.memory.priorities is not None
            assert bool((lab.memory.priorities[: len(lab.memory)] == 1).all())
        elif not lab.chain.last:
            moved = all(states[name] != fresh[name].state_dict() for name in fresh)
            assert len(lab.memory.priorities.unique()) > 10  # type: ignore[union-attr]
    turn = [schedules.competence(done / 10) for done in range(10)]
    assert shares == pytest.approx([*turn, *turn])  # easy images first, for each of them
    falls = [k for k in range(1, len(corrected)) if corrected[k] < corrected[k - 1]]
    assert len(falls) == 1 and corrected[falls[0] - 1] > 0.9 < corrected[-1]


def chain_of(**table: Any) -> Chain:
    learners: Any = [object(), object()]
    return Chain(learners, TeachingTable(assistants=("a",), **table))


def test_a_good_assistant_is_promoted_early_and_a_bad_one_is_dropped():
    chain = chain_of(promote_at=0.9, rollback=0.1)
    assert not chain.notice(0.1, {"agreement": 0.5})
    assert not chain.last and chain.end == 0.5
    for _ in range(200):
        over = chain.notice(0.2, {"agreement": 0.95})
    assert over  # smoothed it is over 0.9 by now
    chain.promote(0.2)
    assert chain.last and chain.share(0.2) == 0 and chain.share(0.6) == pytest.approx(0.5)
    assert chain.state.weight == 1
    for _ in range(50):
        chain.notice(0.4, {"agreement": 0.8})
    assert chain.state.weight == 1
    for _ in range(50):
        chain.notice(0.5, {"agreement": 0.4})
    assert chain.state.weight == 0  # the teacher alone again
    for _ in range(50):
        chain.notice(0.6, {"agreement": 0.9})
    assert chain.state.weight == 0


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=40), st.integers(1, 4))
def test_turns_never_go_back_and_end_with_the_student(signals, assistants):
    learners: Any = [object()] * (assistants + 1)
    table = TeachingTable(assistants=("a",) * assistants, promote_at=0.9, rollback=0.05)
    chain = Chain(learners, table)
    whole = 0.0
    for step, agreement in signals:
        whole = min(1.0, whole + step / 8)
        before = chain.state.place
        if chain.notice(whole, {"agreement": agreement}):
            chain.promote(whole)
        assert before <= chain.state.place <= before + 1 <= assistants + 1
        assert 0 <= chain.share(whole) <= 1


# --- mutual learning and averages


@pytest.mark.slow
def test_peers_learn_from_each_other():
    """With weight on the peer alone two students end nearer to each other than without."""

    def gap(weight: float) -> float:
        lab = lab_of(teaching__peer="resnet8-w4", teaching__peer_weight=weight)
        assert lab.peer is not None and lab.learner is not None
        assert not torch.equal(
            lab.peer.student.body.linear.weight, lab.learner.student.body.linear.weight
        )
        list(rounds(lab))
        assert lab.peer.steps == lab.learner.steps == 200
        images = torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        pair = (lab.peer.answer(images), lab.learner.answer(images))
        return float((pair[0].softmax(1) - pair[1].softmax(1)).abs().sum())

    assert gap(20.0) < 0.8 * gap(1e-6)


@pytest.mark.slow
def test_an_average_teaches_its_share(monkeypatch):
    taught: list[Tensor] = []
    plain = Learner.step

    def step(self: Learner, images: Tensor, seen: Any, progress: float, **more: Any) -> Any:
        assert self.average is not None
        own = self.answer_averaged(images).softmax(1)
        teacher = lab.teacher(images).softmax(1)
        mean = 0.4 * own + 0.6 * teacher
        taught.append((seen.logits.softmax(1) - mean).abs().max())
        return plain(self, images, seen, progress, **more)

    monkeypatch.setattr(Learner, "step", step)
    lab = lab_of(teaching__average_weight=0.4)
    list(rounds(lab))
    assert taught and max(taught) < 1e-3
    assert lab.learner is not None and lab.learner.average is not None
    images = torch.rand(8, 1, 16, 16)
    twin = {k: v.clone() for k, v in lab.learner.student.state_dict().items()}
    averaged = lab.learner.answer_averaged(images)
    assert all(torch.equal(v, twin[k]) for k, v in lab.learner.student.state_dict().items())
    lab.learner.use(lab.learner.average)
    assert torch.allclose(averaged, lab.learner.answer(images), atol=1e-5)
    with pytest.raises(InputError, match="the student has no average"):
        Recipe.of({"teaching.average_weight": 0.4, "training.ema": 0.0})


# --- runs


@pytest.mark.parametrize(
    "settings",
    [
        {"teaching__assistants": ("resnet8-w8",), "teaching__promote_at": 0.3,
         "teaching__rollback": 0.02, "memory__priority": 0.6, "training__weighting": "uncertainty",
         "training__terms": {"soft_targets": 1.0, "hint": 0.3}},
        *(pytest.param(settings, marks=pytest.mark.slow) for settings in (
            {"teaching__assistants": ("resnet8-w8", "resnet8-w4"),
             "teaching__assistant_weight": 0.5},
            {"teaching__peer": "resnet8-w8"},
            {"teaching__average_weight": 0.3},
            {"student__spec": "prune:0.5", "teaching__assistants": ("prune:0.5",)},
            {"rule": "selected", "teaching__assistants": ("resnet8-w8",), **ADAPTING,
             "training__batch": 16, "budget__images": 2240},
        )),
    ],
)  # fmt: skip
def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_bytes(settings, tmp_path):
    settings = {"budget__images": 4480, **settings}
    whole, first = lab_of(**settings), lab_of(**settings)
    unbroken = [round_.measures for round_ in rounds(whole)]
    assert whole.learner is not None and len(unbroken) > max(LEFT)
    going = rounds(first)
    for done in range(1, len(unbroken)):
        next(going)
        left = len(unbroken) - done
        if left not in LEFT:
            continue
        save_state(first.state_dict(), tmp_path / "x", "lab")
        second = lab_of(**settings)
        second.load_state_dict(load_state(tmp_path / "x", "lab"))
        assert [round_.measures for round_ in rounds(second)] == unbroken[-left:]
        assert second.learner is not None
        for key, value in whole.learner.student.state_dict().items():
            assert torch.equal(value, second.learner.student.state_dict()[key])


def test_networks_cut_out_of_one_teacher_are_several():
    lab = lab_of(student__spec="prune:0.5", teaching__assistants=("prune:0.5", "prune:0.3"))
    assert lab.chain is not None
    found = [each.student for each in lab.chain.learners]
    assert len({id(p) for student in found for p in student.parameters()}) == sum(
        len(list(student.parameters())) for student in found
    )
    with pytest.raises(InputError, match="it would stay like it for ever"):
        lab_of(student__spec="prune:0.5", teaching__peer="prune:0.5")


def test_turns_that_are_overshot_are_divided_anew_and_none_is_left_without_time():
    learners: Any = [object()] * 4
    chain = Chain(learners, TeachingTable(assistants=("a",) * 3, assistants_share=0.5))
    assert chain.end == pytest.approx(0.5 / 3)
    assert chain.notice(0.4, {}) and not chain.last
    chain.promote(0.4)  # far beyond its end
    assert (chain.state.place, chain.state.by) == (1, 0) and chain.end == pytest.approx(0.45)
    assert chain.share(0.4) == 0
    chain.promote(0.7)  # and now nothing is left for the third
    assert (chain.state.place, chain.state.by) == (3, 1) and chain.last


def test_a_budget_that_ends_before_the_students_turn_is_refused():
    with pytest.raises(InputError, match="before it was the student's turn"):
        list(rounds(lab_of(teaching__assistants=("resnet8-w8",), budget__images=320)))


def test_a_file_may_not_choose_code_to_learn_from_or_with(tmp_path):
    for key, value in (("peer", '"os:system"'), ("assistants", '["resnet8", "os:system"]')):
        path = tmp_path / f"{key}.toml"
        path.write_text(f"[teaching]\n{key} = {value}\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"'os:system' is named in a file"):
            load_recipe(path)


@pytest.mark.slow
def test_a_run_is_as_free_of_data_as_the_networks_it_learned_with(tmp_path):
    other = tmp_path / "other"
    synthkd.distill(
        images=1000, out=other, mix_ratio=0.5, real_data=torch.rand(64, 1, 16, 16),
        settings={"run.threads": 1},
    )  # fmt: skip
    settings = {"teaching.peer": str(other), "run.threads": 1}
    synthkd.distill(images=1000, out=tmp_path / "run", settings=settings)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["promise_level"] == 2


@pytest.mark.slow
def test_a_chain_in_one_command_ships_the_student_alone(tmp_path):
    out = tmp_path / "run"
    found = synthkd.distill(
        images=6400, out=out,
        settings={
            "teaching.assistants": "resnet8-w16", "run.threads": 1, "run.snapshots": 4,
            "training.repeats": 1,
        },
    )  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    assert summary["student_parameters"] == sum(p.numel() for p in found.student.parameters())
    assert math.isfinite(summary["held_out_agreement"])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {0.0, 1.0} <= {line["turn"] for line in lines if "turn" in line}
    assert synthkd.load_student(out).state_dict().keys() == found.student.state_dict().keys()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"teaching__assistants": ("resnet8w8",)}, "resnet8w8"),
        ({"teaching__assistants": ("auto",)}, "auto is for the student"),
        ({"teaching__peer": "auto"}, "auto is for the student"),
    ],
)
def test_networks_that_are_none_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        lab_of(**settings)
