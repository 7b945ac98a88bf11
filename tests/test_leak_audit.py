"""`synthkd audit`: what it finds where something was planted, what it says where nothing can be
measured, and what it refuses."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from short_runs import main, status

from synthkd.core.images import ImageSpec, to_float
from synthkd.data.sources import demo_digits
from synthkd.evaluation import leaks, nearest
from synthkd.evaluation.compare import answers_of
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import TeacherTable
from synthkd.specs import card_of, load_teacher
from synthkd.students.learner import save_student

ROOT = Path(__file__).parent.parent
SHORT = ("--pipeline", "noise", "--student", "resnet8-w4", "--images-seen", "300", "--run.threads",
         "1", "--training.batch", "32", "--quiet", "--val-data", "none")  # fmt: skip
DATA = ("--members", "demo:seen", "--non-members", "demo:unseen", "--run.threads", "1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the demo's teacher, whose student knows nothing."""
    path: Path = tmp_path_factory.mktemp("audit") / "run"
    main(["distill", *SHORT, "--out", str(path)])
    return path


def audited(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    main(["audit", *map(str, words), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def shown(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    main(["audit", *map(str, words)])
    return capsys.readouterr().out


def rows(found: dict[str, Any], **wanted: str) -> list[dict[str, Any]]:
    return [one for one in found["attacks"] if wanted.items() <= one.items()]


def save(path: Path, pixels: torch.Tensor, labels: torch.Tensor) -> Path:
    np.savez(path, x=pixels.permute(0, 2, 3, 1).numpy(), y=labels.numpy())
    return path


@pytest.mark.slow
def test_the_demo_is_measured_beside_chance_and_what_cannot_be_measured_is_said(run, capsys):
    found = audited(capsys, run, *DATA)
    teacher, student = found["attacks"]
    assert [teacher["network"], student["network"]] == ["teacher", "student"]
    assert {one["score"] for one in found["attacks"]} == {"loss"}
    for one in found["attacks"]:
        assert (one["members"], one["non_members"]) == (1258, 539)
        assert one["auc_low"] <= one["auc"] <= one["auc_high"] and one["auc_by_chance"] == 0.5
        common, rare = one["rates"]
        assert common["false_positive_rate"] == 0.01 and common["false_positives"] <= 5
        assert 0 <= common["low"] <= common["value"] <= common["high"] <= 1
        assert rare["value"] is None and rare["non_members_needed"] == 1000
    assert student["auc_low"] < 0.5 < student["auc_high"]  # noise taught it nothing
    assert found["accuracy"]["members"]["teacher"] == 1.0
    assert "verdict" not in found and "verdict" not in json.dumps(found)
    text = shown(capsys, run, *DATA)
    assert "not measurable with 539 (needs 1,000)" in text
    assert text.count(leaks.LIMITS) == 1
    assert f"{teacher['auc']:.3f} [{teacher['auc_low']:.3f}" in text
    assert "safe" not in text


def test_the_loss_attack_is_the_rank_of_the_teachers_own_losses(run, capsys):
    """By torch's cross-entropy and a count of pairs."""
    (one,) = rows(audited(capsys, run, *DATA), network="teacher")
    pixels, labels, unseen = demo_digits()
    teacher, out = load_teacher(TeacherTable()), torch.from_numpy(unseen)
    with torch.no_grad():
        loss = F.cross_entropy(teacher(to_float(pixels)).double(), labels, reduction="none")
    inside, outside = loss[~out], loss[out]
    assert one["auc"] == pytest.approx(
        float((inside[:, None] < outside[None, :]).double().mean()), abs=1e-3
    )
    least = outside.sort().values[5]  # five of 539 may pass
    assert one["rates"][0]["value"] == pytest.approx(float((inside < least).double().mean()), 0.05)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A teacher that remembers: 120 digits, and 20 of 40 canaries; a run on it; the data."""
    folder: Path = tmp_path_factory.mktemp("memory")
    pixels, labels, _ = demo_digits()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    inside, outside, had, left = (order[a:b] for a, b in ((0, 120), (120, 620), (620, 640),
                                                          (640, 660)))  # fmt: skip
    wrong = torch.from_numpy(leaks.wrong_labels(labels.numpy(), 10, 0))
    chosen = torch.cat([inside, had])
    images, truth = to_float(pixels[chosen]), torch.cat([labels[inside], wrong[had]])
    body = build_network("resnet8-w8", channels=1, size=16, classes=10)
    network = Classifier(body, ImageSpec(1, 16, 16, (0.3,), (0.3,)), 10)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        F.cross_entropy(network(images), truth).backward()
        optimizer.step()
    network.eval()
    (folder / "teacher").mkdir()
    save_student(network, card_of(network, "resnet8-w8", ()),
                 folder / "teacher" / "student.safetensors")  # fmt: skip
    main(["distill", "--teacher", str(folder / "teacher"), *SHORT, "--out", str(folder / "run")])
    return SimpleNamespace(
        run=folder / "run", network=network, labels=labels, wrong=wrong, pixels=pixels,
        had=had, outside=outside, inside=inside,
        members=save(folder / "m.npz", pixels[inside], labels[inside]),
        others=save(folder / "n.npz", pixels[outside], labels[outside]),
        canaries=save(folder / "c.npz", pixels[had], wrong[had]),
        left=save(folder / "l.npz", pixels[left], wrong[left]),
    )  # fmt: skip


def test_canaries_that_a_teacher_remembers_are_found_and_stand_apart(memory, capsys):
    words = (memory.run, "--members", memory.members, "--non-members", memory.others,
             "--canaries", memory.canaries, "--run.threads", "1")  # fmt: skip
    found = audited(capsys, *words, "--left-out-canaries", memory.left)
    (average,) = rows(found, network="teacher", group="members")
    (worst,) = rows(found, network="teacher", group="canaries")
    assert worst["auc"] > 0.95 and average["auc_low"] > 0.5
    assert (worst["members"], worst["non_members"]) == (20, 20)
    assert worst["epsilon_lower_bound"] > 1 and average["epsilon_lower_bound"] is None
    assert [rate["value"] for rate in worst["rates"]] == [None, None]
    (student,) = rows(found, network="student", group="canaries")
    assert student["epsilon_lower_bound"] < 1
    assert found["accuracy"]["canaries"]["teacher"] > 0.9
    assert found["accuracy"]["canaries left out"]["teacher"] < 0.5
    drawn = rows(audited(capsys, *words), network="teacher", group="canaries")[0]
    assert (drawn["members"], drawn["non_members"]) == (20, 500)
    assert drawn["auc"] > 0.95 and drawn["epsilon_lower_bound"] is None
    assert drawn["rates"][0]["value"] > 0.5
    text = shown(capsys, *words, "--left-out-canaries", memory.left)
    assert "ε at least" in text and "canaries: 20, beside 20 that were not" in text


def planted(memory: SimpleNamespace, path: Path, **more: np.ndarray) -> Path:
    """Answers of eight shadow networks in which nothing but the comparison tells: without an image
    they answer as the teacher does to images it never had; with it 3 more for its label."""
    rows = torch.cat([memory.inside, memory.outside])
    logits = answers_of(memory.network, memory.pixels[rows], 256, "teacher").numpy()
    labels = memory.labels[rows].numpy()
    raised = 3 * np.eye(10)[labels]
    base = logits - raised * (np.arange(len(rows)) < len(memory.inside))[:, None]
    rng = np.random.default_rng(0)
    member = rng.random((8, len(rows))).argsort(0) < 4
    noise = 0.1 * rng.normal(size=(8, len(rows), 1)) * np.eye(10)[labels]
    held = {"logits": base + raised * member[..., None] + noise, "member": member}
    np.savez(path, **{**held, **more})
    return path


def test_shadow_networks_find_what_one_threshold_does_not(memory, tmp_path, capsys):
    words = (memory.run, "--members", memory.members, "--non-members", memory.others,
             "--run.threads", "1")  # fmt: skip
    path = planted(memory, tmp_path / "s.npz")
    found = audited(capsys, *words, "--shadows", path, "--shadows", path)
    assert found["shadows"] == {
        "files": [str(path), str(path)], "networks": 16, "students": False
    }  # fmt: skip
    for score in ("lira-offline", "lira-online"):
        (one,) = rows(found, network="teacher", score=score)
        assert one["auc"] > 0.999
        assert one["rates"][0]["value"] > 0.99
    (plain,) = rows(found, network="teacher", score="loss")
    assert plain["rates"][0]["value"] < 0.5
    assert not [f for f in found["findings"] if f["code"] == "shadows-out-of-order"]


def test_canaries_without_left_out_ones_are_compared_offline_alone(memory, tmp_path, capsys):
    count = 120 + 500 + 20
    rng = np.random.default_rng(0)
    held = {"logits": rng.normal(size=(8, count, 10)), "member": np.eye(8, count) > 0,
            "student_logits": rng.normal(size=(8, count, 10))}  # fmt: skip
    held["member"][4:, -20:] = True
    np.savez(tmp_path / "s.npz", **held)
    found = audited(
        capsys, memory.run, "--members", memory.members, "--non-members", memory.others,
        "--canaries", memory.canaries, "--shadows", tmp_path / "s.npz",
    )  # fmt: skip
    scores = [one["score"] for one in rows(found, network="student", group="canaries")]
    assert scores == ["loss", "lira-offline"]
    assert [f["code"] for f in found["findings"] if f["serious"]] == ["shadows-out-of-order"]
    assert found["shadows"]["students"]


# Files that are wrong


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no member": ({"member": None}, "there is no array member"),
    "another number of images": ({"member": np.ones((8, 7))}, "it must be numbers of the shape"),
    "one network": ({"member": np.ones((1, 620))}, "it must be numbers of the shape"),
    "not a number": ({"logits": np.full((8, 620, 10), np.nan)}, "it holds NaN"),
    "a share": ({"member": np.full((8, 620), 0.5)}, "member must be 0 or 1"),
    "in all networks": ({"member": np.ones((8, 620))}, "LiRA needs 2 without each image"),
    "texts": ({"member": np.full((8, 620), "yes")}, "it must be numbers of the shape"),
    "objects": ({"member": np.array([{}] * 8, dtype=object)}, "Python objects"),
    "other labels": ({"labels": np.zeros(620)}, "labels are not those of the images"),
    "students of some": ({"student_logits": np.zeros((7, 620, 10))}, "student_logits is float64"),
}


@pytest.mark.parametrize("name", BAD)
def test_shadows_that_are_wrong_are_refused_in_one_line(name, memory, tmp_path, capsys):
    changed, words = BAD[name]
    with np.load(planted(memory, tmp_path / "good.npz")) as held:
        arrays = {**held, **changed}
    np.savez(tmp_path / "s.npz", **{k: v for k, v in arrays.items() if v is not None})
    code = status("audit", str(memory.run), "--members", str(memory.members), "--non-members",
                  str(memory.others), "--shadows", str(tmp_path / "s.npz"))  # fmt: skip
    said = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(said) == 1 and words in said[0], said


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert status("audit", *map(str, words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.slow
def test_what_is_missing_is_said_in_one_line(run, tmp_path, capsys):
    assert "--members is missing" in refused(capsys, run)
    assert "--non-members is missing" in refused(capsys, run, "--members", "demo:seen")
    assert "give those too" in refused(capsys, run, *DATA, "--left-out-canaries", "demo:seen")
    assert "no recipe.toml" in refused(capsys, tmp_path, *DATA)
    assert "no such file" in refused(capsys, run, *DATA, "--shadows", tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    assert "not a readable .npz" in refused(capsys, run, *DATA, "--shadows", tmp_path / "bad.npz")
    assert "not empty" in refused(capsys, run, *DATA, "--out", run)
    pixels, labels, _ = demo_digits()
    one = save(tmp_path / "one.npz", pixels[:1], labels[:1])
    assert "2 members are needed" in refused(capsys, run, *DATA[2:], "--members", one)
    none = tmp_path / "none.npz"
    np.savez(none, x=pixels[:5].numpy())
    assert "labels are needed" in refused(capsys, run, *DATA[2:], "--members", none)


def test_images_of_both_kinds_and_another_teacher_are_said_first(run, memory, capsys):
    words = ("--members", "demo:seen", "--non-members", memory.others, "--run.threads", "1")
    found = audited(capsys, run, *words, "--teacher", memory.run.parent / "teacher")
    assert [f["code"] for f in found["findings"] if f["serious"]] == [
        "other-teacher", "members-among-non-members"
    ]  # fmt: skip
    assert shown(capsys, run, *words).splitlines()[0].startswith("serious: ")


# Synthetic images beside real ones


def test_the_nearest_image_is_the_nearest_of_all(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (9, 3, 5, 7), dtype=torch.uint8, generator=rng)
    among = torch.randint(256, (50, 3, 5, 7), dtype=torch.uint8, generator=rng)
    among[31] = images[4]
    off = (images[:, None].double() - among[None]).square().flatten(2).mean(2).sqrt() / 255
    monkeypatch.setattr(nearest, "BLOCK", 1000)  # a few at a time
    found = nearest.nearest(images, among)
    assert found.place.tolist() == off.argmin(1).tolist()
    assert found.distance.tolist() == pytest.approx(off.min(1).values.tolist())
    assert found.distance[4] == 0 and found.place[4] == 31


def test_copies_of_members_are_counted_and_shown_first(memory, tmp_path, capsys):
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (20, 1, 16, 16), dtype=torch.uint8, generator=rng)
    copies = memory.pixels[memory.inside[:10]]
    path = save(tmp_path / "made.npz", torch.cat([noise, copies]), torch.zeros(30).long())
    out = tmp_path / "out"
    words = (memory.run, "--members", memory.members, "--non-members", memory.others)
    found = audited(capsys, *words, "--images", path, "--out", out)
    near = found["nearest"]
    assert near["by_chance"] == pytest.approx(120 / 620)
    assert near["nearer_to_a_member"]["value"] >= 10 / 30
    assert near["nearer_to_a_member"]["low"] > near["by_chance"] - 0.02
    assert near["least_distance"] == 0 < near["least_distance_of_a_non_member"]
    assert json.loads((out / "audit.json").read_text()) == found
    with Image.open(out / "nearest.png") as picture:
        sheet = np.asarray(picture.convert("L"))
    body = sheet[-4 * (8 * 18 + 2) :]  # eight rows, four times as large
    tiles = [body[8:72:4, 8 + 72 * column : 72 + 72 * column : 4] for column in (0, 1)]
    assert (tiles[0] == tiles[1]).all()
    assert any((tiles[0] == copy.numpy()).all() for copy in copies[:, 0])


def test_images_that_the_run_kept_are_laid_beside_real_ones_by_default(run, tmp_path, capsys):
    text = shown(capsys, run, *DATA, "--out", tmp_path / "out")
    kept = np.load(run / "calibration.npz")["x"]
    assert f"{len(kept)} synthetic images of {run / 'calibration.npz'}" in text
    assert f"{1258 / 1797:.1%}" in text
    assert "which shows real images" in text


def test_wrong_labels_are_never_right_and_as_often_each_other_class():
    labels = np.arange(9000) % 3
    found = leaks.wrong_labels(labels, 3, 0)
    assert not (found == labels).any()
    assert np.bincount(found[labels == 0], minlength=3)[1:] == pytest.approx([1500, 1500], rel=0.1)
    assert (leaks.wrong_labels(labels, 3, 1) != found).any()


# The study


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return runpy.run_path(str(ROOT / "benchmarks" / "leaks.py"), run_name="imported")


def test_every_image_of_the_study_is_in_half_of_the_teachers(study):
    known = study["design"](16, 20)
    assert (known.member.sum(0) == 8).all()
    assert known.canary.sum() == 20 and known.member.shape == (16, 1258)
    right = study["digits"]("demo:seen").labels.numpy()
    assert ((known.labels != right) == known.canary).all()


def test_the_table_of_the_study_tells_a_planted_leak_from_none(study, tmp_path):
    known, rng = study["design"](8, 20), np.random.default_rng(0)
    (tmp_path / "answers").mkdir()
    for kind, raise_by in (("teacher", 4.0), ("gan", 0.0)):
        for number in range(8):
            logits = rng.normal(size=(1258, 10))
            logits[np.arange(1258), known.labels] += raise_by * known.member[number]
            np.savez(study["file_of"](tmp_path, kind, number), logits=logits, accuracy=0.5,
                     seconds=1.0)  # fmt: skip
    given = SimpleNamespace(out=tmp_path, shadows=8, canaries=20, epochs=1)
    text, data = study["table"](("teacher", "gan"), given)
    found = {(a["network"], a["group"], a["score"]): a for a in data["attacks"]}
    assert found["teacher", "members", "lira-online"]["auc"] > 0.95
    assert found["teacher", "canaries", "lira-offline"]["auc"] > 0.9
    for group in ("members", "canaries"):
        one = found["gan", group, "lira-online"]
        assert one["auc_low"] < 0.5 < one["auc_high"]
    assert "not measurable with 80" in text and "| a random score |" in text
    assert found["gan", "members", "loss"]["non_members"] == 4 * 1238
