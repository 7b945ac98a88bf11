"""Checks of a student: a constant classifier never passes, a good one is left in peace."""

import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

from synthkd.checks.student import (
    check_accuracy,
    check_agreement,
    check_budget,
    check_dataset,
    check_memory,
    expect_budget,
    verdict,
)
from synthkd.cli import main
from synthkd.core.findings import EXIT_USELESS, Finding
from synthkd.measures import class_balance

NAMES = ("healthy", "sick", "torn", "broken")


def codes(findings: list[Finding]) -> dict[str, bool]:
    return {finding.code: finding.serious for finding in findings}


def votes(*counts: int) -> Tensor:
    """So many images of class 0, 1, …"""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_class_balance_is_scikit_learns_balanced_accuracy(pairs):
    learned, truth = (torch.tensor(column) for column in zip(*pairs, strict=True))
    found = class_balance(learned, truth, 5)
    present = sorted(set(truth.tolist()))
    expected = np.mean([float((learned[truth == k] == k).float().mean()) for k in present])
    assert found.balanced == pytest.approx(expected)
    assert found.present == len(present)
    if len(present) > 1 and set(learned.tolist()) <= set(present):
        adjusted = balanced_accuracy_score(truth, learned, adjusted=True)
        assert found.adjusted == pytest.approx(adjusted)


@given(
    st.integers(0, 4), st.lists(st.integers(0, 4), min_size=2, max_size=50).filter(
        lambda truth: len(set(truth)) > 1
    ),
)  # fmt: skip
def test_a_constant_classifier_gets_no_more_than_one_in_the_classes_present(top, truth):
    found = class_balance(torch.full((len(truth),), top), torch.tensor(truth), 5)
    assert found.balanced <= found.constant
    assert found.adjusted <= 1e-12


def test_one_class_present_cannot_tell_a_constant_from_a_good_one():
    found = class_balance(votes(0, 9), votes(0, 9), 2)
    assert (found.balanced, found.constant, found.present) == (1.0, 1.0, 1)
    assert math.isnan(found.adjusted)


def test_nothing_has_no_balance():
    assert math.isnan(class_balance(votes(0), votes(0), 1).balanced)


# Agreement on held-out images: the runs of which it is known what came out


@pytest.mark.parametrize("shape", [(11, 69), (138, 886), (3, 3, 1018), (100, 200, 300, 424)])
@pytest.mark.parametrize("top", [0, 1])
def test_a_student_that_names_one_class_is_found_whatever_the_shares(shape, top):
    taught = votes(*shape)
    found = check_agreement(torch.full_like(taught, top), taught, len(shape), NAMES)
    assert codes(found) == {"constant-student": True}
    assert NAMES[top] in found[0].seen
    assert verdict(found) == "useless"


def test_the_run_on_a_busy_machine_that_was_shown_as_79_8_percent_is_found():
    taught = votes(68, 268)  # of 68 five are seen, and of 268 five are not
    learned = torch.cat([votes(5, 63), votes(5, 263)])
    assert float((learned == taught).float().mean()) == pytest.approx(0.798, abs=0.001)
    assert codes(check_agreement(learned, taught, 2, NAMES)) == {"low-agreement": True}


def test_held_out_images_of_one_class_say_nothing():
    found = check_agreement(votes(0, 256), votes(0, 256), 2, NAMES)
    assert codes(found) == {"one-class-held-out": True}


def test_no_held_out_image_is_no_praise():
    assert codes(check_agreement(votes(0), votes(0), 2, NAMES)) == {"not-judged": False}


def wrong(taught: Tensor, share: float, classes: int) -> Tensor:
    """The same votes, this share of each class moved to the next one."""
    learned = taught.clone()
    for k in range(classes):
        members = (taught == k).nonzero().flatten()
        learned[members[: round(share * len(members))]] = (k + 1) % classes
    return learned


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, {}), (0.1, {}), (0.4, {}), (0.6, {"weak-agreement": False}),
     (0.7, {"low-agreement": True})],
)  # fmt: skip
def test_ten_even_classes_are_judged_by_their_balanced_agreement(share, expected):
    taught = votes(*[100] * 10)
    assert codes(check_agreement(wrong(taught, share, 10), taught, 10, ())) == expected


def test_a_class_that_the_student_never_names_is_told():
    taught = votes(*[100] * 4)
    learned = taught.clone()
    learned[taught == 2] = 0
    found = check_agreement(learned, taught, 4, NAMES)
    assert codes(found) == {"classes-not-named": True}
    assert "torn" in found[0].seen


def test_a_class_in_which_the_student_hardly_agrees_is_told_with_its_share():
    taught = votes(*[100] * 4)
    learned = taught.clone()
    learned[200:295] = 0  # of class 2 five are left
    found = check_agreement(learned, taught, 4, NAMES)
    assert codes(found) == {"unequal-agreement": True}
    assert "torn" in found[0].seen and "5.0% of 100" in found[0].seen
    among_many = votes(*[100] * 10)
    learned = among_many.clone()
    learned[200:295] = 0
    assert codes(check_agreement(learned, among_many, 10, ())) == {"unequal-agreement": False}


# The user's own images


def test_a_constant_is_found_on_the_users_images_even_where_its_accuracy_is_high():
    labels = votes(5, 95)
    found = check_accuracy(torch.ones_like(labels), labels, labels, 2, NAMES)
    assert codes(found) == {"constant-student": True}
    assert "95.0%" in found[0].seen


