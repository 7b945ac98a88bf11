"""What a teacher answers: every common head around the demo's network, and what becomes of it."""

import json
import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics
from torch import Tensor, nn

from synthkd import measures
from synthkd.cli import main
from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec, to_float
from synthkd.core.logits import as_logits, log_odds, of_decisions, paired
from synthkd.data.sources import Images, demo_digits
from synthkd.evaluation.compare import compare
from synthkd.losses.distillation import TERMS as DISTILLATION_TERMS
from synthkd.losses.distillation import DistillationView, soft_decisions
from synthkd.losses.synthesis import View, balance, disagreement, divergence, one_hot
from synthkd.networks import answers, build_network
from synthkd.networks.answers import (
    KINDS,
    Answers,
    precision,
    probes,
    recognise,
    rounding,
    taken,
    to_logits,
)
from synthkd.networks.classifier import Classifier
from synthkd.networks.weight_init import inherited
from synthkd.recipe import Recipe, StudentTable, TeacherTable, TrainingTable
from synthkd.replay.memory import Memory
from synthkd.specs import BlackBox, load_classifier, load_teacher, new_student, read_card
from synthkd.students.learner import Learner
from synthkd.synthesis.plan import plan
from synthkd.teachers.frozen import FrozenTeacher

FINDINGS = ((0, 2, 4, 6, 8), (5, 6, 7, 8, 9), (0, 6, 8, 9))  # even; above four; with a loop
DEMO = load_teacher(TeacherTable())
SPEC = DEMO.spec
Pair = namedtuple("Pair", ["out", "aux"])


