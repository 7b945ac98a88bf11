"""Students compared and images scored, against written-out formulas and torch-fidelity itself."""

import copy
import io
import json
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from sklearn.metrics import accuracy_score, top_k_accuracy_score
from torch import Tensor, nn

from synthkd.commands.evaluate import Grid, aligned, run
from synthkd.core.errors import InputError
from synthkd.core.images import to_float
from synthkd.data.sources import Images, load_images
from synthkd.data.store import Writer
from synthkd.evaluation import extractors
from synthkd.evaluation.compare import compare, seconds_per_image
from synthkd.evaluation.extractors import classifier_extractor, inception_extractor
from synthkd.evaluation.image_scores import score_images
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, TeacherTable
from synthkd.specs import card_of, load_teacher
from synthkd.students.learner import save_student
from synthkd.teachers.frozen import FrozenTeacher


@pytest.fixture(scope="module")
def teacher() -> FrozenTeacher:
    return load_teacher(TeacherTable())


@pytest.fixture(scope="module")
def unseen() -> Images:
    return load_images("demo:unseen", None, classes=10, labelled=True)


@pytest.fixture(scope="module")
def seen() -> Images:
    return load_images("demo:seen", None, classes=10, labelled=True)


@pytest.fixture(scope="module")
def made(unseen: Images) -> Images:
    return part(unseen, slice(200))


@pytest.fixture(scope="module")
def real(seen: Images) -> Images:
    return part(seen, slice(300))


def new_student(teacher: FrozenTeacher, classes: int = 10) -> Classifier:
    torch.manual_seed(1)
    size = teacher.spec.height
    body = build_network("resnet8-w4", channels=1, size=size, classes=classes)
    return Classifier(body, teacher.spec, classes)


def part(images: Images, rows: slice | Tensor) -> Images:
    labels = None if images.labels is None else images.labels[rows]
    return images._replace(pixels=images.pixels[rows], labels=labels)


def refused(words: str, call, *args, **options) -> None:
    with pytest.raises(InputError, match=words) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)


# Student against teacher


def test_compare_reports_what_one_pass_over_all_images_gives(teacher, unseen):
    student = new_student(teacher).eval()
    found = compare(student, teacher, unseen, batch=100)
    with torch.no_grad():
        learned = student(to_float(unseen.pixels))
        taught = teacher(to_float(unseen.pixels))
    assert found.n == len(unseen.pixels) == sum(row.n for row in found.classes)
    assert found.student_accuracy == accuracy_score(unseen.labels, learned.argmax(1))
    assert found.teacher_accuracy == accuracy_score(unseen.labels, taught.argmax(1)) > 0.97
    assert found.agreement == accuracy_score(taught.argmax(1), learned.argmax(1))
    p, q = taught.softmax(1), learned.softmax(1)
    assert found.kl == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-4)
    for label, row in enumerate(found.classes):
        mine = learned.argmax(1)[unseen.labels == label] == label
        assert row.student_accuracy == pytest.approx(mine.double().mean().item())


def test_a_copy_of_the_teacher_agrees_on_everything(teacher, unseen):
    found = compare(copy.deepcopy(teacher.classifier), teacher, unseen)
    assert found.agreement == 1
    assert found.kl == pytest.approx(0, abs=1e-9)
    assert found.transfer_efficiency == pytest.approx(1)
    assert found.student_ece == pytest.approx(found.teacher_ece)


def test_comparing_trains_nothing_and_leaves_the_student_in_eval_mode(teacher, unseen):
    student = new_student(teacher).train()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    compare(student, teacher, unseen)
    assert not any(m.training for m in student.modules())
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())
    assert all(p.grad is None for p in student.parameters())


@pytest.mark.slow
def test_a_teacher_set_to_low_precision_is_compared_in_float32_and_put_back(teacher, unseen):
    exact = compare(new_student(teacher), teacher, unseen)
    scores = score_images(unseen, None, classifier_extractor(teacher)).scores
    pixels = to_float(unseen.pixels)
    with torch.no_grad():
        fine = teacher(pixels)
        teacher.low_precision = True
        try:
            assert not torch.equal(teacher(pixels), fine)
            assert compare(new_student(teacher), teacher, unseen) == exact
            assert score_images(unseen, None, classifier_extractor(teacher)).scores == scores
            assert teacher.low_precision
        finally:
            teacher.low_precision = False


