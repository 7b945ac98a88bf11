"""`synthkd predict` on folders: every image answered, what cannot be read named, one line each."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthkd.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images in folders, two files that are none, and what systems leave behind."""
    base: Path = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.jpg", "deep/er/c.png", "deep/d.bmp", "=1+1.png"):
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(path)
    (base / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (base / "deep" / "empty.jpg").touch()
    (base / "notes.txt").write_text("no image")
    (base / ".hidden").mkdir()
    (base / ".hidden" / "e.png").write_bytes(b"no")
    return base


def names(found: list[dict[str, str]], base: Path) -> list[str]:
    return [str(Path(one["image"]).relative_to(base)) for one in found]


def test_a_folder_is_read_to_its_depths_and_bad_files_are_named_at_the_end(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    main(["predict", "demo", str(folder), "--json", "--top", "2"])
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert names(found, folder) == ["=1+1.png", "a.jpg", "b.png", "deep/d.bmp", "deep/er/c.png"]
    assert all(len(one["classes"]) == 2 for one in found)
    assert "broken.png" in err and "empty.jpg" in err and "2 of 7 images could not be read" in err
    assert "1 of 1" not in err and "hidden" not in err


def test_a_csv_holds_what_json_says(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    main(["predict", "demo", str(folder), "--json"])
    told = json.loads(capsys.readouterr().out)
    main(["predict", "demo", str(folder), "--csv", str(tmp_path / "a.csv")])
    capsys.readouterr()
    main(["predict", "demo", str(folder), "--csv", "-"])
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "a.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(shown)))
    assert [row["image"] for row in rows] == [one["image"] for one in told]
    for row, one in zip(rows, told, strict=True):
        for rank, best in enumerate(one["classes"], start=1):
            end = str(rank) if rank > 1 else ""
            assert (row[f"class{end}"], row[f"name{end}"]) == (str(best["class"]), best["name"])
            assert float(row[f"probability{end}"]) == pytest.approx(best["probability"], abs=1e-5)


def test_a_cell_is_no_formula_to_a_spreadsheet(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    main(["predict", "demo", "=1+1.png", "--csv", "-"])
    assert capsys.readouterr().out.splitlines()[1].startswith("'=1+1.png,")


@pytest.mark.parametrize("words", [["--data.range", "-1024,3071"], ["--data.range=-1024,3071"]])
def test_black_may_be_a_negative_value(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    main(["predict", "demo", str(folder / "b.png"), *words, "--json"])
    assert len(json.loads(capsys.readouterr().out)) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["broken.png"], "broken.png"),
        (["broken.png", "missing.png"], "(so with 2 files)"),
        ([".hidden"], "e.png"),
        (["empty folder"], "there is no image in this folder"),
        (["b.png", "--csv", "no/such/folder.csv"], "--csv 'no/such/folder.csv'"),
        (["b.png", "--csv", "--json"], "give a file, or - for the screen"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    given: list[str], words: str,
):  # fmt: skip
    monkeypatch.chdir(folder)
    Path("empty folder").mkdir(exist_ok=True)
    with pytest.raises(SystemExit) as stopped:
        main(["predict", "demo", *given])
    text = capsys.readouterr().err
    assert stopped.value.code == 2 and words in text and text.startswith("error: ")