class Wrap(nn.Module):
    """The demo's network and a function of its logits."""

    def __init__(self, head: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net = build_network("resnet14", channels=1, size=16, classes=10)
        self.net.load_state_dict(DEMO.classifier.body.state_dict())
        self.eval()
        self.head = head

    def forward(self, x: Tensor) -> Any:
        return self.head(self.net(x))


def odds(z: Tensor) -> Tensor:
    """Log-odds of the three findings, [B, 3]."""
    rest = [[k for k in range(10) if k not in group] for group in FINDINGS]
    return torch.stack([
        z[:, list(group)].logsumexp(1) - z[:, other].logsumexp(1)
        for group, other in zip(FINDINGS, rest, strict=True)
    ], 1)  # fmt: skip


def best(z: Tensor, count: int = 3) -> Tensor:
    """Probabilities of the best classes alone."""
    shares = z.softmax(1)
    values, places = shares.topk(count, 1)
    return torch.zeros_like(shares).scatter(1, places, values)


def digits(count: int = 64) -> Tensor:
    """Real ones, in 0..1."""
    return to_float(demo_digits()[0][:count])


def even(z: Tensor) -> Tensor:
    return odds(z)[:, 0]


def listed(z: Tensor, count: int) -> list[list[dict[str, Any]]]:
    """As a pipeline of a library answers."""
    values, places = z.softmax(1).topk(count, 1)
    return [
        [{"label": f"LABEL_{k}", "score": s} for k, s in zip(a, b, strict=True)]
        for a, b in zip(places.tolist(), values.tolist(), strict=True)
    ]


ONE_OF_TEN = {  # name: head, kind, tolerance of its probabilities
    "plain": (lambda z: z, "logits", 1e-6),
    "double": (lambda z: z.double(), "logits", 1e-6),
    "half": (lambda z: z.half(), "logits", 1e-2),
    "array": (lambda z: z.detach().numpy(), "logits", 1e-6),
    "nested lists": (lambda z: z.tolist(), "logits", 1e-6),
    "rows": (lambda z: list(z.unbind()), "logits", 1e-6),
    "a map of one pixel": (lambda z: z[:, :, None, None], "logits", 1e-6),
    "an empty axis": (lambda z: z[:, None], "logits", 1e-6),
    "softmax": (lambda z: z.softmax(1), "probabilities", 1e-5),
    "softmax, sure": (lambda z: (8 * z).softmax(1), "probabilities", None),
    "half softmax": (lambda z: z.softmax(1).half(), "probabilities", 2e-3),
    "bfloat16 softmax": (lambda z: z.bfloat16().softmax(1), "probabilities", 2e-2),
    "two digits": (lambda z: (z.softmax(1) * 100).round() / 100, "probabilities", 3e-2),
    "three digits": (lambda z: (z.softmax(1) * 1e3).round() / 1e3, "probabilities", 3e-3),
    "bytes": (lambda z: (z.softmax(1) * 255).round().byte(), "probabilities", 2e-2),
    "one-hot": (lambda z: F.one_hot(z.argmax(1), 10), "probabilities", None),
    "log-softmax": (lambda z: z.log_softmax(1), "log-probabilities", 1e-5),
    "half log-softmax": (lambda z: z.log_softmax(1).half(), "log-probabilities", 1e-2),
    "percentages": (lambda z: z.softmax(1) * 100, "percentages", 1e-5),
    "whole percentages": (lambda z: (z.softmax(1) * 100).round().int(), "percentages", 3e-2),
    "top three": (best, "top-k", None),
    "top five, rounded": (lambda z: (best(z, 5) * 1e3).round() / 1e3, "top-k", None),
    "lists of labels": (lambda z: listed(z, 3), "top-k", None),
    "tuple": (lambda z: (z, z * 0.3), "logits", 1e-6),
    "named tuple": (lambda z: Pair(z, z * 0.3), "logits", 1e-6),
    "dictionary": (lambda z: {"loss": None, "logits": z, "hidden": z * 2}, "logits", 1e-6),
    "object": (lambda z: SimpleNamespace(logits=z), "logits", 1e-6),
    "nested": (lambda z: ({"out": z.softmax(1)},), "probabilities", 1e-5),
    "vote and shares": (lambda z: (z.argmax(1), z.softmax(1)), "probabilities", 1e-5),
}


@pytest.mark.parametrize("name", ONE_OF_TEN)
def test_ten_classes_are_read_from_every_form_of_answer(name):
    head, kind, tolerance = ONE_OF_TEN[name]
    body = Wrap(head)
    classes, found = recognise(body, SPEC, 10 if "lists of labels" in name else None)
    assert (classes, found.kind) == (10, kind)
    with torch.no_grad():
        logits = Classifier(body, SPEC, classes, found)(digits())
        true = DEMO.classifier(digits())
    assert logits.shape == (64, 10) and logits.dtype == torch.float32 and logits.isfinite().all()
    assert (logits.argmax(1) == true.argmax(1)).float().mean() > 0.98
    if tolerance is not None:
        assert torch.allclose(logits.softmax(1), true.softmax(1), atol=tolerance)


def test_lists_of_the_best_leave_the_rest_to_the_others_evenly():
    _, found = recognise(Wrap(best), SPEC, None)
    assert found.listed == 3 and "best 3 classes" in str(found)
    answer = torch.tensor([[0.6, 0.25, 0.1, 0.0, 0.0]])
    shares = to_logits(answer, Answers("top-k", listed=3), 5).softmax(1)
    assert torch.allclose(shares, torch.tensor([[0.6, 0.25, 0.1, 0.025, 0.025]]), atol=1e-6)


def test_what_was_rounded_away_is_small_but_not_nothing():
    answer = torch.tensor([[0.97, 0.03, 0.0, 0.0]])  # the others share at least 0.005
    shares = as_logits(answer, "probabilities", step=0.01).softmax(1)[0].tolist()
    total = 1 + 0.005
    assert shares == pytest.approx([0.97 / total, 0.03 / total, 0.0025 / total, 0.0025 / total])
    most = as_logits(torch.tensor([[0.9, 0.0, 0.0]]), "probabilities", step=0.01).softmax(1)
    assert most[0, 1].item() == pytest.approx(0.005 / 0.91)  # none has more than rounds to zero


BINARY = {
    "logit": (lambda z: even(z)[:, None], "binary-logit"),
    "flat logit": (even, "binary-logit"),
    "sigmoid": (lambda z: even(z).sigmoid()[:, None], "binary-probability"),
    "flat sigmoid": (lambda z: even(z).sigmoid(), "binary-probability"),
    "rounded sigmoid": (lambda z: (even(z).sigmoid() * 1e3).round() / 1e3, "binary-probability"),
    "in a dictionary": (lambda z: {"score": even(z).sigmoid().numpy()}, "binary-probability"),
}


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("classes", [None, 2])
def test_one_score_is_two_classes_and_that_is_said(name, classes):
    head, kind = BINARY[name]
    body = Wrap(head)
    count, found = recognise(body, SPEC, classes)
    assert (count, found.kind) == (2, kind)
    assert any("one number per image" in str(note) for note in found.notes)
    with torch.no_grad():
        shares = Classifier(body, SPEC, count, found)(digits()).softmax(1)[:, 1]
        assert torch.allclose(shares, even(DEMO.classifier(digits())).sigmoid(), atol=2e-3)


INDEPENDENT = {
    "sigmoids": lambda z: odds(z).sigmoid(),
    "one against the rest": lambda z: (z - 4).sigmoid(),
    "half sigmoids": lambda z: odds(z).sigmoid().half(),
    "rounded sigmoids": lambda z: (odds(z).sigmoid() * 100).round() / 100,
    "yes or no": lambda z: odds(z) > 0,
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_score_a_class_is_taken_for_independent_classes_and_that_is_said(name):
    body = Wrap(INDEPENDENT[name])
    classes, found = recognise(body, SPEC, None)
    assert found.kind == "multilabel-probabilities" and found.independent
    assert any("--teacher-answers logits" in note.remedy for note in found.notes)
    network = Classifier(body, SPEC, classes, found)
    with torch.no_grad():
        true = body((digits() - network.mean) / network.std).float()
        assert torch.allclose(network.probabilities(network(digits())), true, atol=0.06)


@pytest.mark.parametrize(
    "head",
    [
        lambda z: z.relu(),
        lambda z: (z - z.min()) * 10,  # 0..hundreds
        lambda z: z - 100,
        lambda z: z.tanh(),
        lambda z: F.softplus(z),
    ],
)
def test_other_numbers_are_logits(head):
    assert recognise(Wrap(head), SPEC, None)[1].kind == "logits"


def test_confident_sigmoids_are_no_softmax_though_rows_sum_to_about_one():
    saturated = Wrap(lambda z: (20 * (z - z.topk(2, 1).values.mean(1, keepdim=True))).sigmoid())
    assert recognise(saturated, SPEC, None)[1].kind == "multilabel-probabilities"


@pytest.mark.parametrize(
    ("head", "classes", "words"),
    [
        (lambda z: even(z).sigmoid() * 100, None, "binary-logit or binary-percentage"),
        (lambda z: even(z).exp(), 2, "binary-logit or binary-percentage"),
        (lambda z: (z - 4).sigmoid() * 100, None, "multilabel-percentages or logits"),
        (lambda z: z.argmax(1), None, "give --classes K"),
        (lambda z: z.argmax(1).float(), 5, "not classes below 5"),
        (lambda z: (z[:, :7], z), None, "--classes K"),
        (lambda z: {"cat": z[:, 0], "dog": z[:, 1], "cow": z[:, 2]}, None, "a column per class"),
        (lambda z: (odds(z).sigmoid() * 255).round().byte(), None, "percentages or logits"),
        (lambda z: listed(z, 3), None, "give --classes K"),
        (lambda z: [["cat", "dog"][k % 2] for k in z.argmax(1).tolist()], 10, "--class-names"),
        (lambda z: z * (1 + 1j), None, "complex|one row"),
        (lambda z: "nothing", None, "got str"),
        (lambda z: even(z), 3, "a score for two classes"),
        (lambda z: z, 7, "has 10 classes"),
    ],
)
def test_where_a_wrong_guess_would_ruin_a_student_the_choices_are_named(head, classes, words):
    with pytest.raises(InputError, match=words) as caught:
        recognise(Wrap(head), SPEC, classes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("head", "classes", "kind"),
    [
        (lambda z: z.argmax(1), 10, "labels"),
        (lambda z: z.argmax(1).double()[:, None], 10, "labels"),
        (lambda z: z.argmax(1).numpy().astype(np.uint16), 10, "labels"),
        (lambda z: [int(k) for k in z.argmax(1)], 10, "labels"),
        (lambda z: [str(int(k)) for k in z.argmax(1)], 10, "labels"),
        (lambda z: (z[:, :7], z), 10, "logits"),
        (lambda z: (z, even(z)), 2, "binary-logit"),
    ],
)
def test_with_the_number_of_classes_labels_and_parts_are_understood(head, classes, kind):
    body = Wrap(head)
    count, found = recognise(body, SPEC, classes)
    assert (count, found.kind) == (classes, kind)
    votes = Classifier(body, SPEC, count, found)(digits()).argmax(1)
    true = DEMO.classifier(digits())
    assert torch.equal(votes, (even(true) > 0).long() if classes == 2 else true.argmax(1))


def test_class_names_in_lists_are_placed_by_the_names_that_are_known():
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    def head(z: Tensor) -> list[dict[str, float]]:
        return [dict(zip(names, row, strict=True)) for row in z.softmax(1).tolist()]

    for told in (names, ()):
        classes, found = recognise(Wrap(head), SPEC, None, names=told)
        assert (classes, set(found.names)) == (10, set(names))
        assert bool(found.notes) == (not told)  # alphabetical order is an assumption
        votes = Classifier(Wrap(head), SPEC, 10, found)(digits()).argmax(1)
        true = DEMO.classifier(digits()).argmax(1)
        assert [found.names[k] for k in votes] == [names[k] for k in true]


@pytest.mark.parametrize(
    ("head", "kind", "words"),
    [
        (lambda z: z.softmax(1), "logits", "sums to 1"),
        (lambda z: z, "probabilities", "not from 0 to 1"),
        (lambda z: z.softmax(1), "percentages", "rows sum to"),
        (lambda z: z, "log-probabilities", "do not sum to 1"),
        (lambda z: odds(z).sigmoid(), "top-k", "rows sum to"),
        (lambda z: z, "multilabel-probabilities", "not from 0 to 1"),
        (lambda z: z, "binary-logit", "10 numbers per image"),
        (lambda z: even(z)[:, None], "logits", "one number an image"),
        (lambda z: even(z), "binary-probability", "not from 0 to 1"),
        (lambda z: z, "labels", "not 0 and 1"),
    ],
)
def test_a_kind_that_the_answers_contradict_is_one_clear_line(head, kind, words):
    with pytest.raises(InputError, match=words) as caught:
        recognise(Wrap(head), SPEC, None, kind=kind)
    assert str(caught.value).startswith(f"--teacher-answers {kind}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (odds, "multilabel-logits"),
        (lambda z: odds(z).sigmoid() * 100, "multilabel-percentages"),
        (lambda z: even(z).sigmoid() * 100, "binary-percentage"),
        (lambda z: even(z) + 50, "binary-logit"),
        (lambda z: z.sigmoid(), "logits"),
        (lambda z: best(z, 4) * 100, "top-k"),
    ],
)
def test_a_kind_that_is_named_is_taken(head, kind):
    assert recognise(Wrap(head), SPEC, None, kind=kind)[1].kind == kind


@pytest.mark.parametrize(
    ("label", "number"),
    [
        (torch.tensor(3), 3), (torch.tensor([3]), 3), (torch.tensor([2.0]), 2),
        (torch.tensor(2.0, dtype=torch.bfloat16), 2), (torch.tensor([1, 2]), -1),
        (torch.tensor(2.5), -1), (torch.tensor(math.inf), -1), (torch.tensor([]), -1),
        (np.array([4]), 4), (np.array([1, 2]), -1), (math.nan, -1), ("LABEL_7", 7), (None, -1),
    ],
)  # fmt: skip
def test_a_label_in_a_list_is_a_number_in_whatever_it_is_wrapped(label, number):
    assert answers._label(label, ()) == number


def test_the_kinds_of_the_setting_are_those_that_are_known():
    kinds = get_args(TeacherTable.model_fields["answers"].annotation)
    assert set(kinds) == {"auto", *KINDS}


@pytest.mark.parametrize("name", ["softmax", "two digits", "bfloat16 softmax", "percentages"])
def test_inside_a_network_the_logits_themselves_are_read(name):
    body = Wrap(ONE_OF_TEN[name][0])
    classes, found = recognise(body, SPEC, None, inside=True)
    assert found.layer == "net.linear" and found.kind == ONE_OF_TEN[name][1]
    soft, plain = (
        FrozenTeacher(Classifier(body, SPEC, classes, found)),
        FrozenTeacher(Classifier(Wrap(lambda z: z), SPEC, 10)),
    )
    for low in (False, True):
        soft.low_precision = plain.low_precision = low
        with torch.no_grad():
            assert torch.equal(soft(digits()), plain(digits()))
    assert soft.fast == plain.fast
    images = digits(4).requires_grad_()
    gradient = torch.autograd.grad(soft(images)[:, 3].sum(), images)[0]
    assert gradient.abs().sum() > 0  # though the answer itself may be rounded


def test_nothing_inside_is_read_where_that_was_not_allowed(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(CODE)
    for access, inside in (("full", True), ("logits", False)):
        teacher = teacher_of(path, "percent", access=access)
        assert bool(teacher.classifier.reading.layer) == inside
        assert "percentages" in teacher.described


CODE = """
import numpy as np, torch
from torch import nn
from synthkd.recipe import TeacherTable
from synthkd.specs import load_teacher

class Wrap(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.net, self.head = load_teacher(TeacherTable()).classifier.body, head

    def forward(self, x):
        return self.head(self.net(x))

def odds(z):
    found = []
    for group in ((0, 2, 4, 6, 8), (5, 6, 7, 8, 9), (0, 6, 8, 9)):
        rest = [k for k in range(10) if k not in group]
        found.append(z[:, list(group)].logsumexp(1) - z[:, rest].logsumexp(1))
    return torch.stack(found, 1)

def percent(): return Wrap(lambda z: z.softmax(1) * 100)
def findings(): return Wrap(lambda z: odds(z).sigmoid())
def even(): return Wrap(lambda z: odds(z)[:, :1].sigmoid())

SEEN = []

def function(change=lambda z: z.numpy()):
    net = load_teacher(TeacherTable()).classifier.body

    def ask(x):
        assert isinstance(x, np.ndarray) and x.dtype == np.float32 and x.flags.c_contiguous
        assert 0 <= x.min() and x.max() <= 1, (x.min(), x.max())
        assert not torch.is_autocast_enabled("cpu")
        z = net((torch.from_numpy(x) - 0.3054) / 0.3184)
        assert z.dtype == torch.float32
        return change(z)
    return ask

def array(): return function()
def bfloat16(): return function(lambda z: z.bfloat16())
def lists(): return function(lambda z: z.double().tolist())
def other():
    class Array:
        def __init__(self, z): self.z = z
        def __array__(self, dtype=None, copy=None): return self.z.numpy()
    return function(Array)
"""


def teacher_of(path: Path, name: str, **told: Any) -> FrozenTeacher:
    table = TeacherTable(spec=f"{path}:{name}", image_size=16, channels=1, **told)
    if "mean" not in told and name in ("percent", "findings", "even"):
        table = table.model_copy(update={"mean": SPEC.mean, "std": SPEC.std})
    return load_teacher(table, trust_code=True)


@pytest.mark.parametrize("name", ["array", "bfloat16", "lists", "other"])
def test_a_function_gets_float32_in_0_to_1_and_may_answer_with_any_array(tmp_path, name):
    path = tmp_path / "net.py"
    path.write_text(CODE)
    teacher = teacher_of(path, name)
    assert teacher.access == "logits" and teacher.spec.mean == (0.0,)
    teacher.low_precision = True  # ours, not the user's
    found = teacher(digits())
    assert found.dtype == torch.float32
    assert torch.allclose(found, DEMO(digits()), atol=0.1 if name == "bfloat16" else 1e-3)


def test_a_function_gets_normalised_images_if_that_is_asked_for():
    seen = []

    def ask(x: Any) -> Any:
        seen.append(x)
        return np.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1)

    body = BlackBox(ask, "x", "y")
    Classifier(body, ImageSpec(1, 8, 8, (0.5,), (0.25,)), 2)(torch.ones(2, 1, 8, 8))
    assert seen[0].min() == seen[0].max() == 2.0


def test_answers_that_change_their_form_later_are_one_line():
    body = Wrap(lambda z: z[:, : 10 if len(z) > 4 else 7].numpy())
    classes, found = recognise(body, SPEC, None)
    network = Classifier(body, SPEC, classes, found)
    with pytest.raises(InputError, match="have another form"), torch.no_grad():
        network(digits(2))
    with pytest.raises(InputError, match="another form"):
        taken("text", Answers("logits"), 10, 4)


def test_probes_are_varied_and_always_the_same():
    images = probes(SPEC)
    assert images.shape == (32, 1, 16, 16) and 0 <= images.min() <= images.max() <= 1
    assert torch.equal(images, probes(SPEC))
    votes = DEMO.classifier(images).argmax(1).unique()
    assert len(votes) > 2
    assert len(probes(ImageSpec(3, 224, 224, (0.5,) * 3, (0.5,) * 3))) == 16


def test_rounding_and_precision_are_seen_in_numbers():
    x = torch.rand(200, generator=torch.Generator().manual_seed(0))
    for digits_ in range(1, 6):
        assert rounding((x * 10**digits_).round() / 10**digits_) == pytest.approx(10**-digits_)
    assert rounding(x) == 0
    assert precision(x.double()) == 2**-24
    assert precision(x.half().double()) == 2**-11
    assert precision(x.bfloat16().double()) == 2**-8


# --- losses ---


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_log_odds_are_the_inverse_of_the_sigmoid():
    z = torch.linspace(-12, 12, 101)
    assert torch.allclose(log_odds(z.sigmoid()), z, atol=0.1, rtol=0.01)
    assert log_odds(torch.tensor([0.0, 1.0]), 0.01).tolist() == pytest.approx(
        [math.log(0.0025 / 0.9975), math.log(0.9975 / 0.0025)], rel=1e-4
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_decisions_are_t_squared_times_the_sum_of_binary_kl(temperature):
    learned, taught = noise(6, 3, seed=1), noise(6, 3, seed=2)

    def share(z: float) -> float:
        return 1 / (1 + math.exp(-z / temperature))

    total = 0.0
    for row, other in zip(learned.tolist(), taught.tolist(), strict=True):
        for s, t in zip(row, other, strict=True):
            p, q = share(t), share(s)
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    found = soft_decisions(learned, taught, temperature=temperature)
    assert found.item() == pytest.approx(temperature**2 * total / 6, rel=1e-5)
    view = DistillationView(
        torch.zeros(2, 1, 8, 8), learned, taught, {}, {}, temperature=temperature, independent=True
    )
    assert DISTILLATION_TERMS["soft_targets"].fn(view).item() == found.item()
    each = DISTILLATION_TERMS["soft_targets"].fn(replace(view, per_sample=True))
    assert each.mean().item() == pytest.approx(found.item())


def test_terms_of_independent_classes_ask_a_yes_or_no_of_each():
    taught, learned = noise(8, 3, seed=3), noise(8, 3, seed=4)
    labels, absent = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), torch.arange(8) % 2 == 1
    view = View(torch.zeros(8, 1, 4, 4), labels, taught, learned, independent=True, absent=absent)
    wanted = F.binary_cross_entropy_with_logits(
        taught.gather(1, labels[:, None])[:, 0], (~absent).float()
    )
    assert one_hot(view).item() == pytest.approx(wanted.item(), rel=1e-6)
    p, q = taught.sigmoid(), learned.sigmoid()
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert divergence(view).item() == pytest.approx(-kl.mean().item() / 2, rel=1e-4)
    alike = (taught > 0) == (learned > 0)
    assert disagreement(view).item() == pytest.approx(-(kl * alike).mean().item(), rel=1e-4)
    sure = View(view.images, labels, torch.full((8, 3), 40.0), independent=True)
    mixed = torch.full((8, 3), 40.0)
    mixed[::2] = -40
    even_ = View(view.images, labels, mixed, independent=True)
    assert balance(sure).item() == pytest.approx(0, abs=1e-6)
    assert balance(even_).item() == pytest.approx(-math.log(2))
    assert paired(taught).softmax(1)[:, 1].tolist() == pytest.approx(p.flatten().tolist())


# --- measures ---


def test_auroc_and_what_goes_with_it_are_those_of_scikit_learn():
    scores = (noise(300, seed=5) * 3).round() / 2  # many ties
    truth = (scores + noise(300, seed=6)) > 0.4
    found = measures.binary_scores(scores, truth)
    votes, y = (scores > 0).numpy(), truth.numpy()
    assert found.auroc == pytest.approx(metrics.roc_auc_score(y, scores.numpy()))
    assert found.sensitivity == pytest.approx(metrics.recall_score(y, votes))
    assert found.specificity == pytest.approx(metrics.recall_score(~y, ~votes))
    assert found.f1 == pytest.approx(metrics.f1_score(y, votes))
    assert math.isnan(measures.auroc(scores, torch.ones(300, dtype=torch.bool)))


def of_findings(labels: Tensor) -> Tensor:
    return torch.stack([torch.isin(labels, torch.tensor(group)) for group in FINDINGS], 1).long()


def test_a_comparison_of_independent_classes_is_that_of_scikit_learn():
    pixels, labels, _ = demo_digits()
    pixels, hot = pixels[:300], of_findings(labels[:300])
    teacher = FrozenTeacher(
        Classifier(Wrap(odds), SPEC, 3, "multilabel-logits"), names=("even", "high", "loop")
    )
    weak = Classifier(Wrap(lambda z: odds(z[:, torch.arange(10).roll(1)])), SPEC, 3,
                      "multilabel-logits")  # fmt: skip
    found = compare(weak, teacher, Images(pixels, hot, (), "x", ""))
    with torch.no_grad():
        ours, theirs = (net(to_float(pixels)) for net in (weak, teacher.classifier))
    shares, y = ours.sigmoid().numpy(), hot.numpy()
    assert found.independent and [row.name for row in found.binary] == ["even", "high", "loop"]
    assert found.student_binary is not None and found.teacher_binary is not None
    assert found.student_binary.auroc == pytest.approx(metrics.roc_auc_score(y, shares), abs=1e-4)
    f1 = metrics.f1_score(y, shares > 0.5, average="macro")
    assert found.student_binary.f1 == pytest.approx(f1)
    assert found.teacher_binary.auroc > 0.99
    assert found.student_accuracy == pytest.approx(1 - metrics.hamming_loss(y, shares > 0.5))
    assert found.agreement == pytest.approx(((ours > 0) == (theirs > 0)).float().mean().item())
    recall = metrics.recall_score(y[:, 2], shares[:, 2] > 0.5)
    assert found.binary[2].student.sensitivity == pytest.approx(recall)
    assert found.classes[1].n == y[:, 1].sum()


def test_a_comparison_of_two_classes_has_the_measures_of_a_test():
    pixels, labels, _ = demo_digits()
    pixels, y = pixels[:300], (labels[:300] % 2 == 0).long()
    teacher = FrozenTeacher(Classifier(Wrap(even), SPEC, 2, "binary-logit"))
    found = compare(teacher.classifier, teacher, Images(pixels, y, (), "x", ""))
    scores = even(DEMO.classifier(to_float(pixels))).detach().numpy()
    assert found.student_binary is not None
    assert found.student_binary.auroc == pytest.approx(metrics.roc_auc_score(y.numpy(), scores))
    assert found.student_accuracy == pytest.approx(metrics.accuracy_score(y.numpy(), scores > 0))
    assert len(found.binary) == 1 and found.binary[0].positives == int(y.sum())


def test_ten_classes_one_against_the_rest_are_scored_by_the_likeliest_where_labels_exclude():
    pixels, labels, _ = demo_digits()
    teacher = FrozenTeacher(Classifier(Wrap(lambda z: z - 4), SPEC, 10, "multilabel-logits"))
    found = compare(teacher.classifier, teacher, Images(pixels[:200], labels[:200], (), "x", ""))
    assert found.student_accuracy == pytest.approx(
        measures.accuracy(DEMO.classifier(to_float(pixels[:200])), labels[:200])
    )
    assert len(found.binary) == 10


# --- from teacher to student ---


@pytest.mark.parametrize("name", ["softmax", "tuple", "dictionary"])
def test_a_wrapped_teacher_gives_its_student_the_same_weights_as_without(name):
    plain, inner = (build_network("resnet8-w12", channels=1, size=16, classes=10) for _ in range(2))
    assert inherited(plain, DEMO.classifier.body) == inherited(
        inner, nn.Sequential(nn.Identity(), Wrap(ONE_OF_TEN[name][0]))
    )
    for key, value in plain.state_dict().items():
        assert torch.equal(inner.state_dict()[key], value), key


def test_a_head_of_another_size_leaves_the_last_layer_new():
    own = build_network("resnet8-w12", channels=1, size=16, classes=2)
    taken_, tensors = inherited(own, Wrap(even))
    assert tensors - taken_ == 2  # weight and bias of the last layer


def test_a_student_of_independent_classes_answers_so_and_its_file_says_so(tmp_path):
    teacher = FrozenTeacher(Classifier(Wrap(odds), SPEC, 3, "multilabel-logits"))
    student = new_student(StudentTable(), teacher)
    assert student.independent and student.answers == "multilabel-logits"
    with pytest.raises(InputError, match="let it return logits"):
        (tmp_path / "s.py").write_text(
            "from torch import nn\n"
            "def make(): return nn.Sequential(nn.Flatten(), nn.Linear(256, 3), nn.Softmax(1))\n"
        )
        new_student(StudentTable(spec=f"{tmp_path / 's.py'}:make"), teacher, trust_code=True)
    images = digits(32)
    with torch.no_grad():
        taught = teacher(images)
    learner = Learner(student, TrainingTable(temperature=2.0))
    before = soft_decisions(learner.answer(images), taught, temperature=2).item()
    for _ in range(15):
        learner.step(images, taught, 0.2)
    assert soft_decisions(learner.answer(images), taught, temperature=2).item() < before * 0.7


def test_of_independent_classes_label_access_shows_the_decisions_alone():
    body = Classifier(Wrap(odds), SPEC, 3, "multilabel-logits")
    found = FrozenTeacher(body, access="labels")(digits())
    true = FrozenTeacher(body, access="logits")(digits())
    assert torch.equal(found, of_decisions(true > 0))
    assert set(found.flatten().tolist()) == set(
        of_decisions(torch.tensor([[True, False]]))[0].tolist()
    )


def test_logits_of_any_head_fit_the_memory():
    memory = Memory(8, SPEC.shape, 3)
    logits = to_logits(torch.tensor([[1.0, 0.0, 0.0]] * 4), Answers("probabilities"), 3)
    memory.add(torch.zeros(4, *SPEC.shape, dtype=torch.uint8), torch.zeros(4).long(), logits, "any")
    assert memory.everything().logits.isfinite().all()


@pytest.mark.slow
def test_findings_are_distilled_scored_and_predicted_class_by_class(tmp_path, capsys):
    path, out = tmp_path / "net.py", tmp_path / "run"
    path.write_text(CODE)
    pixels, labels, unseen = demo_digits()
    x = pixels[torch.from_numpy(unseen)][:, 0].numpy()
    y = of_findings(labels[torch.from_numpy(unseen)]).numpy()
    np.savez(tmp_path / "val.npz", x=x, y=y)
    teacher = [
        "--teacher", f"{path}:findings", "--trust-code", "--image-size", "16", "--channels", "1",
        "--teacher-mean", "0.3054", "--teacher-std", "0.3184",
    ]  # fmt: skip
    try:
        main([
            "distill", *teacher, "--images-seen", "2000", "--val-data", str(tmp_path / "val.npz"),
            "--run.threads", "1", "--out", str(out), "--anyway",
        ])  # fmt: skip
    except SystemExit as ended:  # so few images make a student that is of no use
        assert ended.code in (0, 3)
    said = capsys.readouterr().out
    assert "independent of the others" in said and "--teacher-answers logits" in said
    assert "AUROC" in said
    summary = json.loads((out / "summary.json").read_text())
    assert summary["answers"] == "multilabel-logits"
    assert 0.5 < summary["student_binary"]["auroc"] <= 1
    assert summary["teacher_binary"]["auroc"] > 0.99
    assert read_card(out / "student.safetensors").answers == "multilabel-logits"
    student, _ = load_classifier(StudentTable(spec=str(out)), TeacherTable())
    assert student.independent
    from PIL import Image

    Image.fromarray(x[0]).save(tmp_path / "one.png")
    main(["predict", str(out), str(tmp_path / "one.png"), "--json"])
    shown = json.loads(capsys.readouterr().out)
    with torch.no_grad():
        shares = student.eval()(to_float(torch.from_numpy(x[:1])[:, None])).sigmoid()[0]
    told = shown if isinstance(shown, list) else shown["predictions"]
    found = {c["class"]: c["probability"] for c in told[0]["classes"]}
    assert found == pytest.approx(dict(enumerate(shares.tolist())), abs=1e-5)
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    main([
        "export", str(out), "--int8", "--val-data", str(tmp_path / "val.npz"), "--out",
        str(tmp_path / "exported"),
    ])  # fmt: skip
    assert "as a mean over no and yes" in capsys.readouterr().out
    files = json.loads((tmp_path / "exported" / "export.json").read_text())["files"]
    (scores,) = [file["truth"]["scored"] for file in files if file["truth"]]
    with torch.no_grad():
        right = (student(to_float(torch.from_numpy(x)[:, None])) > 0).numpy() == y
    assert scores["float_accuracy"] == pytest.approx(right.mean(), abs=1e-3)


def findings(count: int) -> tuple[Tensor, Tensor]:
    """Noise in which each of fourteen findings, a bright spot, is there in one image of ten:
    images [N, 1, 16, 16], and 0 or 1 a finding, [N, 14]."""
    rng = torch.Generator().manual_seed(3)
    there = (torch.rand(count, 14, generator=rng) < 0.1).float()
    images = 0.4 * torch.rand(count, 1, 16, 16, generator=rng)
    for k in range(14):
        y, x = 4 * (k // 4), 4 * (k % 4)
        images[:, 0, y : y + 3, x : x + 3] += 0.6 * there[:, k, None, None]
    return images, there


def trained(loss: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor) -> nn.Module:
    """A small network that has learned labels."""
    torch.manual_seed(2)
    outputs = 10 if labels.dim() == 1 else labels.shape[1]
    body = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 64, outputs),
    )  # fmt: skip
    images = (images - SPEC.mean[0]) / SPEC.std[0]
    optimizer = torch.optim.SGD(body.parameters(), lr=0.05, momentum=0.9)
    for step in range(150):
        part = torch.arange(64 * step, 64 * (step + 1)) % len(images)
        optimizer.zero_grad()
        loss(body(images[part]), labels[part]).backward()
        optimizer.step()
    return body.eval()


