"""Labels against a teacher's votes: wrong orders are caught, right ones are left alone.

The votes of the demo teacher, of stand-ins whose confusion is drawn here, and of networks that
other people trained (beside the checkout, if they are there).
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from short_runs import main
from torch import Tensor

from synthkd.commands import bench, evaluate
from synthkd.core.errors import InputError
from synthkd.data.sources import demo_digits, load_images
from synthkd.evaluation.compare import compare, settled, votes_of
from synthkd.evaluation.extractors import classifier_extractor
from synthkd.evaluation.image_scores import score_images
from synthkd.labels.check import LabelCheck, check_labels
from synthkd.labels.class_names import arranged, numbered
from synthkd.networks.classifier import Classifier
from synthkd.recipe import TeacherTable, validated
from synthkd.specs import load_teacher
from synthkd.teachers.frozen import FrozenTeacher

SHARED = Path(__file__).resolve().parents[2] / "shared"


@functools.cache
def digits() -> tuple[FrozenTeacher, Tensor, Tensor]:
    """The demo teacher, its votes, and the labels of the digits that it never saw."""
    teacher = load_teacher(TeacherTable())
    images = load_images("demo:unseen", teacher.spec, classes=10, labelled=True)
    assert images.labels is not None
    return teacher, votes_of(teacher, images), images.labels


def drawn(
    classes: int, count: int, accuracy: float, *, seed: int = 0, favourite: float = 0.0,
    shares: list[float] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Labels, and votes that are right so often, else any class, or the favourite one."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, count, p=shares)
    votes = np.where(rng.random(count) < accuracy, labels, rng.integers(classes, size=count))
    votes = np.where(rng.random(count) < favourite, 0, votes)
    return torch.from_numpy(votes), torch.from_numpy(labels)


def codes(found: LabelCheck) -> list[str]:
    return [finding.code for finding in found.findings]


def text_ranks(classes: int) -> list[int]:
    texts = sorted(str(k) for k in range(classes))
    return [texts.index(str(k)) for k in range(classes)]


# Wrong orders: what the labels were turned into, and what the remedy must say

ALPHABET = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BY_NAME = sorted(range(10), key=ALPHABET.__getitem__)
WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "counted from 1, the last absent": (lambda y: y + 1, "1 is taken away"),
    "one too small, the first absent": (lambda y: y - 1, "1 is added"),
    "turned by one": (lambda y: (y + 1) % 10, "1 is taken away"),
    "turned by seven": (lambda y: (y + 7) % 10, "3 is added"),
    "backwards": (lambda y: 9 - y, "backwards"),
    "two exchanged": (lambda y: torch.tensor([0, 1, 2, 8, 4, 5, 6, 7, 3, 9])[y], "'3' and '8'"),
    "three in a ring": (lambda y: torch.tensor([1, 2, 0, *range(3, 10)])[y], "is its class"),
    "names by alphabet": (lambda y: torch.tensor(BY_NAME).argsort()[y], "alphabetical order"),
    "at random": (lambda y: torch.tensor([4, 7, 1, 9, 0, 3, 8, 6, 2, 5])[y], "another order"),
    "a class between left out": (lambda y: torch.where(y > 5, y - 1, y), "class 5 has no images"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_order_of_the_digits_is_caught_and_the_right_one_proposed(name: str) -> None:
    _, votes, truth = digits()
    if "last absent" in name:
        votes, truth = votes[truth < 9], truth[truth < 9]
    elif "first absent" in name:
        votes, truth = votes[truth > 0], truth[truth > 0]
    elif "left out" in name:
        votes, truth = votes[truth != 5], truth[truth != 5]
    change, words = WRONG[name]
    wrong = change(truth)
    found = check_labels(votes, wrong, 10, names=ALPHABET)
    (finding,) = found.findings
    assert finding.code == "labels-permuted" and finding.serious and words in finding.seen
    assert found.order is not None and found.better is not None and found.better > 0.98
    assert torch.equal(torch.tensor(found.order.classes)[wrong], truth)
    assert "--class-order" in finding.remedy


@pytest.mark.parametrize("classes", [12, 100, 1000])
def test_text_order_of_numbers_is_known_by_name_both_ways(classes: int) -> None:
    votes, truth = drawn(classes, 3000, 0.6)
    ranks = torch.tensor(text_ranks(classes))
    for wrong in (ranks.argsort()[truth], ranks[truth]):
        found = check_labels(votes, wrong, classes)
        assert found.order is not None and "text order" in found.order.how
        assert torch.equal(torch.tensor(found.order.classes)[wrong], truth)


def test_labels_after_a_background_class_are_known_by_name() -> None:
    votes, truth = drawn(1001, 2000, 0.5)
    votes, truth = votes[truth > 0], truth[truth > 0]
    found = check_labels(votes, truth - 1, 1001)
    assert found.order is not None and found.order.flag == "background-first"


def test_two_exchanged_classes_of_two_are_caught_and_named() -> None:
    votes, truth = drawn(2, 400, 0.6, shares=[0.8, 0.2])
    found = check_labels(votes, 1 - truth, 2)
    assert codes(found) == ["labels-permuted"] and "both change places" in found.findings[0].seen
    assert found.findings[0].remedy.endswith("--class-order 1,0")


def test_classes_without_images_between_are_found_without_names() -> None:
    """A few of many classes, renumbered in a row."""
    votes, truth = drawn(40, 4000, 0.8)
    kept = torch.tensor([3, 4, 9, 17, 18, 30, 39])
    few = torch.isin(truth, kept)
    wrong = torch.searchsorted(kept, truth[few])
    found = check_labels(votes[few], wrong, 40)
    assert found.order is not None
    assert torch.equal(torch.tensor(found.order.classes)[wrong], truth[few])


def test_few_images_of_very_many_classes_prove_a_random_order() -> None:
    votes, truth = drawn(1000, 3000, 0.7)
    mixed = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    found = check_labels(votes, mixed[truth], 1000)
    assert codes(found) == ["labels-permuted"] and found.better is not None
    assert 0.3 < found.better < 0.71  # by images on which the order was not found


def test_labels_of_something_else_are_near_chance() -> None:
    rng = torch.Generator().manual_seed(0)
    _, votes, truth = digits()
    noise = torch.randint(10, (len(truth),), generator=rng)
    for labels in (noise, torch.full_like(truth, 3).where(noise > 0, noise)):
        (finding,) = check_labels(votes, labels, 10).findings
        assert finding.code == "teacher-near-chance" and finding.serious


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("form", ["labels", "folders", "words"])
@pytest.mark.parametrize("wrong", ["text", "one-based", "background-first", "turned"])
def test_the_remedy_gives_the_right_classes(first: int, form: str, wrong: str) -> None:
    """--class-order with what the remedy says, applied to the names or numbers of the data."""
    votes, truth = drawn(12, 3000, 0.7, seed=3)
    if wrong == "one-based":
        votes, truth = votes[truth < 11], truth[truth < 11]
    if wrong == "background-first":
        votes, truth = votes[truth > 0], truth[truth > 0]
    texts = sorted(str(k + first) for k in range(12))
    image = {
        "text": torch.tensor([int(text) - first for text in texts]).argsort().argsort(),
        "one-based": torch.arange(12) + 1, "background-first": torch.arange(12) - 1,
        "turned": (torch.arange(12) + 5) % 12,
    }[wrong]  # fmt: skip
    labels = image[truth]  # what the program took the user's labels for
    taken = labels.unique().tolist()
    given = [f"class {chr(97 + k)}" if form == "words" else str(k + first) for k in taken]
    if form == "folders":
        given = [f"c{name}" for name in given]
    found = check_labels(votes, labels, 12, given=given, taken=taken)
    order = found.findings[0].remedy.rpartition("--class-order ")[2]
    if form == "labels":
        told = numbered([int(name) for name in given], (), 12, order)
    else:
        told = arranged(given, [True] * len(given), (), 12, order)
    mended = dict(zip(taken, told.classes, strict=True))
    assert all(mended[int(k)] == int(t) for k, t in zip(labels, truth, strict=True))


# Right orders


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("classes", "count", "accuracy", "favourite", "shares"),
    [
        (2, 624, 0.8, 0.0, [0.375, 0.625]), (2, 524, 0.4, 0.3, [0.05, 0.95]),
        (7, 3000, 0.5, 0.1, None), (10, 300, 0.3, 0.4, None), (10, 60, 0.5, 0.0, None),
        (1000, 1000, 0.4, 0.05, None), (100, 5000, 0.2, 0.0, None), (3, 12, 0.9, 0.0, None),
    ],
)  # fmt: skip
def test_weak_biased_and_unbalanced_teachers_raise_no_alarm(
    seed: int, classes: int, count: int, accuracy: float, favourite: float,
    shares: list[float] | None,
) -> None:  # fmt: skip
    votes, labels = drawn(
        classes, count, accuracy, seed=seed, favourite=favourite, shares=shares
    )  # fmt: skip
    assert check_labels(votes, labels, classes).findings == ()


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("shares", [[0.4, 0.6], [0.9, 0.1], [0.5, 0.5]])
def test_a_teacher_that_names_one_class_is_near_chance_and_no_order_is_proposed(
    shares: list[float], wrong: bool
) -> None:
    votes, labels = drawn(2, 500, 0.0, favourite=0.99, shares=shares)
    assert codes(check_labels(votes, 1 - labels if wrong else labels, 2)) == ["teacher-near-chance"]


def test_similar_classes_that_fall_to_one_another_are_no_wrong_order() -> None:
    """Of a group of three alike, the votes are any of the three; one class has none of its own."""
    rng = np.random.default_rng(0)
    labels = rng.integers(9, size=2000)
    votes = np.where(rng.random(2000) < 0.95, labels // 3 * 3 + rng.integers(3, size=2000), labels)
    votes[votes == 4] = 5
    assert check_labels(torch.from_numpy(votes), torch.from_numpy(labels), 9).findings == ()


def test_too_few_images_say_nothing() -> None:
    votes, labels = drawn(10, 9, 1.0)
    assert check_labels(votes, (labels + 1) % 10, 10).findings == ()
    assert check_labels(votes[:0], labels[:0], 10).findings == ()


def test_the_digits_are_right() -> None:
    _, votes, truth = digits()
    assert check_labels(votes, truth, 10, names=ALPHABET).findings == ()
    for digit in range(10):
        assert check_labels(votes[truth == digit], truth[truth == digit], 10).findings == ()


# Through the program


@pytest.fixture
def as_folders(tmp_path: Path) -> Callable[..., Path]:
    """The unseen digits as class folders with these names."""

    def write(names: list[str], labels: Tensor | None = None) -> Path:
        pixels, truth, unseen = demo_digits()
        told = truth if labels is None else labels
        for k in np.flatnonzero(unseen).tolist()[:: 2 if labels is None else 1]:
            if int(told[k]) < 0:
                continue
            folder = tmp_path / "set" / names[int(told[k])]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[k, 0].numpy()).save(folder / f"{k}.png")
        return tmp_path / "set"

    return write


def scored(path: Path, **data: Any) -> dict[str, Any]:
    recipe = validated({"student": {"spec": "demo"}, "data": {"val": str(path), **data}})
    return evaluate.run(recipe, quiet=True)["comparison"]


def test_folders_with_number_words_are_read_by_number(as_folders: Callable[..., Path]) -> None:
    found = scored(as_folders(list(ALPHABET)))
    assert found["teacher_accuracy"] > 0.97 and "by number" in found["order"]


@pytest.mark.slow
def test_folders_in_a_language_that_nobody_knows_are_caught_and_the_remedy_works(
    as_folders: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["null", "eins", "zwei", "drei", "vier", "fuenf", "sechs", "sieben", "acht", "neun"]
    path = as_folders(names)
    found = scored(path)
    (finding, *_) = found["findings"]
    assert finding["code"] == "labels-permuted" and found["verdict"] == "useless"
    order = finding["remedy"].rpartition(" ")[2]
    assert order == ",".join(str(names.index(name)) for name in sorted(names))
    assert scored(path, class_order=order)["teacher_accuracy"] > 0.97
    evaluate.run(validated({"student": {"spec": "demo"}, "data": {"val": str(path)}}))
    assert capsys.readouterr().out.startswith("serious: the teacher is right on")


class Doubled(torch.nn.Module):
    """Twelve classes out of ten: those above 9 are seen by an inverted corner."""

    def __init__(self, ranks: list[int]) -> None:
        super().__init__()
        self.net = load_teacher(TeacherTable()).classifier.body
        self.register_buffer("ranks", torch.tensor(ranks))

    def forward(self, x: Tensor) -> Tensor:
        marked = x[:, 0, 0, 0] > 0
        logits = self.net(torch.cat([x[:, :, :1] * 0 + x[:, :, 1:2], x[:, :, 1:]], 2))
        far = torch.full((len(x), 2), -9.0)
        twelve = torch.cat([logits, far], 1)
        swapped = torch.cat([far.repeat(1, 5), logits[:, :2]], 1)
        return torch.where(marked[:, None], swapped, twelve)[:, self.ranks.argsort()]


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("text", [True, False])
def test_the_teachers_answers_tell_how_its_numbered_folders_were_sorted(
    tmp_path: Path, padded: bool, text: bool
) -> None:
    base = load_teacher(TeacherTable())
    network = Doubled(text_ranks(12) if text else list(range(12)))
    teacher = FrozenTeacher(Classifier(network, base.spec, 12, base.classifier.answers))
    pixels, labels, unseen = demo_digits()
    for k in np.flatnonzero(unseen).tolist():
        label = int(labels[k]) + (10 if labels[k] < 2 and k % 2 else 0)
        image = pixels[k, 0].numpy().copy()
        image[0, 0] = 255 if label > 9 else 0
        folder = tmp_path / (f"{label:02d}" if padded else str(label))
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{k}.png")
    images = load_images(
        str(tmp_path), teacher.spec, classes=12, labelled=True, names=teacher.names
    )
    found = compare(teacher, teacher, images)
    assert found.teacher_accuracy is not None and found.teacher_accuracy > 0.97
    assert found.findings == ()
    assert ("text order" in found.order) == text and "by number" in found.order
    told, _ = settled(images, votes_of(teacher, images), teacher.classes, teacher.names)
    assert found.teacher_accuracy == compare(teacher, teacher, told).teacher_accuracy
    assert told.digest != images.digest or not text


# Networks and images of other people

LARGER = SHARED / "larger"
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
THEIRS: dict[str, tuple[dict[str, Any], str]] = {
    "cifar10": (
        {"spec": "resnet20", "weights": "data/resnet20-12fca82f.th", "image_size": 32,
         "channels": 3, **IMAGENET},
        "data/read.py:load:cifar10_test",
    ),
    "mnist": (
        {"spec": "lenet5", "weights": "data/mnist_lenet5_khushbujpatel.pt", "image_size": 32,
         "channels": 1, "mean": (0.1307,), "std": (0.3081,)},
        "data/read.py:load:mnist_test",
    ),
    "faces": (
        {"spec": "larger/nets/kerasnet.py:make_fer2013_mini_XCEPTION_64",
         "weights": "larger/nets/fer2013_mini_XCEPTION_64.pt", "image_size": 64, "channels": 1,
         "mean": (0.5,), "std": (0.5,)},
        "larger/read.py:load:fer2013_test",
    ),
    "person": (
        {"spec": "larger/nets/vww96.py:make", "weights": "larger/nets/vww96.pt", "image_size": 96,
         "channels": 3, "mean": (0.0,), "std": (1.0,)},
        "larger/read.py:load:vww96",
    ),
    "imagenet": (
        {"spec": "larger/nets/kerasnet.py:make_mobilenet_025_imagenet",
         "weights": "larger/nets/mobilenet_v1_0.25_224.pt", "image_size": 224, "channels": 3,
         "mean": (0.5,), "std": (0.5,)},
        "larger/read.py:load:imagenet_nips2017",
    ),
}  # fmt: skip


@functools.cache
def theirs(name: str) -> tuple[int, Tensor, Tensor]:
    """Classes, votes and labels of a network and a set of other people."""
    table, data = THEIRS[name]
    if not (SHARED / data.partition(":")[0]).is_file():
        pytest.skip(f"no ../shared/{data.partition(':')[0]} beside this checkout")
    paths = {key: str(SHARED / table[key]) for key in ("spec", "weights") if "/" in table[key]}
    teacher = load_teacher(TeacherTable(**table | paths), trust_code=True)
    images = load_images(
        f"{SHARED / data}", teacher.spec, classes=teacher.classes, labelled=True, trust_code=True
    )
    assert images.labels is not None
    return teacher.classes, votes_of(teacher, images), images.labels


@pytest.mark.slow
@pytest.mark.parametrize("name", THEIRS)
def test_labels_of_other_peoples_sets_are_right_and_wrong_ones_are_caught(name: str) -> None:
    classes, votes, truth = theirs(name)
    assert check_labels(votes, truth, classes).findings == ()
    every, texts = torch.arange(classes), torch.tensor(text_ranks(classes))
    mixed = torch.randperm(classes, generator=torch.Generator().manual_seed(1))
    wrongs = {"turned": (every + 1) % classes, "backwards": every.flip(0)}
    if 2 < classes < 1000:  # two and a half images a class do not prove what each one is
        a, b = (int(k) for k in truth.bincount().topk(2).indices)
        swapped = every.clone()
        swapped[[a, b]] = every[[b, a]]
        wrongs |= {"mixed": mixed, "swapped": swapped}
    if classes > 10:
        wrongs |= {"texts": texts, "numbers": texts.argsort()}
    for what, image in wrongs.items():
        found = check_labels(votes, image[truth], classes)
        assert codes(found) == ["labels-permuted"], what
        assert found.order is not None
        assert torch.equal(torch.tensor(found.order.classes)[image[truth]], truth), what
    kept = truth < truth.max()
    found = check_labels(votes[kept], truth[kept] + 1, classes)
    assert found.order is not None and found.order.flag == "one-based"
    if classes == 1000:
        assert codes(check_labels(votes, mixed[truth], classes)) == ["labels-permuted"]


def test_three_labels_for_a_network_of_two_classes_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 16, 16), np.uint8), y=np.arange(3))
    with pytest.raises(InputError, match=r"labels must lie in 0\.\.1; got 0\.\.2"):
        load_images(str(tmp_path / "a.npz"), None, classes=2, labelled=True)


def test_a_set_of_images_with_wrong_labels_is_told(tmp_path: Path) -> None:
    teacher, _, _ = digits()
    images = load_images("demo:unseen", teacher.spec, classes=10, labelled=True)
    assert images.labels is not None
    wrong = images._replace(labels=9 - images.labels)
    found = score_images(wrong, images, classifier_extractor(teacher))
    assert any("counted backwards" in warning for warning in found.warnings)
    right = score_images(images, None, classifier_extractor(teacher))
    assert not any("right on" in warning for warning in right.warnings)


@pytest.mark.slow
def test_a_run_with_wrong_labels_keeps_its_student_and_tells(tmp_path: Path) -> None:
    pixels, truth, unseen = demo_digits()
    chosen = torch.from_numpy(np.flatnonzero(unseen))
    np.savez(
        tmp_path / "a.npz", images=pixels[chosen].numpy(), labels=np.eye(10)[9 - truth[chosen]]
    )
    flags = (
        "--student resnet8-w4 --training.batch 32 --generator.width 4 --images-seen 96 "
        "--pipeline gan --memory.capacity 300 --stage.pregenerate.fresh 64 "
        "--stage.pregenerate.synthesis-batch 16 --stage.joint.synthesis-batch 16 "
        f"--stage.joint.fresh 32 --stage.joint.student-steps 2 --val-data {tmp_path / 'a.npz'}"
    )
    main(["distill", "--quiet", "--out", str(tmp_path / "run"), *flags.split()])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    codes = {finding["code"]: finding["serious"] for finding in summary["findings"]}
    assert codes["labels-permuted"] and "one-hot" in summary["val_order"]
    assert summary["label_order"] == list(range(9, -1, -1))
    assert (tmp_path / "run" / "student.safetensors").is_file()


def test_a_bench_with_wrong_labels_is_refused_before_it_runs(tmp_path: Path) -> None:
    pixels, truth, unseen = demo_digits()
    chosen = torch.from_numpy(np.flatnonzero(unseen))
    np.savez(tmp_path / "a.npz", x=pixels[chosen].numpy(), y=(9 - truth[chosen]).numpy())
    recipe = validated({
        "budget": {"minutes": 1}, "data": {"val": str(tmp_path / "a.npz")},
        "run": {"out": str(tmp_path / "bench")},
    })  # fmt: skip
    with pytest.raises(InputError, match=r"counted backwards.*--anyway"):
        bench.run(recipe, pipelines="shaders", quiet=True)
    assert not (tmp_path / "bench").exists()


def test_a_folder_of_hugging_face_knows_its_names_and_folders_follow_them(tmp_path: Path) -> None:
    """The row of `zero` … in alphabetical order: the truth is what the network itself answers."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    names = {0: "zero", 1: "one", 2: "two", 3: "three", 4: "four"}
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=8, num_channels=3, id2label=names,
        label2id={name: k for k, name in names.items()},
    )  # fmt: skip
    body = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():
        body.vit.embeddings.patch_embeddings.projection.weight *= 40
        body.classifier.weight *= 20
    body.save_pretrained(str(tmp_path / "vit"), safe_serialization=True)
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps({
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "size": {"height": 16, "width": 16},
    }))  # fmt: skip
    teacher = load_teacher(TeacherTable(spec=f"hf:{tmp_path / 'vit'}"))
    assert teacher.names == tuple(names.values())
    rng = np.random.default_rng(0)
    pixels = (rng.random((300, 1, 1, 3)) * 255 + rng.random((300, 16, 16, 3))).astype(np.uint8)
    with torch.no_grad():
        votes = teacher(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).argmax(1)
    assert len(votes.unique()) >= 2
    for k, (image, vote) in enumerate(zip(pixels, votes.tolist(), strict=True)):
        folder = tmp_path / "set" / names[vote].capitalize()
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{k}.png")
    images = load_images(
        str(tmp_path / "set"), teacher.spec, classes=5, labelled=True, names=teacher.names
    )
    found = compare(teacher, teacher, images)
    assert found.teacher_accuracy == 1.0 and found.findings == () and "by name" in found.order
