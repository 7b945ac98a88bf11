"""At which widths a slimmable student learns: by chance, or by what its gradients leave over."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from short_runs import main, status
from torch import Tensor

from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec
from synthkd.core.states import load_state, save_state
from synthkd.engine.build import assemble
from synthkd.engine.loop import Lab, rounds
from synthkd.networks.classifier import Classifier
from synthkd.networks.resnet import ResNet
from synthkd.networks.slimmable import Slimmable
from synthkd.recipe import Recipe, TeacherTable, TrainingTable
from synthkd.specs import load_teacher, new_student
from synthkd.students import sandwich
from synthkd.students.learner import Learner
from synthkd.students.sandwich import MEASURED, chances, chosen, measures, unserved

SPEC = ImageSpec(channels=1, height=8, width=8, mean=(0.5,), std=(0.5,))
TABLE = {"ema": 0.0, "temperature": 2.0, "clip": 0.0}


def learner_of(how: str) -> Learner:
    torch.manual_seed(0)
    student = Classifier(Slimmable(ResNet(8, width=8, channels=1, classes=3)), SPEC, 3)
    return Learner(student, TrainingTable(**TABLE, widths=how))


def lesson(count: int = 12) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 8, 8, generator=rng), 3 * torch.randn(count, 3, generator=rng)


# --- what they compute


@pytest.mark.parametrize(
    ("own", "full", "left"),
    [((3, 4), (2, 0), 4.0), ((3, 4), (-2, 0), 5.0), ((3, 4), (6, 8), 0.0), ((3, 4), (0, 0), 5.0),
     ((0, 0), (1, 0), 0.0)],
)  # fmt: skip
def test_what_is_left_over_of_a_gradient_by_hand(own, full, left):
    found = unserved(torch.tensor(own).float(), torch.tensor(full).float())
    assert found.item() == pytest.approx(left, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_left_over_is_the_least_distance_from_the_others_ray(seed):
    """By trying lengths, and as length times the sine of the angle."""
    rng = torch.Generator().manual_seed(seed)
    full = torch.randn(6, generator=rng)
    own = torch.randn(6, generator=rng) + (full if seed < 2 else 0)
    found = unserved(own, full).item()
    tried = [
        sum((x - a / 1000 * y) ** 2 for x, y in zip(own.tolist(), full.tolist(), strict=True))
        for a in range(4000)
    ]
    assert found == pytest.approx(min(tried) ** 0.5, rel=1e-3)
    cosine = max(0.0, F.cosine_similarity(own, full, dim=0).item())
    assert found == pytest.approx(own.norm().item() * (1 - cosine**2) ** 0.5, rel=1e-4)


def test_chances_are_shares_that_follow_needs_and_are_never_small():
    assert chances([2.0, 6.0]) == [0.375, 0.625]
    assert chances([0.0, 5.0]) == [0.25, 0.75]
    assert chances([0.0, 0.0]) == [0.5, 0.5]
    assert sum(chances([0.1, 7.0, 3.0])) == pytest.approx(1)


@pytest.mark.parametrize("between", [(0.5, 0.75), (0.4, 0.6, 0.8)])
@pytest.mark.parametrize(("how", "many"), [("two", 2), ("one", 1), ("needed", 1)])
def test_over_many_steps_a_width_is_chosen_as_often_as_its_chance_says(how, many, between):
    steps, needs = 4000, {between[0]: 9.0, between[1]: 1.0}
    drawn = [
        chosen(between, how, needs, step) for step in range(steps)
        if how != "needed" or not measures(step)
    ]  # fmt: skip
    assert all(len(set(shares)) == len(shares) == many for shares in drawn)
    often = Counter(share for shares in drawn for share in shares)
    needed = chances([needs.get(share, 0.0) for share in between])
    assert needed[0] == pytest.approx(0.5 / len(between) + 0.5 * 0.9)
    for share, chance in zip(between, needed, strict=True):
        wanted = chance if how == "needed" else many / len(between)
        assert often[share] / len(drawn) == pytest.approx(wanted, abs=0.03)


def test_all_widths_learn_where_needs_are_measured():
    told = {step: chosen((0.4, 0.6, 0.8), "needed", {}, step) for step in range(2 * MEASURED)}
    whole = [step for step, shares in told.items() if shares == (0.4, 0.6, 0.8)]
    assert whole == [MEASURED - 1, 2 * MEASURED - 1]


# --- in a student


def test_needs_are_those_of_the_plain_networks_that_the_widths_are():
    """Gradients of plain ResNets, cut from the student before the step, each with its own graph."""
    learner, (images, answers) = learner_of("needed"), lesson()
    learner.steps = MEASURED - 1
    body = learner.student.body
    assert isinstance(body, Slimmable)
    normalised = (images - 0.5) / 0.5

    def divergence(learned: Tensor, taught: Tensor) -> Tensor:
        p, q = (taught / 2).softmax(1), (learned / 2).log_softmax(1)
        return 4 * (p * (p.log() - q)).sum(1).mean()

    def slopes(network: ResNet, taught: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        learned = network.train()(normalised)
        network.zero_grad()
        divergence(learned, taught).backward()
        found = {n: p.grad for n, p in network.named_parameters() if p.dim() > 1}
        return {n: g for n, g in found.items() if g is not None}, learned.detach()

    whole, logits = slopes(body.sliced(1.0), answers)
    expected = {}
    for share in (0.5, 0.75):
        own, _ = slopes(body.sliced(share), logits)
        a, b = [], []
        for name, gradient in own.items():
            cut = tuple(slice(0, side) for side in gradient.shape)
            a += gradient.flatten().tolist()
            b += whole[name][cut].flatten().tolist()
        product = sum(x * y for x, y in zip(a, b, strict=True))
        along = max(0.0, product) / sum(y * y for y in b)
        expected[share] = sum((x - along * y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5
    found = learner.step(images, answers, 0.5).needs
    assert found is not None
    assert {share: float(need) for share, need in found.items()} == pytest.approx(
        expected, rel=1e-4
    )
    assert not learner.step(images, answers, 0.5).needs  # at the next step they are not measured


@pytest.mark.parametrize(("how", "moved"), [("two", 2), ("one", 1), ("needed", 1)])
def test_a_step_reaches_the_widths_that_were_chosen_alone(how, moved):
    """By whose BatchNorm layers have seen a batch."""
    learner = learner_of(how)
    learner.step(*lesson(), 0.5)
    body = learner.student.body
    assert isinstance(body, Slimmable)
    seen = [int(norms[0].num_batches_tracked) for norms in body.narrow_norms]  # type: ignore[index]
    assert seen[0] == 1 and sum(seen[1:]) == moved
    assert int(body.full.bn1.num_batches_tracked) == 1


@pytest.mark.parametrize(("how", "times"), [("two", 0), ("one", 0), ("needed", 1)])
def test_needs_are_measured_at_every_twentieth_step_of_the_controller_alone(how, times):
    learner = learner_of(how)
    steps = [learner.step(*lesson(4), 0.5) for _ in range(MEASURED + 2)]
    assert sum(bool(step.needs) for step in steps) == times


# --- in a run


def lab_of(how: str) -> Lab:
    recipe = Recipe.of({
        "run.stages": ("draw", "study"), "training.batch": 16, "run.threads": 1,
        "student.spec": "slim:resnet8-w8", "student.start": "new", "budget.images": 1280,
        "stage.draw.fresh": 64, "training.widths": how, "training.repeats": 1,
    })  # fmt: skip
    teacher = load_teacher(TeacherTable())
    torch.manual_seed(0)
    return assemble(recipe, teacher, new_student(recipe.student, teacher))


@pytest.mark.slow
def test_needs_are_recorded_every_round_and_a_run_goes_on_exactly(tmp_path):
    whole, first, second = (lab_of("needed") for _ in range(3))
    unbroken = [round_.measures for round_ in rounds(whole)]
    for name in ("need.0.5", "need.0.75"):
        values = [measures[name] for measures in unbroken if "loss" in measures]
        assert values[0] == 0 and values[-1] > 0  # unknown at first
        assert sum(a != b for a, b in pairwise(values)) > 2
    going = rounds(first)
    for _ in range(len(unbroken) - 3):
        next(going)
    save_state(first.state_dict(), tmp_path / "x", "lab")
    second.load_state_dict(load_state(tmp_path / "x", "lab"))
    assert [round_.measures for round_ in rounds(second)] == unbroken[-3:]
    ours, theirs = (lab.learner.state_dict()["student"] for lab in (second, whole) if lab.learner)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["two", "one"])
def test_what_is_off_has_no_controller_and_leaves_no_trace(how):
    lab = lab_of(how)
    assert set(lab.controllers) == {"difficulty"}
    told = {name for round_ in rounds(lab) for name in round_.measures}
    assert not [name for name in told if name.startswith("need")]


def test_a_student_of_one_width_has_nothing_to_choose(tmp_path: Path, capsys):
    words = ("--run.threads", "1", "--quiet", "--out", str(tmp_path / "run"))
    assert status("distill", "--training.widths", "needed", *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "training.widths needed" in line and "--student slim:" in line
    two = Slimmable(ResNet(8, width=8), (0.5, 1.0))
    with pytest.raises(InputError, match="this student has not these"):
        sandwich.check_widths("needed", two)
    for how in ("one", "two"):
        sandwich.check_widths(how, two)
        assert sandwich.chosen(two.shares[1:-1], how, {}, 0) == ()


@pytest.mark.slow
def test_a_choice_of_widths_is_told_to_do_nothing_in_a_student_of_one(capsys):
    told = []
    for student in ("resnet8-w8", "slim:resnet8-w8"):
        main(f"distill --dry-run --run.threads 1 --training.widths two --student {student}".split())
        told.append("training.widths is for a student" in capsys.readouterr().out)
    assert told == [True, False]