def test_nearly_a_constant_is_no_better_than_one():
    labels = votes(40, 60)
    learned = labels.clone()
    learned[:35] = 1
    found = check_accuracy(learned, labels, labels, 2, NAMES)
    assert codes(found) == {"no-better-than-constant": True}
    assert "60.0%" in found[0].seen


@pytest.mark.parametrize("share", [0.0, 0.1, 0.15])
def test_a_good_student_is_left_in_peace_on_the_users_images(share):
    labels = votes(234, 390)
    assert check_accuracy(wrong(labels, share, 2), labels, labels, 2, NAMES) == []


def test_a_student_far_from_its_teacher_is_told():
    labels = votes(50, 50, 50, 50)
    found = check_accuracy(wrong(labels, 0.4, 4), labels, labels, 4, NAMES)
    assert codes(found) == {"far-from-teacher": False}


def test_labels_on_which_the_teacher_fails_too_say_nothing_of_the_student():
    labels, turned = votes(50, 50), 1 - votes(50, 50)
    assert check_accuracy(turned, turned, labels, 2, NAMES) == []


def test_labels_of_one_class_are_no_proof():
    labels = votes(0, 20)
    assert codes(check_accuracy(labels, labels, labels, 2, NAMES)) == {"one-class-labelled": False}


# What it learned from


def test_a_memory_that_lacks_classes_is_found_and_names_them():
    found = check_memory(torch.tensor([90, 0, 20, 0]), NAMES)
    assert codes(found) == {"classes-missing": True}
    assert "sick" in found[0].seen and "broken" in found[0].seen
    few = check_memory(torch.tensor([9] * 99 + [0]), ())
    assert codes(few) == {"classes-missing": False}
    assert "class 99" in few[0].seen


def test_an_uneven_memory_is_told_and_an_even_one_or_an_empty_one_is_not():
    assert codes(check_memory(torch.tensor([990, 10]), NAMES)) == {"classes-unbalanced": False}
    assert check_memory(torch.tensor([600, 400]), NAMES) == []
    assert check_memory(torch.tensor([0, 0]), NAMES) == []


@pytest.mark.parametrize(
    ("seen", "refined", "expected"),
    [(4_096, 256, {"few-images": True, "few-refined": False}),
     (10_000, None, {"few-images": False}), (100_000, 8_000, {}), (100_000, None, {})],
)  # fmt: skip
def test_too_few_images_are_told(seen, refined, expected):
    assert codes(check_budget(seen, refined)) == expected


def test_many_classes_want_more_refined_images():
    assert codes(check_budget(100_000, 4_000, 1_000)) == {"few-refined": False}
    assert check_budget(100_000, 8_000, 1_000) == []


def test_before_a_run_it_is_said_how_long_would_do():
    (one, two) = expect_budget(4_000, 128, 2, minutes=3)
    assert "(--minutes 15)" in one.remedy and two.remedy.endswith("(--minutes 15)")
    (one,) = expect_budget(100_000, 1_000, 1_000, minutes=30)
    assert "8,000 are few for 1,000 classes" in one.seen and "(--minutes 240)" in one.remedy
    assert expect_budget(100_000, 8_000, 1_000, minutes=30) == []


@pytest.mark.parametrize(
    ("written", "asked", "expected"),
    [((10, 10), 20, {}), ((20, 0), 40, {"classes-missing": True}),
     ((20, 4), 40, {"classes-short": False}), ((1, 0), 1, {})],
)  # fmt: skip
def test_a_data_set_is_judged_by_its_classes(written, asked, expected):
    assert codes(check_dataset(written, asked, NAMES)) == expected


# From the command line


SHORT = shlex.split(
    "--student resnet8-w4 --images-seen 256 --training.batch 32 --run.threads 1 --quiet "
    "--pipeline shaders --memory.capacity 500"
)


def test_a_useless_run_says_so_first_ends_with_3_and_keeps_what_it_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = [word for word in SHORT if word != "--quiet"]
    with pytest.raises(SystemExit) as stop:
        main(["distill", *flags, "--out", str(tmp_path / "run")])
    assert stop.value.code == EXIT_USELESS
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["verdict"] == "useless"
    assert any(finding["serious"] for finding in summary["findings"])
    lines = capsys.readouterr().out.splitlines()
    result = lines.index("result")
    assert lines[result - len(summary["findings"])].startswith("serious: ")
    large = next(line for line in lines if "balanced agreement" in line and "held-out" in line)
    assert "a constant classifier" in large and "worst class" in large
    assert (tmp_path / "run" / "student.safetensors").is_file()


@pytest.mark.slow
def test_evaluate_says_first_that_a_student_is_a_constant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        main(["distill", *SHORT, "--out", str(tmp_path / "run")])
    from safetensors.torch import load_file, save_file

    from synthkd.specs import read_card

    path = tmp_path / "run" / "student.safetensors"
    header, state = read_card(path).header(), load_file(str(path))
    last = [key for key, value in state.items() if value.shape == (10,)][-1]
    state[last] = state[last].clone().index_fill_(0, torch.tensor([4]), 1e4)
    save_file(state, str(path), metadata=header)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--student", str(tmp_path / "run")])
    assert stop.value.code == EXIT_USELESS
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("serious: the student names one class ('4') in 100.0%")
