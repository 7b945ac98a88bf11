"""Exports against the student, the model card, predictions, and the card of a teacher."""

import json
import re
import shlex
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from short_runs import main
from torch import Tensor, nn

from synthkd.cards.model import export_card
from synthkd.checks.inspection import drawings
from synthkd.core.files import sha256_of
from synthkd.core.images import ImageSpec, to_float, to_uint8
from synthkd.core.privacy import STATEMENT
from synthkd.export.formats import Parity, Scored, Shipped, chosen, compared, scored, to_onnx
from synthkd.networks.classifier import Classifier
from synthkd.recipe import StudentTable, TeacherTable
from synthkd.specs import load_classifier

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
RUN = shlex.split(
    "distill --pipeline noise --student resnet8-w4 --images-seen 256 --training.batch 64 "
    "--run.threads 1 --quiet"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("shipping") / "run"
    main([*RUN, "--out", str(folder)])
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(list(words))
    return capsys.readouterr().out


def failing(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("exported") / "all"
    main(["export", str(run), "--format", "safetensors,onnx,pt2", "--int8", "--val-data",
          "demo:unseen", "--out", str(out), "--quiet"])  # fmt: skip
    found: dict[str, Any] = json.loads((out / "export.json").read_text())
    return found | {"folder": str(out)}


def test_every_format_votes_as_the_student_does(exported: dict[str, Any]) -> None:
    files = {f["name"]: f for f in exported["files"]}
    assert set(files) == {
        "student.safetensors", "student.onnx", "student.int8.onnx", "student.pt2",
    }  # fmt: skip
    for name, one in files.items():
        assert one["parity"]["images"] == 1000
        if "int8" not in name:
            assert one["parity"]["agreement"] == 1.0 and one["parity"]["largest"] < 1e-3
        assert one["milliseconds"] > 0 and one["megabytes"] > 0
    assert files["student.int8.onnx"]["parity"]["agreement"] > 0.8
    assert files["student.int8.onnx"]["megabytes"] < files["student.onnx"]["megabytes"]


def test_the_files_stand_alone_with_normalisation_inside(
    run: Path, exported: dict[str, Any]
) -> None:
    import onnxruntime

    folder = Path(exported["folder"])
    student, _ = load_classifier(StudentTable(spec=str(run)), TeacherTable())
    images = torch.rand(5, *student.spec.shape)
    with torch.no_grad():
        wanted = student.eval()(images)
    session = onnxruntime.InferenceSession(str(folder / "student.onnx"))
    answer = session.run(None, {"images": images.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(answer), wanted, atol=1e-4, rtol=1e-4)
    program = torch.export.load(str(folder / "student.pt2")).module()
    torch.testing.assert_close(program(images), wanted, atol=1e-4, rtol=1e-4)
    assert not list(folder.glob("*.data"))  # weights are inside


def test_an_executorch_program_stands_alone_and_votes_as_the_student_does(
    run: Path, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("executorch.runtime", reason="the extra is not installed")
    out = tmp_path / "out"
    main(["export", str(run), "--format", "executorch", "--out", str(out), "--quiet"])
    (one,) = json.loads((out / "export.json").read_text())["files"]
    assert one["name"] == "student.pte" and one["parity"]["images"] == 1000
    assert one["parity"]["agreement"] == 1.0 and one["parity"]["largest"] < 1e-3
    student, _ = load_classifier(StudentTable(spec=str(run)), TeacherTable())
    image = torch.rand(1, *student.spec.shape)
    method = runtime.Runtime.get().load_program(str(out / "student.pte")).load_method("forward")
    with torch.no_grad():
        wanted = student.eval()(image)
    torch.testing.assert_close(method.execute([image])[0], wanted, atol=1e-4, rtol=1e-4)


def test_the_card_says_where_the_student_comes_from(exported: dict[str, Any], run: Path) -> None:
    card = (Path(exported["folder"]) / "README.md").read_text()
    manifest = json.loads((run / "manifest.json").read_text())
    assert card.startswith('---\nlibrary_name: "synthkd"\npipeline_tag: "image-classification"\n')
    assert manifest["teacher_sha256"] in card and STATEMENT in card
    assert "| real images read | 0 |" in card and "student.int8.onnx" in card


def card_of(run: Path, summary: Any, manifest: Any, *names: str) -> str:
    """The card of an export without files."""
    student, _ = load_classifier(StudentTable(spec=str(run)), TeacherTable())
    return export_card(summary, manifest, names or ("a", "b"), Shipped(student))


def test_a_card_of_a_run_with_real_images_does_not_claim_otherwise(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    manifest = {"teacher": "x|<b>", "teacher_sha256": "0", "promise_level": 2}
    card = card_of(run, summary, manifest)
    assert "read no real data" not in card
    assert "read no real images, but what it began with had seen some." in card
    card = card_of(run, summary | {"real_images_read": 5, "held_out": "real"}, manifest)
    assert "read no real" not in card and "This run read 5 real images, and what" in card
    assert "data-free" not in card
    assert "agreement on held-out real images" in card
    assert "Treat both with the same care" in card
    assert "<b>" not in card


def test_a_file_that_votes_otherwise_is_seen(run: Path) -> None:
    student, _ = load_classifier(StudentTable(spec=str(run)), TeacherTable())
    images = drawings(student.spec, 200, torch.Generator().manual_seed(0))
    network = Shipped(student.eval())
    parity = compared(network, lambda x: -student(x), images)
    assert not parity.holds and parity.agreement < 0.5 and parity.images == 200
    twice = compared(network, lambda x: 2 * student(x), images)
    assert twice.agreement == 1.0 and not twice.holds  # the votes alone do not tell
    assert compared(network, student, images).holds


class Odds(nn.Module):
    """Log-odds of two independent classes, bright and dark, of images of a pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :, 0, 0] - 1, -x[:, :, 0, 0] - 1], 1)


@pytest.mark.parametrize("probabilities", [False, True])
def test_independent_classes_are_compared_and_scored_by_their_decisions(
    probabilities: bool,
) -> None:
    spec = ImageSpec(1, 1, 1, (0.0,), (1.0,))
    student = Classifier(Odds(), spec, 2, "multilabel-logits").eval()
    network = Shipped(student, probabilities=probabilities)
    images = torch.tensor([0.0, 0.5, 2.0, 3.0])[:, None, None, None]

    def off(x: Tensor) -> Tensor:  # says yes to dark, and more surely no to bright, at 0.5
        odds = student(x) + torch.where(x[:, :, 0, 0] == 0.5, torch.tensor([[-0.5, 2.0]]), 0.0)
        return odds.sigmoid() if probabilities else odds

    parity = compared(network, off, images)
    assert parity.independent and parity.agreement == 7 / 8 and parity.named == 2
    assert parity.balanced == pytest.approx((5 / 6 + 1) / 2) and parity.groups == "no and yes"
    assert not parity.holds
    near = images.where(images != 2, 1.0)  # log-odds of 0, which rounding turns
    turned = compared(network, lambda x: network(x + 1e-6 * (x == 1)), near)
    assert turned.agreement == 7 / 8 and turned.holds
    labels = torch.tensor([[0, 1], [0, 1], [1, 0], [1, 0]])
    found = scored(network, off, network, images, labels)
    assert (found.accuracy, found.float_accuracy, found.agreement) == (7 / 8, 6 / 8, 7 / 8)
    one = scored(network, off, network, images, torch.tensor([1, 1, 0, 0]))  # a class an image
    assert (one.accuracy, one.float_accuracy) == (0.75, 0.5)  # the first image is a tie


def test_labels_of_several_classes_are_refused_where_they_exclude_each_other(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    y = np.zeros((4, 10), dtype=np.int64)
    y[:, :2] = 1
    np.savez(tmp_path / "several.npz", x=np.zeros((4, 16, 16), dtype=np.uint8), y=y)
    text = failing(capsys, "export", str(run), "--int8", "--val-data",
                   str(tmp_path / "several.npz"), "--out", str(tmp_path / "out"))  # fmt: skip
    assert "labels of several classes per image" in text


def test_what_cannot_be_exported_is_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "known: safetensors, onnx" in failing(capsys, "export", str(run), "--format", "tflite")
    assert "add onnx" in failing(capsys, "export", str(run), "--format", "pt2", "--int8")
    assert "no finished run" in failing(capsys, "export", str(tmp_path))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    text = failing(capsys, "export", str(run), "--out", str(tmp_path / "full"))
    assert "not empty" in text


def test_a_student_swapped_for_another_is_not_exported_under_the_old_ones_scores(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    copy = Path(shutil.copytree(run, tmp_path / "swapped"))
    with safe_open(str(copy / "student.safetensors"), framework="pt") as file:
        header = file.metadata()
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state["linear.weight"] = -state["linear.weight"]
    save_file(state, copy / "student.safetensors", metadata=header)
    text = failing(capsys, "export", str(copy), "--format", "safetensors")
    assert "is not the student that its summary.json describes" in text
    assert not (copy / "export").exists()


FOREIGN = (
    "<img src=x onerror=alert(1)>|`[a](javascript:b)\n# c\n| d | e |\n<https://f.g> ![h](i) &lt;"
)


def shapes(card: str) -> list[str]:
    """The kinds of parts that a reader of Markdown makes of a card, without its text."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(card)
    flat = [part for token in tokens for part in (token, *(token.children or []))]
    return [token.type for token in flat if token.type not in ("text", "text_special")]


@pytest.mark.parametrize(
    ("table", "key"),
    [(0, key) for key in ("student", "student_sha256", "val_data", "held_out")]
    + [(1, key) for key in ("teacher", "teacher_sha256", "promise", "promise_level")],
)
def test_what_a_forged_run_says_stays_text_in_the_card(run: Path, table: int, key: str) -> None:
    told = [json.loads((run / name).read_text()) for name in ("summary.json", "manifest.json")]
    plain = shapes(card_of(run, *told))
    assert "html_inline" not in plain and "link_open" not in plain
    told[table][key] = FOREIGN
    with suppress(TypeError, ValueError):  # of a number that is none: "damaged"
        assert shapes(card_of(run, *told, FOREIGN, "b")) == plain


def test_a_forged_finding_stays_text_in_the_card(run: Path) -> None:
    told = [json.loads((run / name).read_text()) for name in ("summary.json", "manifest.json")]
    told[0]["findings"] = [{"seen": "a", "remedy": "b", "serious": True}, "c", None]
    plain = shapes(card_of(run, *told))
    told[0]["findings"][0] = {"seen": FOREIGN, "remedy": FOREIGN, "serious": FOREIGN}
    assert shapes(card_of(run, *told)) == plain


@pytest.mark.slow
def test_a_failed_export_leaves_nothing_and_a_repeated_one_goes_elsewhere(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    with monkeypatch.context() as patched:
        patched.setattr(torch.export, "export", refuses)
        text = failing(capsys, "export", str(run), "--format", "safetensors,pt2", "--quiet")
    assert "student.pt2: this student cannot be exported this way: 'no such operator'" in text
    assert not (run / "export").exists()
    for name in ("export", "export-2"):
        main(["export", str(run), "--format", "safetensors", "--quiet"])
        assert (run / name / "README.md").is_file()
    copy = tmp_path / "damaged"
    copy.mkdir()
    for name in ("student.safetensors", "manifest.json"):
        (copy / name).write_bytes((run / name).read_bytes())
    (copy / "summary.json").write_text("{}")
    assert "is damaged" in failing(capsys, "export", str(copy))


def test_an_onnx_file_tells_what_it_is(run: Path, exported: dict[str, Any]) -> None:
    import onnxruntime

    summary = json.loads((run / "summary.json").read_text())
    for name in ("student.onnx", "student.int8.onnx"):
        session = onnxruntime.InferenceSession(str(Path(exported["folder"]) / name))
        told = session.get_modelmeta().custom_metadata_map
        assert json.loads(told["classes"]) == [str(k) for k in range(10)]
        assert (told["channels"], told["height"], told["width"]) == ("1", "16", "16")
        assert told["range"] == "float32 0..1" and told["layout"] == "NCHW"
        assert told["student_sha256"] == summary["student_sha256"]
        assert len(told["teacher_sha256"]) == 64 and told["synthkd_version"]
    assert (Path(exported["folder"]) / "classes.txt").read_text().split() == list("0123456789")


def test_the_lines_in_the_card_run_and_answer_as_predict_does(
    run: Path, exported: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = Path(exported["folder"])
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    shutil.copytree(folder, tmp_path / "out")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8))
    image.save(tmp_path / "out" / "image.png")
    told = json.loads(said(capsys, "predict", str(run), str(tmp_path / "out/image.png"), "--json"))
    monkeypatch.chdir(tmp_path / "out")
    exec(compile(code, "README.md", "exec"), {})
    name, share = capsys.readouterr().out.split()
    best = told[0]["classes"][0]
    assert name == best["name"] and float(share) == pytest.approx(best["probability"], abs=1e-3)


def test_integers_are_shown_with_their_truth(run: Path, exported: dict[str, Any]) -> None:
    from synthkd.data.sources import load_images

    (small,) = [f for f in exported["files"] if f["truth"]]
    truth = small["truth"]
    assert small["name"] == "student.int8.onnx" and truth["use"] == exported["use"]
    assert truth["calibrated"].endswith("synthetic images of the run")
    assert truth["scored"]["images"] == 539
    student, _ = load_classifier(StudentTable(spec=str(run)), TeacherTable())
    images = load_images("demo:unseen", student.spec, classes=10, labelled=True)
    with torch.no_grad():
        votes = student.eval()(to_float(images.pixels)).argmax(1)
    assert images.labels is not None
    right = float((votes == images.labels).float().mean())
    assert truth["scored"]["float_accuracy"] == pytest.approx(right)
    card = (Path(exported["folder"]) / "README.md").read_text()
    assert f"**Use {truth['use']}**" in card and "on 539 labelled images" in card
    assert exported["measured"][0]["runtime"].startswith("ONNX Runtime ")
    assert exported["measured"][0]["machine"] in card


def test_a_run_keeps_some_of_its_images_with_the_teachers_votes(run: Path) -> None:
    from synthkd.data.sources import load_images
    from synthkd.specs import load_teacher

    teacher = load_teacher(TeacherTable())
    kept = load_images(str(run / "calibration.npz"), teacher.spec, classes=10, labelled=True)
    assert 64 <= len(kept.pixels) <= 512 and kept.labels is not None
    votes = teacher(to_float(kept.pixels)).argmax(1)
    assert float((votes == kept.labels).float().mean()) > 0.98  # they were seen in bfloat16


@pytest.mark.parametrize(
    ("speed", "named", "lost", "use", "words"),
    [
        (0.4, 10, None, False, "2.5 times slower"),
        (3.0, 10, None, True, "3.0 times faster here and vote alike on 100.0%"),
        (3.0, 1, None, False, "names one class whatever it is shown"),
        (3.0, 10, 0.013, False, "1.3 points worse"),
        (3.0, 10, -0.02, True, "2.0 points better"),
        (1.05, 10, 0.0, False, "no faster here and no worse"),
    ],
)
def test_integers_are_advised_only_where_they_are_faster_and_no_worse(
    speed: float, named: int, lost: float | None, use: bool, words: str
) -> None:
    parity = Parity(500, 0.1, 1.0, 1.0, 1.0, named)
    found = None if lost is None else Scored(500, 0.9 - lost, 0.9, 0.99)
    assert chosen(speed, parity, found)[0] == use and words in chosen(speed, parity, found)[1]


@pytest.mark.slow
@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("bytes_in", [False, True])
def test_bytes_go_in_and_probabilities_come_out(
    run: Path, tmp_path: Path, independent: bool, bytes_in: bool
) -> None:
    import onnxruntime

    student, _ = load_classifier(StudentTable(spec=str(run)), TeacherTable())
    kind = "multilabel-logits" if independent else "logits"
    student = Classifier(student.body, student.spec, 10, kind).eval().requires_grad_(False)
    network = Shipped(student, bytes_in=bytes_in, probabilities=True)
    to_onnx(network, tmp_path / "a.onnx")
    pixels = torch.randint(256, (3, 1, 16, 16), dtype=torch.uint8)
    fed = pixels.numpy() if bytes_in else pixels.numpy().astype(np.float32) / 255
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"))
    assert [out.name for out in session.get_outputs()] == ["probabilities"]
    answer = session.run(None, {"images": fed})[0]
    logits = student(to_float(pixels)).double().numpy()
    odds = np.exp(logits)
    wanted = odds / (1 + odds) if independent else odds / odds.sum(1, keepdims=True)
    np.testing.assert_allclose(answer, wanted, atol=1e-5)


@pytest.mark.slow
def test_an_export_that_takes_bytes_says_so_everywhere(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(["export", str(run), "--format", "pt2", "--uint8-input", "--softmax", "--out", str(out),
          "--quiet"])  # fmt: skip
    told = json.loads((out / "export.json").read_text())
    assert told["input"] == {"shape": [1, 16, 16], "uint8": True}
    assert told["output"] == "probabilities" and "uint8" in (out / "README.md").read_text()
    program = torch.export.load(str(out / "student.pt2")).module()
    answer = program(torch.zeros(2, 1, 16, 16, dtype=torch.uint8))
    torch.testing.assert_close(answer.sum(1), torch.ones(2))
    text = failing(capsys, "export", str(run), "--format", "safetensors", "--softmax")
    assert "--softmax is for graphs" in text
    assert "add --int8" in failing(capsys, "export", str(run), "--val-data", "demo:unseen")


def test_a_student_that_names_one_class_is_not_praised(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    copy = Path(shutil.copytree(run, tmp_path / "constant", ignore=lambda *_: ["export"]))
    with safe_open(str(copy / "student.safetensors"), framework="pt") as file:
        header = file.metadata()
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state["linear.bias"][3] += 1e4
    save_file(state, copy / "student.safetensors", metadata=header)
    summary = json.loads((copy / "summary.json").read_text())
    summary["student_sha256"] = sha256_of(copy / "student.safetensors")
    (copy / "summary.json").write_text(json.dumps(summary))
    text = said(capsys, "export", str(copy), "--format", "safetensors")
    assert "the student names one of 10 classes on all 1,000 images" in text
    card = (copy / "export" / "README.md").read_text()
    assert "Of 10 classes the student names 1 on these images." in card


CODE = """
import numpy as np
from torch import nn


def student(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(256, width), nn.ReLU(), nn.Linear(width, 10))


def remote():
    weights = np.random.default_rng(0).normal(size=(256, 10)).astype("float32")
    return lambda images: images.reshape(len(images), -1) @ weights


def of_any_size():
    return lambda images: images.mean((1, 2, 3))[:, None] * np.arange(10.0)
"""


@pytest.mark.slow
def test_a_student_that_is_code_with_arguments_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(CODE)
    spec, out = f"{tmp_path / 'net.py'}:student", str(tmp_path / "run")
    words = [w for w in RUN if w not in ("--student", "resnet8-w4")]
    main([*words, "--student", spec, "--student-args", "width=7", "--trust-code", "--out", out])
    student, _ = load_classifier(StudentTable(spec=out), TeacherTable(), trust_code=True)
    assert student.body[1].out_features == 7
    assert "give --trust-code" in failing(capsys, "predict", out, "x.png")
    said(capsys, "evaluate", "--student", out, "--trust-code", "--run.threads", "1")
    main(["export", out, "--format", "safetensors", "--trust-code", "--quiet"])


@pytest.mark.slow
def test_a_real_black_box_is_distilled_and_its_weights_are_said_to_be_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(CODE)
    words = [
        *RUN[:-1], "--teacher", f"{tmp_path / 'net.py'}:remote", "--trust-code", "--image-size",
        "16", "--channels", "1", "--teacher-mean", "0.5", "--teacher-std", "0.5", "--val-data",
        "demo:unseen",
    ]  # fmt: skip
    text = said(capsys, *words, "--out", str(tmp_path / "run"))
    assert "the teacher's are unknown" in text
    main(["export", str(tmp_path / "run"), "--format", "safetensors", "--quiet"])
    card = (tmp_path / "run" / "export" / "README.md").read_text()
    assert re.search(r"\| parameters \| [\d,]+ \|", card)
    plan = said(capsys, *[w if w != "resnet8-w4" else "auto" for w in words], "--dry-run")
    assert 'spec = "resnet8-w12"' in plan


@pytest.mark.slow
def test_a_student_of_a_run_keeps_its_images_and_its_promise(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "real", tmp_path / "again"
    words = [w for w in RUN if w not in ("--student", "resnet8-w4")]
    main([*words, "--student", str(run), "--mix-ratio", "0.5", "--real-data", "demo:seen",
          "--out", str(first)])  # fmt: skip
    main([*words, "--student", str(first), "--out", str(second)])
    levels = [json.loads((p / "manifest.json").read_text())["promise_level"]
              for p in (run, first, second)]  # fmt: skip
    assert levels == [0, 2, 2]
    other = tmp_path / "other"  # what this demo is to another teacher, it is not to itself
    main([*words, "--teacher", str(run), "--student", "demo", "--out", str(other)])
    assert json.loads((other / "manifest.json").read_text())["promise_level"] == 3
    (tmp_path / "net.py").write_text(CODE)
    text = failing(
        capsys, *words, "--student", str(run), "--teacher", f"{tmp_path / 'net.py'}:of_any_size",
        "--trust-code", "--image-size", "24", "--channels", "1", "--teacher-mean", "0.5",
        "--teacher-std", "0.5", "--out", str(tmp_path / "other"),
    )  # fmt: skip
    assert "takes images of 1 x 16 x 16, the teacher of 1 x 24 x 24" in text


def test_predictions_are_the_students(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student, _ = load_classifier(StudentTable(spec=str(run)), TeacherTable())
    images = to_uint8(torch.rand(2, *student.spec.shape))
    for i, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i}.png")
    files = [str(tmp_path / f"{i}.png") for i in range(2)]
    found = json.loads(said(capsys, "predict", str(run), *files, "--json", "--top", "10"))
    with torch.no_grad():
        shares = student.eval()(to_float(images)).softmax(1)
    for one, row in zip(found, shares, strict=True):
        told = {c["class"]: c["probability"] for c in one["classes"]}
        assert list(told.values()) == sorted(told.values(), reverse=True)
        np.testing.assert_allclose([told[k] for k in range(10)], row.numpy(), atol=1e-5)
    table = said(capsys, "predict", str(run), files[0])
    assert len(re.findall(r"\d%", table)) == 3
    assert "needs images" in failing(capsys, "predict", str(run))
    assert "missing.png" in failing(capsys, "predict", str(run), "missing.png")


@pytest.mark.slow
def test_the_card_of_a_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    card = json.loads(said(capsys, "inspect", "demo", "--json", "--run.threads", "1"))
    assert (card["parameters"], card["classes"], card["batchnorm_layers"]) == (172_218, 10, 13)
    assert card["input"] == {
        "channels": 1, "height": 16, "width": 16, "mean": card["input"]["mean"],
        "std": card["input"]["std"],
    }  # fmt: skip
    assert card["operations_per_image"] > 1e6 and card["seconds_per_10000_answers"] > 0
    assert card["warnings"] == []
    assert any("BatchNorm" in reason for reason in card["plan"])
    text = said(capsys, "inspect", "demo", "--run.threads", "1")
    assert "172,218 parameters" in text and "refine" in text


@pytest.mark.slow
def test_suspicious_teachers_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    from synthkd.networks import build_network
    from synthkd.specs import load_teacher

    contract = shlex.split("--image-size 16 --channels 1 --run.threads 1 --json")
    torch.manual_seed(0)
    fresh = build_network("resnet8-w4", channels=1, size=16, classes=10)
    save_file(fresh.state_dict(), tmp_path / "fresh.safetensors")
    card = json.loads(said(
        capsys, "inspect", "resnet8-w4", "--teacher-weights", str(tmp_path / "fresh.safetensors"),
        "--teacher-mean", "0.5", "--teacher-std", "0.5", *contract,
    ))  # fmt: skip
    assert any("initial statistics" in line for line in card["warnings"])

    demo = load_teacher(TeacherTable())
    state = {k: v.contiguous() for k, v in demo.classifier.body.state_dict().items()}
    save_file(state, tmp_path / "demo.safetensors")
    flags = ["inspect", "resnet14", "--teacher-weights", str(tmp_path / "demo.safetensors")]
    right = [f"--teacher-mean={demo.spec.mean[0]}", f"--teacher-std={demo.spec.std[0]}"]
    card = json.loads(said(capsys, *flags, *right, *contract))
    assert card["warnings"] == []
    wrong = ["--teacher-mean=0", "--teacher-std=0.003921569"]
    card = json.loads(said(capsys, *flags, *wrong, *contract))
    assert any("fits" in line and "check --teacher-mean" in line for line in card["warnings"])


@pytest.mark.slow
def test_auto_is_the_largest_within_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    from synthkd.specs import load_teacher
    from synthkd.students.auto import best_student

    teacher = load_teacher(TeacherTable())
    free = best_student(StudentTable(spec="auto"), teacher)
    assert free.name == "resnet8-w12" and free.params <= 172_218 // 4
    tight = best_student(StudentTable(spec="auto", max_params=25_000), teacher)
    assert tight.name == "resnet8-w8" and tight.params <= 25_000
    flops = best_student(StudentTable(spec="auto", max_flops=tight.flops), teacher)
    assert flops.flops <= tight.flops
    text = failing(capsys, "distill", "--student", "auto", "--max-params", "10")
    assert "no network of ours is within these limits; the smallest, resnet8-w4" in text
    plan = said(capsys, "distill", "--student", "auto", "--dry-run")
    assert 'spec = "resnet8-w12"' in plan


@pytest.mark.slow
def test_a_black_box_is_distilled_by_its_answers(tmp_path: Path) -> None:
    for access in ("logits", "labels"):
        out = tmp_path / access
        main([*shlex.split(
            "distill --student resnet8-w4 --images-seen 512 --training.batch 64 --run.threads 1 "
            "--quiet --stage.draw.fresh 256 --memory.capacity 500 --training.repeats 1"
        ), "--teacher-access", access, "--out", str(out)])  # fmt: skip
        summary = json.loads((out / "summary.json").read_text())
        assert summary["teacher_access"] == access
        assert summary["teacher_queries"] >= summary["images_seen"] + summary["images_synthesized"]
        manifest = json.loads((out / "manifest.json").read_text())
        assert any("black box" in line for line in manifest["plan"])
    recipe = (tmp_path / "labels" / "recipe.toml").read_text()
    assert "temperature = 1.0" in recipe


def test_a_generator_that_wants_gradients_is_refused_by_a_black_box(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = failing(capsys, "distill", "--pipeline", "gan", "--teacher-access", "logits")
    assert "follows gradients through the teacher" in text