def of_digits(*, one_of_ten: bool) -> tuple[Tensor, Tensor]:
    pixels, labels, _ = demo_digits()
    images = to_float(pixels)
    return images, labels if one_of_ten else F.one_hot(labels, 10).float()


@pytest.mark.parametrize(
    ("loss", "lesson", "independent"),
    [
        (F.cross_entropy, lambda: of_digits(one_of_ten=True), False),
        (F.binary_cross_entropy_with_logits, lambda: of_digits(one_of_ten=False), True),
        (F.binary_cross_entropy_with_logits, lambda: findings(2000), True),
    ],
    ids=["one of ten", "one against the rest", "fourteen findings"],
)
def test_logits_of_independent_classes_are_doubted_and_those_of_a_softmax_are_not(
    loss, lesson, independent
):
    images, labels = lesson()
    body = trained(loss, images, labels)
    classes, found = recognise(body, SPEC, None)
    assert (classes, found.kind) == (labels.shape[1] if labels.dim() > 1 else 10, "logits")
    assert [note.code for note in found.notes] == ["answers-assumed"] * independent
    for kind in ("logits", "multilabel-logits"):
        told = recognise(body, SPEC, None, kind=kind)[1]
        assert (told.kind, told.notes) == (kind, ())  # who has said it need not be told
    if independent:
        assert "--teacher-answers multilabel-logits" in found.notes[0].remedy
        teacher = FrozenTeacher(Classifier(body, SPEC, classes, found))
        teacher.classifier.notes = found.notes
        assert any("multilabel-logits" in reason for reason in plan(Recipe(), teacher).reasons)


def test_inspect_names_what_was_understood(tmp_path, capsys):
    path = tmp_path / "net.py"
    path.write_text(CODE)
    main([
        "inspect", f"{path}:even", "--trust-code", "--image-size", "16", "--channels",
        "1", "--teacher-mean", "0.3054", "--teacher-std", "0.3184", "--run.threads", "1", "--json",
    ])  # fmt: skip
    card = json.loads(capsys.readouterr().out)
    assert card["answers"] == "binary-probability" and card["classes"] == 2
    assert "one probability for two classes" in card["answers_read"]
    assert any(note["code"] == "answers-assumed" for note in card["notes"])