def test_without_labels_there_is_agreement_by_the_teachers_vote_and_no_accuracy(teacher, unseen):
    found = compare(new_student(teacher), teacher, unseen._replace(labels=None))
    assert (found.student_accuracy, found.teacher_accuracy, found.student_ece) == (None,) * 3
    assert sum(row.n * row.agreement for row in found.classes) == pytest.approx(
        found.agreement * found.n
    )


def test_a_student_of_another_image_size_is_shown_its_own_size(teacher, unseen):
    spec = replace(teacher.spec, height=8, width=8)
    small = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), spec, 10)
    assert compare(small, teacher, unseen).n == len(unseen.pixels)


class Slow(nn.Module):
    """Takes at least two milliseconds an image."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.002 * len(x))
        return x.new_zeros(len(x), 10)


def test_what_an_image_costs_to_compare_is_measured(teacher: FrozenTeacher) -> None:
    queries = teacher.queries
    assert 0.002 <= seconds_per_image(Slow(), teacher, batch=16) < 1
    assert teacher.queries == queries + 4 * 16


class Broken(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.new_full((len(images), 10), torch.nan)


def test_what_cannot_be_compared_is_refused_in_one_line(teacher, unseen):
    refused("7 classes and the teacher 10", compare, new_student(teacher, 7), teacher, unseen)
    refused("student answers NaN", compare, Broken(), teacher, unseen)
    refused("no images", compare, new_student(teacher), teacher, part(unseen, slice(0)))


# Scores of images


def features_of(teacher: FrozenTeacher, images: Images) -> np.ndarray:
    with torch.no_grad():
        return teacher.observe(to_float(images.pixels)).features.double().numpy()


def test_fid_by_the_teacher_is_the_frechet_distance_of_its_features(teacher, made, real):
    found = score_images(made, real, classifier_extractor(teacher), teacher, batch=100)
    a, b = features_of(teacher, made), features_of(teacher, real)
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    gap = np.square(a.mean(0) - b.mean(0)).sum()
    expected = gap + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert found.scores["fid"].value == pytest.approx(expected, abs=1e-5)


def test_kid_by_the_teacher_is_the_unbiased_distance_of_polynomial_kernels(teacher, made, real):
    real = part(real, slice(200))
    found = score_images(made, real, classifier_extractor(teacher)).scores["kid"]
    a, b = features_of(teacher, made), features_of(teacher, real)
    aa, ab, bb = ((x @ y.T / 64 + 1) ** 3 for x, y in ((a, a), (a, b), (b, b)))
    inside = (aa.sum() - np.trace(aa) + bb.sum() - np.trace(bb)) / (200 * 199)
    assert found.value == pytest.approx(inside - 2 * ab.mean(), rel=1e-3, abs=1e-5)
    assert found.std is None  # every subset is the whole set: their agreement means nothing


def test_real_images_against_themselves_score_perfectly(teacher, real):
    scores = score_images(real, real, classifier_extractor(teacher), teacher).scores
    assert scores["fid"].value == pytest.approx(0, abs=1e-4)
    assert scores["semantic_consistency"].value == pytest.approx(1)
    assert scores["collapse_rate"].value == 0
    assert scores["missing_classes"].value == 0


def test_every_score_carries_its_numbers_of_images_and_its_extractor(teacher, made, real):
    found = score_images(made, real, classifier_extractor(teacher), teacher)
    assert {s.digest for s in found.scores.values()} == {teacher.digest}
    assert {s.n for s in found.scores.values()} == {len(made.pixels)}
    against = {"fid", "kid", "collapse_rate", "semantic_consistency"}
    assert {k for k, s in found.scores.items() if s.n_reference == len(real.pixels)} == against
    assert "not comparable with published" in found.scores["fid"].note


def test_a_second_set_does_not_get_the_first_ones_score(teacher, made, real):
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    known = set(FEATURE_EXTRACTORS_REGISTRY)
    noise = made._replace(pixels=torch.randint(0, 256, made.pixels.shape, dtype=torch.uint8))
    extractor = classifier_extractor(teacher)
    first, second = (score_images(x, real, extractor).scores["fid"] for x in (made, noise))
    assert second.value > 10 * first.value
    assert set(FEATURE_EXTRACTORS_REGISTRY) == known


def test_a_collapsed_set_is_seen_for_what_it_is(teacher, made, real):
    threes = part(made, made.labels == 3)
    copies = threes._replace(
        pixels=threes.pixels[:1].repeat(15, 1, 1, 1), labels=threes.labels[:15]
    )
    found = score_images(copies, real, classifier_extractor(teacher), teacher)
    values = {name: score.value for name, score in found.scores.items()}
    assert values["balance"] == 0
    assert values["missing_classes"] == 9 == len(found.missing_classes)
    assert values["near_duplicate_rate"] == 1
    assert values["intra_class_diversity"] == pytest.approx(0, abs=1e-9)
    assert values["collapse_rate"] == 1
    assert values["teacher_inception_score"] == pytest.approx(1)


def test_images_without_labels_are_judged_by_their_votes(teacher, made):
    found = score_images(made._replace(labels=None), None, classifier_extractor(teacher))
    assert "label_accuracy" not in found.scores
    assert not any("consistency" in name for name in found.scores)
    assert found.scores["intra_class_diversity"].value > 0
    assert sum(row.votes for row in found.classes) == len(made.pixels)


def test_the_judge_and_the_extractor_may_be_two_networks(teacher, made, real):
    other = FrozenTeacher(new_student(teacher))
    found = score_images(made, real, classifier_extractor(other, "other"), teacher).scores
    by_teacher = {name for name, score in found.items() if score.extractor == "teacher"}
    assert by_teacher == {
        "teacher_inception_score", "balance", "missing_classes", "label_accuracy",
        "data_free_frechet",
    }  # fmt: skip
    assert {s.digest for n, s in found.items() if n not in by_teacher} == {other.digest}


def test_a_judge_too_sure_for_torch_fidelity_gets_no_score_rather_than_nan(teacher, made):
    sure = copy.deepcopy(teacher.classifier)
    sure.body.linear.weight.mul_(1e4)
    found = score_images(made, None, classifier_extractor(FrozenTeacher(sure))).scores
    assert found["inception_score"].value is None
    assert "no finite value" in found["inception_score"].note
    assert found["teacher_inception_score"].value > 5


@pytest.mark.parametrize("count", [2, 3, 9, 11])
def test_a_small_set_gets_numbers_and_a_warning(teacher, made, real, count):
    found = score_images(part(made, slice(count)), real, classifier_extractor(teacher), teacher)
    assert found.scores["inception_score"].value >= 1
    assert found.scores["fid"].value is not None
    assert found.scores["kid"].value is not None
    assert f"from {count} images with 64 features" in found.warnings[0]


@pytest.mark.slow
def test_ten_images_per_feature_get_no_warning(teacher, made):
    often = part(made, torch.arange(640) % len(made.pixels))
    assert not score_images(often, often, classifier_extractor(teacher)).warnings


def test_sets_that_cannot_be_scored_are_refused_in_one_line(teacher, made):
    extractor = classifier_extractor(teacher)
    one = part(made, slice(1))
    refused("--images .* a set of 1 cannot", score_images, one, None, extractor)
    refused("--reference .* a set of 1 cannot", score_images, made, one, extractor)
    foreign = made._replace(labels=made.labels + 5)
    refused("label 14, but teacher knows 10", score_images, foreign, None, extractor)


def test_torch_fidelity_only_ever_gets_three_channels_of_bytes(made):
    item = extractors.fidelity_dataset(made)[3]
    assert item.shape == (3, 16, 16)
    assert all(torch.equal(channel, made.pixels[3, 0]) for channel in item)
    with pytest.raises(TypeError, match="uint8"):
        extractors.fidelity_dataset(made._replace(pixels=to_float(made.pixels)))


# The Inception network


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of torch-fidelity's Inception with random weights, its norms set on noise."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_, **__):
            pass  # keeps its random weights

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    torch.manual_seed(5)
    network = Blank("blank", ["2048"], feature_extractor_weights_path=nothing).train()
    noise = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = None
        network(noise)
        network.fc.weight.mul_(3)  # an Inception score well over 1, yet no p(y|x) of exactly 0
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def test_an_unknown_inception_file_works_and_is_called_unverified(inception_file, unseen):
    extractor = inception_extractor(inception_file)
    assert (extractor.kind, extractor.standard) == ("unverified Inception-v3", False)
    seen_by = extractor.look(unseen.pixels[:2])
    assert seen_by.features.shape == (2, 2048)
    assert seen_by.logits.shape == (2, 1008)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_files_that_are_not_plain_weights_never_reach_torch_fidelity(tmp_path, inception_file):
    evil, trace = tmp_path / "evil.pth", tmp_path / "trace"
    torch.save({"fc.weight": Evil(trace)}, evil)
    refused("not plain weights.* get the file from", inception_extractor, evil)
    assert not trace.exists()
    torch.save([torch.zeros(2)], evil)
    refused("not a plain state dict", inception_extractor, evil)
    evil.write_bytes(inception_file.read_bytes()[:5000])
    refused("not plain weights: it is damaged", inception_extractor, evil)
    with zipfile.ZipFile(evil, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("a/data/0", bytes(100 << 20))
    refused(r"unpacks to 105 MB out of 0\.1 MB: not read", inception_extractor, evil)
    torch.save({"fc.weight": torch.zeros(2)}, evil)
    refused("another architecture", inception_extractor, evil)
    refused("cannot be read", inception_extractor, tmp_path / "absent.pth")


def test_a_download_that_fails_or_brings_another_file_says_how_to_mend_it(tmp_path):
    cache = tmp_path / "cache"
    absent = (tmp_path / "absent.pth").as_uri()
    refused("--extractor-weights FILE", extractors.downloaded, absent, cache)
    (tmp_path / "other.pth").write_bytes(b"something else")
    refused("hash", extractors.downloaded, (tmp_path / "other.pth").as_uri(), cache)
    assert list(cache.iterdir()) == []


def textures(folder: Path, count: int, seed: int, spread: float) -> None:
    """PNG files of blurred coloured noise, the like of which differ by `spread`."""
    folder.mkdir()
    rng = torch.Generator().manual_seed(seed)
    for index in range(count):
        coarse = torch.rand(1, 3, 6, 6, generator=rng) * spread
        fine = nn.functional.interpolate(coarse, (40, 36), mode="bilinear")[0]
        noisy = fine + 0.2 * torch.rand(3, 40, 36, generator=rng)
        pixels = (noisy * 255).clamp(0, 255).to(torch.uint8)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{index:03d}.png")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fid_and_inception_score_equal_torch_fidelitys_own_command(tmp_path, inception_file):
    textures(tmp_path / "a", 40, 1, 0.8)
    textures(tmp_path / "b", 40, 2, 0.5)
    command = [
        sys.executable, "-m", "torch_fidelity.fidelity", "--cpu", "--fid", "--isc", "--json",
        "--no-cache", "--save-cpu-ram", "--silent",
        "--input1", str(tmp_path / "a"), "--input2", str(tmp_path / "b"),
        "--feature-extractor-weights-path", str(inception_file),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout)
    a, b = (load_images(str(tmp_path / name), None, classes=None, labelled=False) for name in "ab")
    # in batches of theirs: float32 kernels of some machines differ with the size of a batch
    ours = score_images(a, b, inception_extractor(inception_file), batch=64).scores
    pairs = {
        "frechet_inception_distance": ours["fid"].value,
        "inception_score_mean": ours["inception_score"].value,
        "inception_score_std": ours["inception_score"].std,
    }
    for name, value in pairs.items():
        print(f"{name}: theirs {theirs[name]:.9f}, ours {value:.9f}")  # noqa: T201
        assert value == pytest.approx(theirs[name], abs=1e-3)
    assert pairs["frechet_inception_distance"] > 1
    assert pairs["inception_score_mean"] > 1.1


# The command


@pytest.fixture(scope="module")
def student_run(teacher: FrozenTeacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    student = new_student(teacher).eval()
    save_student(
        student, card_of(student, "resnet8-w4", teacher.names), folder / "student.safetensors"
    )
    return folder


@pytest.fixture(scope="module")
def synthetic(
    teacher: FrozenTeacher, unseen: Images, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("set") / "synthetic"
    with Writer(folder, teacher.spec, 10, teacher.names, folders=False) as writer:
        with torch.no_grad():
            logits = teacher(to_float(unseen.pixels))
        writer.add(unseen.pixels, unseen.labels, logits)
        writer.close({"seed": 0})
    return folder


def recipe(**tables: dict[str, object]) -> Recipe:
    return Recipe.model_validate(tables)


def test_a_run_directory_is_compared_with_its_teacher(student_run, teacher, tmp_path, capsys):
    asked = recipe(student={"spec": str(student_run)}, run={"out": str(tmp_path / "out")})
    result = run(asked)
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written == json.loads(json.dumps(result))
    assert written["comparison"]["teacher_digest"] == teacher.digest
    assert written["comparison"]["n"] == 539
    assert "images" not in written
    shown = capsys.readouterr().out
    assert "transfer efficiency" in shown
    assert "\x1b" not in shown


@pytest.mark.slow
def test_a_synthetic_set_is_scored_by_the_teacher_as_the_output_says(synthetic, capsys):
    asked = recipe(evaluation={"images": str(synthetic), "reference": "demo:seen"})
    result = run(asked)["images"]
    assert result["extractor"] == "teacher"
    assert result["labelled"]
    assert {"fid", "kid", "semantic_consistency"} <= result["scores"].keys()
    shown = capsys.readouterr().out
    assert "extractor teacher, the default" in shown
    assert "warning: FID from 539 images" in shown


def test_both_questions_may_be_asked_at_once_and_json_is_json(student_run, synthetic, capsys):
    asked = recipe(student={"spec": str(student_run)}, evaluation={"images": str(synthetic)})
    result = run(asked, as_json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(result))
    assert set(result) == {"comparison", "images", "teacher_findings", "verdict"}


def test_quiet_prints_nothing(synthetic, capsys):
    run(recipe(evaluation={"images": str(synthetic)}), quiet=True)
    assert capsys.readouterr().out == ""


def test_the_demo_teacher_is_no_judge_of_images_for_another_extractor(
    student_run, synthetic, capsys
):
    table = {"images": str(synthetic), "extractor": str(student_run)}
    alone = run(recipe(evaluation=table), quiet=True)["images"]
    assert {s["extractor"] for s in alone["scores"].values()} == {str(student_run)}
    both = run(recipe(evaluation=table, teacher={"spec": "demo"}), quiet=True)["images"]
    assert both["scores"]["balance"]["extractor"] == "teacher"


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({}, "nothing to evaluate"),
        ({"data": {"val": "demo:unseen"}}, "give --student"),
        ({"evaluation": {"reference": "demo:seen"}}, "--images PATH"),
        ({"evaluation": {"images": "demo:seen", "extractor_weights": "x.pth"}}, "belongs to"),
        ({"student": {"spec": "demo"}, "teacher": {"spec": "resnet20"}}, "--val-data PATH"),
        (
            {"evaluation": {"images": "demo:seen", "extractor": "resnet20"}},
            "--extractor 'resnet20'",
        ),
        ({"student": {"spec": "demo"}, "run": {"out": "FULL"}}, "not an empty directory"),
    ],
)
def test_questions_without_an_answer_are_refused_in_one_line(tables, words, tmp_path):
    (tmp_path / "file").touch()
    if "run" in tables:
        tables = {**tables, "run": {"out": str(tmp_path)}}
    refused(words, run, recipe(**tables), quiet=True)


def test_tables_are_aligned_words_left_numbers_right():
    grid = Grid(("what", "n", "note"), (("a", "10", "x"), ("longer", "7", "")), words=1)
    assert aligned(grid) == ["what     n  note", "a       10  x", "longer   7"]


def test_a_hostile_class_name_cannot_write_escapes_to_the_terminal(teacher, unseen, capsys):
    from synthkd.commands import evaluate

    found = compare(new_student(teacher), teacher, unseen)
    rows = (replace(found.classes[0], name="\x1b[2J"), *found.classes[1:])
    evaluate._show(evaluate._comparison_text(replace(found, classes=rows)))
    assert "\x1b" not in capsys.readouterr().out


def test_importing_the_command_does_not_import_torch():
    code = "import sys, synthkd.commands.evaluate; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_comparison_is_plain_data(teacher, unseen):
    found = compare(new_student(teacher), teacher, part(unseen, slice(20)))
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["n"] == 20


def test_of_many_classes_five_guesses_are_scored_too(unseen, capsys):
    """A student that is its teacher, and 25 classes: five of the commonest labels are no feat."""
    torch.manual_seed(0)
    spec = load_teacher(TeacherTable()).spec
    large = FrozenTeacher(
        Classifier(build_network("resnet8-w4", channels=1, size=16, classes=25), spec, 25)
    )
    labelled = part(unseen, slice(100))
    found = compare(large.classifier, large, labelled)
    assert found.top5 is not None
    assert found.top5.agreement == 1 and found.top5.student == found.top5.teacher
    with large.exact():
        logits = large(to_float(labelled.pixels))
    assert found.top5.student == pytest.approx(
        top_k_accuracy_score(labelled.labels, logits, k=5, labels=range(25))
    )
    counts = np.sort(np.bincount(labelled.labels))[::-1]
    assert found.top5.constant == pytest.approx(counts[:5].sum() / 100)
    assert compare(large.classifier, large, labelled._replace(labels=None)).top5.student is None
    teacher = load_teacher(TeacherTable())
    assert compare(teacher.classifier, teacher, labelled).top5 is None  # of ten classes
