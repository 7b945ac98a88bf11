"""A data set as tar shards, read by the WebDataset library and by tar."""

import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from huggingface_hub import DatasetCard
from short_runs import main, status

from synthkd.core import files
from synthkd.core.images import ImageSpec
from synthkd.data.store import Store, Writer, open_store

COUNT, CLASSES = 25, 3
NAMES = ("<b>", "a b", "c")
CARD = {
    "teacher": "demo", "teacher_sha256": "0" * 64, "real_images_read": 0, "generator": "noise",
    "seed": 0, "drawn": 30, "agreed_share": 0.9, "training": {"images": 0, "seconds": 0.0},
    "classes_not_filled": {}, "promise_level": 0, "promise": "no real image", "wall_seconds": 1.0,
    "versions": {"synthkd": "0"}, "platform": "", "machine": "", "cpus": 1, "threads": 1,
    "peak_memory_mb": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished set in shards of 10 images."""
    folder: Path = tmp_path_factory.mktemp("tars") / "set"
    channels = request.param
    spec = ImageSpec(channels, 6, 8, (0.5,) * channels, (0.25,) * channels)
    draw = torch.Generator().manual_seed(0)
    with Writer(folder, spec, CLASSES, NAMES, shard=10) as writer:
        pixels = torch.randint(256, (COUNT, *spec.shape), dtype=torch.uint8, generator=draw)
        logits = torch.randn(COUNT, CLASSES, generator=draw)
        writer.add(pixels, torch.arange(COUNT) % CLASSES, logits)
        writer.close(CARD)
    return folder


@pytest.fixture(scope="module")
def tars(made: Path) -> Path:
    main(["export", str(made), "--quiet"])
    return made.with_name("set-webdataset")


def test_the_library_streams_what_the_data_set_holds(made: Path, tars: Path) -> None:
    [line] = re.findall(r"^data = .*", (tars / "README.md").read_text(), re.MULTILINE)
    shards = re.findall(r'"(shard-[^"]+)"', line)[0]
    data = webdataset.WebDataset(str(tars / shards), shardshuffle=False).decode("pil")
    store: Store = open_store(made)
    pixels, seen = store.pixels, 0
    for row, (image, label, logits) in enumerate(data.to_tuple("png", "cls", "logits.npy")):
        wanted = pixels[row].expand(3, -1, -1).permute(1, 2, 0).numpy()
        assert np.array_equal(np.asarray(image.convert("RGB")), wanted)
        assert label == int(store.labels[row])
        assert logits.dtype == np.float16 and np.array_equal(logits, store.logits[row].numpy())
        seen += 1
    assert seen == COUNT


def test_equal_data_sets_make_equal_bytes(made: Path, tars: Path, tmp_path: Path) -> None:
    main(["export", str(made), "--out", str(tmp_path / "again"), "--quiet"])
    told = json.loads((tars / "export.json").read_text())
    assert [shard["count"] for shard in told["shards"]] == [10, 10, 5]
    for shard in told["shards"]:
        assert files.sha256_of(tmp_path / "again" / shard["name"]) == shard["sha256"]
    with tarfile.open(tars / "shard-000001.tar") as tar:
        first = tar.getmembers()[0]
        assert (first.name, first.mtime, first.uid, first.isfile()) == ("00000010.png", 0, 0, True)


def test_the_card_names_the_tars_and_keeps_names_as_text(tars: Path) -> None:
    card = DatasetCard.load(tars / "README.md")
    [config] = card.data.to_dict()["configs"]
    assert config["data_files"] == [{"split": "train", "path": "*.tar"}]
    assert "<b>" not in card.text and "webdataset.WebDataset" in card.text
    assert (tars / "classes.txt").read_text().splitlines() == list(NAMES)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--int8", "--int8 is for a student"), ("--width 0.5", "--width is for a student"),
        ("--format onnx", "is a data set"), ("--out {set}/tars", "would become a class"),
        ("--license NO!", "short name"), ("--out {set}", "not empty"),
    ],
)  # fmt: skip
def test_what_is_for_students_is_refused(
    made: Path, capsys: pytest.CaptureFixture[str], flags: str, words: str
) -> None:
    assert status("export", str(made), *flags.format(set=made).split()) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


@pytest.mark.parametrize(("key", "code"), [("teacher", 0), ("promise", 2)])
def test_a_manifest_may_keep_the_teacher_to_itself(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, code: int
) -> None:
    shutil.copytree(made, tmp_path / "set")
    told = json.loads((made / "manifest.json").read_text())
    del told[key]
    (tmp_path / "set" / "manifest.json").write_text(json.dumps(told))
    assert status("export", str(tmp_path / "set"), "--quiet") == code
    assert capsys.readouterr().err.count("\n") == bool(code)
    assert (tmp_path / "set-webdataset").exists() == (not code)


def test_a_damaged_data_set_is_not_exported(tmp_path: Path) -> None:
    spec = ImageSpec(1, 4, 4, (0.5,), (0.5,))
    with Writer(tmp_path / "set", spec, 2) as writer:
        writer.add(torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]),
                   torch.zeros(4, 2))  # fmt: skip
        writer.close(CARD)
    path = tmp_path / "set" / "shard-00000.images.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert status("export", str(tmp_path / "set")) == 2
    assert not (tmp_path / "set-webdataset").exists()
