"""Cards, read back as Hugging Face reads them; what a stranger wrote stays text, in header and
body; what is given away names no folder of this machine."""

import io
import json
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import DatasetCard, ModelCard
from short_runs import main, status

from synthkd.cards import text
from synthkd.cards.data import data_card, size_category
from synthkd.cards.model import run_card
from synthkd.core.privacy import STATEMENT
from synthkd.data.store import open_store
from synthkd.recipe import StudentTable, TeacherTable
from synthkd.specs import load_classifier

ROOT = Path(__file__).parent.parent
RUN = shlex.split(
    "distill --pipeline noise --student resnet8-w4 --images-seen 256 --training.batch 64 "
    "--run.threads 1 --quiet --val-data demo:unseen"
)
HOSTILE = (
    "a\nb", "---\nlicense: mit\n---", 'x: "y"', "<script>alert(1)</script>", "a|b", "é ☃ 😀",
    "null", "1e5", "\x07\x1b[31m", "\u2028\u0085", "\ud800", "\\", "'", "{[]}", "# &amp; *", "",
    "- !!python/object:os.system", "%TAG", "@`", "[a](javascript:b)", "~~~", "$$", "www.x.y",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("cards") / "run"
    main([*RUN, "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("cards") / "set"
    main(["generate", "--pipeline", "noise", "--count", "30", "--run.threads", "1", "--quiet",
          "--out", str(folder)])  # fmt: skip
    return folder


def told(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Summary and manifest."""
    summary, manifest = (
        json.loads((run / name).read_text()) for name in ("summary.json", "manifest.json")
    )
    return summary, manifest


# --- the header


def test_strings_of_a_header_come_back_as_they_were() -> None:
    data = {"key": list(HOSTILE), "names": {str(k): s for k, s in enumerate(HOSTILE)}, "n": 0.5,
            "small": 1e-5, "many": 123_456, "sure": True, "none": None}  # fmt: skip
    card = text.header(data)
    assert card.startswith("---\n") and card.endswith("\n---")
    inside = yaml.safe_load(card.removeprefix("---\n").removesuffix("\n---"))
    wanted = [s.replace("\ud800", "\ufffd") for s in HOSTILE]
    assert inside["key"] == wanted
    assert inside["names"] == {str(k): s for k, s in enumerate(wanted)}
    assert (inside["n"], inside["small"], inside["many"], inside["sure"]) == (
        0.5,
        1e-5,
        123456,
        True,
    )
    assert "none" not in inside
    assert len(card.splitlines()) == len(inside) + 2  # each key on one line of its own
    card.encode()  # what is written to a file


def test_numbers_that_are_none_are_null() -> None:
    assert yaml.safe_load(text.header({"a": float("nan")}).split("\n")[1]) == {"a": None}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_foreign_text_has_no_part_of_markdown_in_it(hostile: str) -> None:
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    card = "\n".join(text.table({"a": text.plain(hostile), "b": "c"}))
    tokens = reader.parse(card)
    flat = [part.type for token in tokens for part in (token, *(token.children or []))]
    plain = reader.parse("\n".join(text.table({"a": "x", "b": "c"})))
    assert [kind for kind in flat if not kind.startswith("text")] == [
        part.type for token in plain for part in (token, *(token.children or []))
        if not part.type.startswith("text")
    ]  # fmt: skip
    card.encode()


# --- the student


def test_a_finished_run_has_a_card_that_hugging_face_reads(run: Path) -> None:
    summary, manifest = told(run)
    card = ModelCard.load(run / "README.md")
    assert card.data.to_dict()["library_name"] == "synthkd" and card.data.license is None
    assert card.data.pipeline_tag == "image-classification" and card.data.metrics == ["accuracy"]
    assert card.data.model_name == "resnet8-w4" and "data-free" in card.data.tags
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found["accuracy"] == pytest.approx(summary["student_accuracy"], abs=1e-6)
    assert found["agreement"] == pytest.approx(summary["agreement"], abs=1e-6)
    assert card.data.eval_results[0].dataset_name == "demo:unseen"
    assert card.text.count(STATEMENT) == 1
    for said in (
        f"{summary['student_accuracy']:.2%} on 539 images of demo:unseen",
        f"a constant classifier {summary['constant_accuracy']:.2%}",
        summary["student_sha256"], manifest["teacher_sha256"], manifest["recipe_sha256"],
        "| real images read | 0 |", "256, 100.0% synthetic", "Energy and emissions were not",
        "Tested on 539 images of demo:unseen, and on no others",
    ):  # fmt: skip
        assert said in card.text, said
    assert manifest["derived_from"] == manifest["teacher_sha256"]


def test_a_student_that_was_not_scored_claims_no_figure(run: Path) -> None:
    summary, manifest = told(run)
    student, _ = load_classifier(StudentTable(spec=str(run)), TeacherTable())
    gone = {key: value for key, value in summary.items() if not key.startswith("val_")}
    gone |= {"student_accuracy": None, "teacher_accuracy": None, "agreement": None}
    card = ModelCard(run_card(gone, manifest, ["a"] * 10, student))
    assert card.data.eval_results is None and card.data.metrics is None
    assert "| accuracy | not measured |" in card.text
    assert "Not tested on any real image" in card.text


def blocks(card: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", card, re.DOTALL)


@pytest.mark.slow
def test_the_lines_of_the_run_s_card_load_the_student_and_repeat_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    card = (run / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(run)
    (code,) = blocks(card, "python")
    space: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), space)
    assert space["student"](space["images"]).shape == (1, 10)
    capsys.readouterr()
    (line,) = blocks(card, "sh")
    words = shlex.split(line)[1:]
    main([*words[:-1], str(tmp_path / "again"), "--quiet"])
    again, first = (
        p.joinpath("student.safetensors").read_bytes() for p in (tmp_path / "again", run)
    )
    assert again == first


def test_a_student_of_code_says_so_in_the_line_that_loads_it(run: Path) -> None:
    summary, manifest = told(run)
    student, _ = load_classifier(StudentTable(spec=str(run)), TeacherTable())
    names = ["a"] * 10
    card = run_card(summary | {"student": "/home/ann/net.py:small"}, manifest, names, student)
    assert 'load_student(".", trust_code=True)' in card and "/home" not in card
    card = run_card(summary | {"student": "<Net>"}, manifest, names, student)
    assert 'load_student(".", network=network)' in card


def test_hostile_names_stay_in_their_place(run: Path) -> None:
    summary, manifest = told(run)
    student, _ = load_classifier(StudentTable(spec=str(run)), TeacherTable())
    for hostile in HOSTILE:
        card = ModelCard(run_card(
            summary | {"student": hostile, "val_data": hostile, "promise": hostile},
            manifest | {"teacher": hostile, "promise": hostile, "platform": hostile, "gpu": hostile,
                        "versions": {hostile: hostile}, "stages": [{"name": hostile}]},
            [hostile] * 10, student,
        ))  # fmt: skip
        assert set(card.data.to_dict()) == {
            "library_name", "pipeline_tag", "tags", "metrics", "model-index"
        }  # fmt: skip
        assert "<script>" not in card.text and card.text.count(STATEMENT) == 1


# --- nothing of this machine


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its name; an archive's members one by one."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        found[path.name] = data
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                found |= {f"{path.name}:{n}": archive.read(n) for n in archive.namelist()}
    return found


@pytest.mark.slow
def test_an_export_names_no_folder_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher, validation data and --out are given by absolute paths."""
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    import numpy as np
    from safetensors.torch import save_file

    from synthkd.data.sources import demo_digits
    from synthkd.specs import load_teacher

    monkeypatch.chdir(tmp_path)
    pixels, labels, unseen = demo_digits()
    np.savez(tmp_path / "val.npz", x=pixels[:, 0].numpy()[unseen], y=labels.numpy()[unseen])
    teacher = load_teacher(TeacherTable())
    weights = {k: v.contiguous() for k, v in teacher.classifier.body.state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    (tmp_path / "net.py").write_text(
        "from synthkd.networks import build_network\n\n\n"
        "def make():\n    return build_network('resnet14', channels=1, size=16, classes=10)\n"
    )
    words = [word for word in RUN if word not in ("--val-data", "demo:unseen")]
    main([
        *words, "--teacher", f"{tmp_path}/net.py:make", "--teacher-weights",
        f"{tmp_path}/weights.safetensors", "--trust-code", "--image-size", "16", "--channels", "1",
        f"--teacher-mean={teacher.spec.mean[0]}", f"--teacher-std={teacher.spec.std[0]}",
        "--val-data", f"{tmp_path}/val.npz", "--out", f"{tmp_path}/run",
    ])  # fmt: skip
    out = tmp_path / "shipped"
    main(["export", f"{tmp_path}/run", "--format", "safetensors,onnx,pt2", "--int8", "--val-data",
          f"{tmp_path}/val.npz", "--out", str(out), "--license", "cc-by-4.0",
          "--quiet"])  # fmt: skip
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert "net.py:make" in card.text and "val.npz" in card.text
    given_away = contents(out) | {"the run's card": (tmp_path / "run/README.md").read_bytes()}
    assert len(given_away) > 8
    places = {str(tmp_path), str(ROOT), str(Path(torch.__file__).parents[2]), str(Path.home())}
    for name, data in given_away.items():
        assert [place for place in places - {"/"} if place.encode() in data] == [], name
    assert str(tmp_path) in (tmp_path / "run" / "manifest.json").read_text()  # so it was given


@pytest.mark.slow
def test_a_student_of_code_by_an_absolute_path_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\n"
        "def small():\n    return nn.Sequential(nn.Flatten(), nn.Linear(256, 10))\n"
    )
    words = [word for word in RUN if word != "resnet8-w4"]
    words.insert(words.index("--student") + 1, f"{tmp_path}/net.py:small")
    main([*words, "--trust-code", "--out", str(tmp_path / "run")])
    main(["export", str(tmp_path / "run"), "--format", "safetensors", "--trust-code", "--quiet"])
    found = json.loads((tmp_path / "run/export/export.json").read_text())["findings"]
    assert "names-a-path" in [finding["code"] for finding in found]
    capsys.readouterr()


@pytest.mark.parametrize("name", ["MIT licence", "a\nb", "-x", "é"])
def test_a_licence_is_a_short_name(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("export", str(run), f"--license={name}", "--format", "safetensors") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --license ") and said.count("\n") == 1
    assert not (run / "export").exists()


# --- the data set


def test_a_data_set_has_a_card_that_hugging_face_reads(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    card = DatasetCard.load(made / "README.md")
    data = card.data.to_dict()
    assert data["size_categories"] == ["n<1K"] and data["task_categories"] == [
        "image-classification"
    ]
    assert "synthetic" in data["tags"] and "license" not in data
    image, label = data["dataset_info"]["features"]
    assert image == {"name": "image", "dtype": "image"}
    folders = sorted(path.name for path in made.iterdir() if path.is_dir())
    assert list(label["dtype"]["class_label"]["names"].values()) == folders
    (split,) = data["dataset_info"]["splits"]
    assert split == {"name": "train", "num_examples": manifest["count"]}
    pattern = data["configs"][0]["data_files"][0]["path"]
    assert len(list(made.glob(pattern))) == manifest["count"]  # no contact sheet among them
    assert card.text.count(STATEMENT) == 1 and manifest["teacher_sha256"] in card.text
    assert manifest["derived_from"] == manifest["teacher_sha256"]


def test_the_lines_of_its_card_load_it(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (made / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(made)
    first, second = blocks(card, "python")
    space: dict[str, Any] = {}
    exec(compile(first + second, "README.md", "exec"), space)
    assert len(space["data"]) == len(space["folder"]) == len(open_store(made))
    assert capsys.readouterr().out.startswith("torch.Size")


@pytest.mark.parametrize("folders", [False, True])
def test_hostile_class_names_of_a_data_set_stay_in_their_place(made: Path, folders: bool) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    names = list(HOSTILE)
    told = manifest | {
        "names": names, "classes": len(names), "per_class": [1] * len(names),
        "teacher": "/home/ann/x: |<script>\n---\n", "promise": HOSTILE[1],
        "findings": [{"seen": HOSTILE[1], "remedy": HOSTILE[3], "serious": True}],
        "training": {"from": HOSTILE[1], "images": 1, "seconds": 0.0},
    }  # fmt: skip
    card = DatasetCard(data_card(told, names if folders else ()))
    found = card.data.to_dict()["dataset_info"]["features"][1]["dtype"]["class_label"]["names"]
    assert list(found.values()) == [name.replace("\ud800", "\ufffd") for name in names]
    assert ("configs" in card.data.to_dict()) == folders
    assert "<script>" not in card.text and "/home" not in str(card)


@pytest.mark.parametrize("count", [1, 10, 999, 1000, 9_999, 10_000, 99_999, 10**6, 10**9])
def test_a_size_is_between_the_bounds_of_its_category(count: int) -> None:
    units = {"K": 10**3, "M": 10**6, "B": 10**9}
    low, _, high = size_category(count).rpartition("<n<") if "<n<" in size_category(count) else (
        "0", "", size_category(count).removeprefix("n<")
    )  # fmt: skip
    bounds = [int(b[:-1]) * units[b[-1]] if b != "0" else 0 for b in (low, high)]
    assert bounds[0] <= count < bounds[1]
