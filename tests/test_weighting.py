"""How strongly terms count, how soft targets are, and which images come first."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from synthkd.core.errors import InputError
from synthkd.core.images import to_float
from synthkd.core.states import load_state, save_state
from synthkd.engine import controllers
from synthkd.engine.build import assemble
from synthkd.engine.loop import Lab, rounds
from synthkd.losses.distillation.answers import soft_targets
from synthkd.recipe import MemoryTable, Recipe, TeacherTable, TrainingTable
from synthkd.replay import Memory
from synthkd.schedules import Temperature, step_temperature, temperature
from synthkd.specs import load_teacher, new_student
from synthkd.students import weighting
from synthkd.students.weighting import GradNorm, TwoKinds, Uncertainty, Weighting, weighting_of

SMALL = {
    "run.stages": ("draw", "study"), "training.batch": 32, "run.threads": 1,
    "student.spec": "resnet8-w4", "student.start": "new", "budget.images": 960,
    "training.repeats": 1,
}  # fmt: skip


def lab_of(**settings: object) -> Lab:
    recipe = Recipe.of(
        {**SMALL, **{key.replace("__", "."): value for key, value in settings.items()}}
    )
    teacher = load_teacher(TeacherTable())
    torch.manual_seed(0)
    return assemble(recipe, teacher, new_student(recipe.student, teacher))


# --- weighting


def test_fixed_weights_add_terms_up_and_leave_a_single_one_as_it_is():
    value = torch.tensor(2.0, requires_grad=True)
    assert Weighting({"a": 1.0})({"a": value}, 0.5) is value
    both = {"a": value, "b": torch.tensor(5.0)}
    assert Weighting({"a": 3.0, "b": 0.5})(both, 0.5).item() == 8.5


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.5, 1.0, 4.0])
def test_the_capacity_form_is_a_fixed_point_near_a_half(ratio):
    a = weighting.capacity(ratio)
    assert a == pytest.approx(1 / (1 + math.exp(-ratio * (1 - a))), abs=1e-9)
    if ratio <= 1:
        assert 0.5 < a < 0.6


def test_answers_and_features_share_what_agreement_says():
    kinds = TwoKinds({"soft_targets": 1.0, "hint": 2.0}, frozenset({"hint"}))
    assert kinds.factors(0.25) == {"soft_targets": 0.5, "hint": 1.5}
    values = {"soft_targets": torch.tensor(4.0), "hint": torch.tensor(1.0)}
    assert kinds(values, 0.25).item() == 0.5 * 4 + 1.5 * 2
    assert weighting.answers_share(0.8) == pytest.approx(0.5)
    with pytest.raises(InputError, match="give both kinds"):
        TwoKinds({"soft_targets": 1.0, "logit_l1": 1.0}, frozenset())


def test_uncertainty_ends_where_every_term_counts_by_its_relative_change():
    """At rest exp(−q) = 1 / (w · L): the minimum of exp(−q) x + q by q."""
    found = Uncertainty({"a": 2.0, "b": 1.0})
    values = {"a": torch.tensor(0.25), "b": torch.tensor(8.0)}
    optimizer = torch.optim.Adam(found.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        found(values, 0.5).backward()
        optimizer.step()
    factors = found.factors(0.5)
    assert factors["a"] == pytest.approx(2.0, rel=0.01)
    assert factors["b"] == pytest.approx(1 / 8, rel=0.01)


def test_gradnorm_makes_gradients_alike_where_terms_train_alike():
    torch.manual_seed(0)
    student = nn.Linear(3, 2, bias=False)
    x = torch.randn(16, 3)
    found = GradNorm({"large": 1.0, "small": 1.0}, student)

    def sizes() -> list[float]:
        out = student(x)
        values = {"large": 10 * out[:, 0].mean(), "small": 0.1 * out[:, 1].mean()}
        found(values, 0.5)
        factors = found.factors(0.5)
        parts = [factors[name] * value for name, value in values.items()]
        return [
            torch.autograd.grad(p, student.weight, retain_graph=True)[0].norm().item()
            for p in parts
        ]

    first = sizes()
    for _ in range(20 * 80):
        sizes()
    last = sizes()
    assert max(first) / min(first) > 50
    assert max(last) / min(last) < 1.1
    assert found.factor.mean().item() == pytest.approx(1, abs=1e-5)
    assert "student" not in " ".join(dict(found.named_parameters()))  # they are not its own


@pytest.mark.parametrize("kind", ["capacity", "uncertainty", "gradnorm", "agreement"])
def test_a_weighting_wants_terms_to_weigh(kind):
    with pytest.raises(InputError, match="terms has one"):
        weighting_of(kind, {"soft_targets": 1.0}, frozenset(), nn.Linear(2, 2), 10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["capacity", "uncertainty", "gradnorm", "agreement"])
def test_factors_are_recorded_every_round_and_a_run_goes_on_exactly(kind, tmp_path):
    given_ = {
        "training__terms": {"soft_targets": 1.0, "hint": 0.5}, "training__weighting": kind,
        "budget__images": 2400,
    }  # fmt: skip
    whole, first, second = (lab_of(**given_) for _ in range(3))
    unbroken = [round_.measures for round_ in rounds(whole)]
    taught = [found for found in unbroken if "factor.hint" in found]
    assert len(taught) > 2
    assert taught[-1]["factor.hint"] > 0
    if kind != "capacity":
        assert taught[0]["factor.hint"] != taught[-1]["factor.hint"]
    going = rounds(first)
    for _ in range(len(unbroken) - 2):
        next(going)
    save_state(first.state_dict(), tmp_path / "x", "lab")
    second.load_state_dict(load_state(tmp_path / "x", "lab"))
    rest = [round_.measures for round_ in rounds(second)]
    assert rest == unbroken[-2:]


# --- temperature


def test_schedules_of_the_temperature_begin_and_end_where_they_should():
    for kind, middle in (("linear", 12.0), ("cosine", 12.0), ("constant", 20.0)):
        table = TrainingTable(temperature=20, temperature_end=4, temperature_schedule=kind)
        last = 20.0 if kind == "constant" else 4.0
        found = [temperature(p, table) for p in (0.0, 0.5, 1.0)]
        assert found == pytest.approx([20.0, middle, last])


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60))
def test_the_adaptive_temperature_stays_between_its_ends(divergences):
    table = TrainingTable(temperature=8, temperature_end=2, temperature_schedule="adaptive")
    state = Temperature(8.0)
    for divergence in divergences:
        state = step_temperature(state, divergence, table)
        assert 2 <= state.value <= 8
    assert state.kl is not None


@pytest.mark.slow
def test_the_adaptive_temperature_follows_the_gap_of_a_run_and_is_told():
    found = [
        round_.measures
        for round_ in rounds(
            lab_of(
                training__temperature_schedule="adaptive", training__temperature=20,
                training__temperature_end=2, budget__images=6400, student__start="teacher",
            )
        )
    ]  # fmt: skip
    table = TrainingTable(temperature=20, temperature_end=2, temperature_schedule="adaptive")
    state = Temperature(20.0)
    assert sum("kl" in measures for measures in found) > 5
    for measures in found:
        if "kl" in measures:
            state = step_temperature(state, measures["kl"], table)
        assert measures["temperature"] == state.value


# --- prioritised replay and the curriculum


def test_images_get_their_last_loss_as_priority_and_blends_tell_nothing():
    lab = lab_of(memory__priority=1.0, augment__mixup=0.0, augment__shift=0.0)
    assert isinstance(lab.memory, Memory)
    list(rounds(lab))
    assert lab.memory.priorities is not None
    assert lab.learner is not None
    found = lab.memory.priorities[: len(lab.memory)]
    assert len(found.unique()) > 100
    # with plain images and exponent 1 a priority is a loss: large where the student is wrong
    kept = lab.memory.everything()
    answers = lab.learner.answer(to_float(kept.images))
    now = soft_targets(answers, kept.logits.float(), temperature=8, per_sample=True)
    seen = found != found.max()  # newcomers that were never drawn have the highest
    ranks = [x[seen].double().argsort().argsort().double() for x in (found, now)]
    assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.2


def test_with_repeated_answers_priorities_are_set_by_what_is_not_blended():
    lab = lab_of(memory__priority=1.0, augment__mixup=0.5, training__repeats=2)
    list(rounds(lab))
    assert isinstance(lab.memory, Memory) and lab.memory.priorities is not None
    with pytest.raises(InputError, match="every batch is blended"):
        lab_of(memory__priority=1.0, augment__mixup=1.0)


def test_hard_images_are_drawn_more_often_and_weights_make_up_for_it():
    """The importance-weighted mean of a draw estimates that of a draw without priorities, wholly
    at an exponent of 1, not at all at 0."""
    memory = Memory(40, (1, 2, 2), 2)
    votes = torch.arange(40) % 2
    logits = 5.0 * torch.nn.functional.one_hot(votes, 2)
    memory.add(torch.zeros(40, 1, 2, 2, dtype=torch.uint8), votes, logits, "any")
    values = torch.arange(40).double()
    memory.update(torch.arange(40), values + 1)
    drawn = memory.draw(200_000, torch.Generator().manual_seed(0))
    plain = values[drawn.slots].mean().item()
    weights = drawn.weights.double()
    assert plain == pytest.approx(26, rel=0.03)  # Σ v (v + 1) / Σ (v + 1)
    assert (values[drawn.slots] * weights).sum() / weights.sum() == pytest.approx(19.5, rel=0.03)


def test_a_term_that_tells_of_no_image_cannot_set_priorities():
    with pytest.raises(InputError, match="terms tells it"):
        lab_of(memory__priority=0.6, training__terms={"soft_targets": 0.0, "hint": 1.0})


@pytest.mark.parametrize("more", [{"form": "autoencoder"}, {"capacity": 0}])
@pytest.mark.parametrize("wish", [{"priority": 0.6}, {"curriculum": True}])
def test_what_is_not_stored_cannot_be_chosen_among(wish, more):
    with pytest.raises(ValueError, match="choose among stored images"):
        MemoryTable(**wish, **more)


def filled(margins: list[tuple[int, float]]) -> Memory:
    memory = Memory(len(margins), (1, 2, 2), 3)
    logits = torch.zeros(len(margins), 3)
    for row, (vote, size) in enumerate(margins):
        logits[row, vote] = size
    nothing = torch.zeros(len(margins), 1, 2, 2, dtype=torch.uint8)
    memory.add(nothing, torch.full((len(margins),), -1), logits, "any")
    return memory


def test_the_easiest_of_every_class_come_first():
    memory = filled([(0, 1), (0, 4), (0, 3), (0, 2), (1, 0.5), (1, 0.25), (2, 9)])
    rng = torch.Generator().manual_seed(0)

    def seen(easiest: float) -> set[int]:
        return set(memory.draw(400, rng, easiest=easiest).slots.tolist())

    assert seen(0.5) == {1, 2, 4, 6}
    assert seen(0.01) == {1, 4, 6}  # one of each at least
    assert seen(0.75) == {1, 2, 3, 4, 5, 6}
    assert seen(1.0) == set(range(7))
    new = Tensor([[0.0, 50.0, 0.0]])  # it takes the place of the oldest of the largest class
    memory.add(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([-1]), new, "any")
    assert seen(0.01) == {0, 1, 6}  # and is judged with the others


@pytest.mark.slow
def test_the_curriculum_opens_the_memory_as_the_training_goes_on(monkeypatch):
    """Ten rounds: what the n-th draws from is the competence after n − 1 of them."""
    lab = lab_of(memory__curriculum=True, budget__images=3200)
    drawn, draw = [], lab.memory.draw

    def watched(*given: object, easiest: float, **more: object) -> object:
        drawn.append(easiest)
        return draw(*given, easiest=easiest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(lab.memory, "draw", watched)
    told = [round_.measures.get("competence") for round_ in rounds(lab)]
    expected = [math.sqrt(n / 10 * (1 - 0.2**2) + 0.2**2) for n in range(10)]
    assert [share for share in told if share is not None] == pytest.approx(expected)
    assert list(dict.fromkeys(drawn)) == pytest.approx(expected)
    assert len(drawn) == 100


def test_a_controller_hears_how_much_of_the_training_is_done(monkeypatch):
    heard: list[float] = []

    class Hearing(controllers.Following):
        def update(self, signals):
            heard.append(signals["progress"])
            return super().update(signals)

    made = Hearing("progress", float, 0.0)
    monkeypatch.setitem(controllers.CONTROLLERS, "hearing", lambda _: made)
    told = [round_.measures["hearing"] for round_ in rounds(lab_of())]
    assert heard == pytest.approx([1 / 3, 2 / 3, 1]) and told[-3:] == heard


def test_what_is_off_has_no_controller_and_leaves_no_trace():
    assert set(lab_of().controllers) == {"difficulty"}
    assert set(controllers.CONTROLLERS) == {
        "difficulty", "temperature", "answers_share", "need.0.5", "need.0.75"
    }  # fmt: skip
    measures = [set(round_.measures) for round_ in rounds(lab_of())]
    assert not {name for found in measures for name in found if name.startswith("factor.")}
