"""The synthetic data set on disk: what is written is read back, and damage is one clear line."""

import copy
import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec
from synthkd.data import store
from synthkd.data.sources import load_images
from synthkd.data.store import Writer, open_store

SPEC = ImageSpec(3, 8, 6, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
NAMES = ("cat", "dog", "sea lion")


def made(count: int, spec: ImageSpec = SPEC, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Images, the class asked for and logits, of a fixed seed; every class is there."""
    rng = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, *spec.shape), dtype=torch.uint8, generator=rng)
    labels = torch.randperm(count, generator=rng) % classes
    return pixels, labels, torch.randn(count, classes, generator=rng) * 5


def write(out: Path, count: int = 25, batch: int = 7, **options: Any) -> tuple[Tensor, ...]:
    """A small finished set in shards of 10; gives what was put into it."""
    parts = made(count)
    with Writer(out, SPEC, 3, NAMES, **{"shard": 10, **options}) as writer:
        for first in range(0, count, batch):
            writer.add(*(part[first : first + batch] for part in parts))
        writer.close({"seed": 7, "teacher": {"digest": "abc"}})
    return parts


def refused(path: Path, *words: str, verify: bool = False) -> None:
    """Opening is refused in one line that holds these words."""
    with pytest.raises(InputError) as caught:
        open_store(path, verify=verify)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.fixture
def made_set(tmp_path: Path) -> Path:
    write(tmp_path / "set", folders=False)
    return tmp_path / "set"


@pytest.mark.parametrize("folders", [True, False])
@pytest.mark.parametrize("batch", [1, 7, 10, 25])
def test_everything_reads_back_as_it_was_added(tmp_path: Path, batch: int, folders: bool) -> None:
    pixels, labels, logits = write(tmp_path / "set", batch=batch, folders=folders)
    back = open_store(tmp_path / "set", verify=True)
    assert len(back) == 25 and back.classes == 3 and back.names == NAMES and back.spec == SPEC
    assert torch.equal(back.pixels, pixels)
    assert torch.equal(back.labels, labels)
    assert torch.equal(back.logits, logits.half())
    assert [len(shard) for shard in back.shards] == [10, 10, 5]


def test_gather_gives_the_rows_asked_for_across_shards(made_set: Path) -> None:
    back = open_store(made_set)
    rows = torch.tensor([24, 0, 9, 10, 10, 3])
    assert torch.equal(back.gather(rows), back.pixels[rows])
    assert back.gather(rows[:0]).shape == (0, *SPEC.shape)
    with pytest.raises(IndexError):
        back.gather(torch.tensor([25]))
    with pytest.raises(IndexError):
        back.gather(torch.tensor([-1]))


def test_image_folder_opens_it_directly_and_sees_the_same(tmp_path: Path) -> None:
    pixels, labels, logits = write(tmp_path / "set")
    folder = ImageFolder(str(tmp_path / "set"))
    assert folder.classes == ["0-cat", "1-dog", "2-sea_lion"]
    assert len(folder) == 25
    back = open_store(tmp_path / "set")
    for (path, label), (image, _) in zip(folder.samples, folder, strict=True):
        row = int(Path(path).stem)
        assert label == labels[row]
        assert np.array_equal(np.asarray(image), pixels[row].permute(1, 2, 0).numpy())
        assert torch.equal(back.logits[row], logits[row].half())


def test_our_class_folder_reader_sees_the_same_in_the_pictures_alone(tmp_path: Path) -> None:
    pixels, labels, _ = write(tmp_path / "set")
    for file in (tmp_path / "set").iterdir():
        if file.is_file():
            file.unlink()
    view = load_images(str(tmp_path / "set"), SPEC, classes=3, labelled=True)
    order = torch.tensor(sorted(range(25), key=lambda row: (int(labels[row]), row)))
    assert torch.equal(view.pixels, pixels[order])
    assert view.labels is not None and torch.equal(view.labels, labels[order])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures_keep_every_number_of_channels(tmp_path: Path, channels: int) -> None:
    spec = ImageSpec(channels, 8, 6, (0.0,) * channels, (1.0,) * channels)
    pixels, labels, logits = made(4, spec)
    with Writer(tmp_path / "set", spec, 3) as writer:
        writer.add(pixels, labels, logits)
        writer.close({})
    for row in range(4):
        path = tmp_path / "set" / str(int(labels[row])) / f"{row:08d}.png"
        with Image.open(path) as picture:
            array = np.asarray(picture).reshape(8, 6, channels)
        assert np.array_equal(array, pixels[row].permute(1, 2, 0).numpy())


def test_a_class_without_images_moves_no_other_class(tmp_path: Path) -> None:
    pixels, _, logits = made(6)
    labels = torch.tensor([0, 2, 0, 2, 2, 0])
    with Writer(tmp_path / "set", SPEC, 3, NAMES) as writer:
        writer.add(pixels, labels, logits)
        writer.close({})
    assert open_store(tmp_path / "set").manifest["empty_classes"] == [1]
    with pytest.raises(FileNotFoundError, match="1-dog"):
        ImageFolder(str(tmp_path / "set"))
    folder = ImageFolder(str(tmp_path / "set"), allow_empty=True)
    assert [label for _, label in folder.samples] == sorted(labels.tolist())


def test_folders_of_many_classes_sort_as_their_indices() -> None:
    folders = [store.class_folder(i, 120, name) for i, name in enumerate(["z", "a"] * 60)]
    assert folders == sorted(folders) and len(set(folders)) == 120


def test_class_names_of_strangers_stay_inside_the_folder(tmp_path: Path) -> None:
    names = ("../../up", "a/b\x1b[31m", "x" * 300)
    with Writer(tmp_path / "set", SPEC, 3, names) as writer:
        writer.add(*made(3))
        writer.close({})
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    folders = sorted(path.name for path in (tmp_path / "set").iterdir() if path.is_dir())
    assert folders == ["0-_up", "1-a_b_31m", "2-" + "x" * 40]
    assert open_store(tmp_path / "set").names == names


def test_the_manifest_counts_hashes_and_carries_the_callers_entries(tmp_path: Path) -> None:
    _, labels, _ = write(tmp_path / "set")
    data = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert (data["format"], data["version"], data["count"]) == ("synthkd.images", 1, 25)
    assert data["per_class"] == [labels.tolist().count(label) for label in range(3)]
    assert data["spec"] == {
        "channels": 3,
        "height": 8,
        "width": 6,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.2],
    }
    assert data["seed"] == 7 and data["teacher"] == {"digest": "abc"}
    for index, shard in enumerate(data["shards"]):
        for part in ("images", "labels", "logits"):
            content = (tmp_path / "set" / f"shard-{index:05d}.{part}.npy").read_bytes()
            assert shard[part] == hashlib.sha256(content).hexdigest()


def test_the_shards_are_plain_npy_files(made_set: Path) -> None:
    images = np.load(made_set / "shard-00001.images.npy", allow_pickle=False)
    assert images.shape == (10, 3, 8, 6) and images.dtype == np.uint8


def test_the_contact_sheet_has_a_row_for_each_class(tmp_path: Path) -> None:
    write(tmp_path / "set")
    with Image.open(tmp_path / "set" / "contact_sheet.png") as sheet:
        assert sheet.size == (2 * (10 * (6 + 2) + 2), 2 * (3 * (8 + 2) + 2))


def test_the_contact_sheet_shows_the_first_images_of_each_class(tmp_path: Path) -> None:
    pixels, labels, _ = write(tmp_path / "set", batch=3)
    with Image.open(tmp_path / "set" / "contact_sheet.png") as sheet:
        shown = np.asarray(sheet)[::2, ::2]  # zoom 2
    for label in range(3):
        first = pixels[(labels == label).nonzero()[1, 0]].permute(1, 2, 0).numpy()
        top, left = 2 + label * 10, 2 + 1 * 8
        assert np.array_equal(shown[top : top + 8, left : left + 6], first)


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, batch=5 if name == "a" else 9)
    files = [
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")}
        for name in ("a", "b")
    ]
    assert files[0] == files[1]


def test_labels_read_as_data_are_the_classes_asked_for(made_set: Path) -> None:
    images = load_images(str(made_set), SPEC, classes=3, labelled=True)
    assert images.labels is not None
    assert torch.equal(images.labels, open_store(made_set).labels)
    assert images.names == NAMES
    with pytest.raises(InputError, match="3 classes"):
        load_images(str(made_set), SPEC, classes=4, labelled=True)


def test_logits_beyond_half_precision_are_cut_to_its_range(tmp_path: Path) -> None:
    pixels, labels, logits = made(3)
    logits[0, 0], logits[1, 1] = 1e6, float("-inf")
    with Writer(tmp_path / "set", SPEC, 3) as writer:
        writer.add(pixels, labels, logits)
        writer.close({})
    back = open_store(tmp_path / "set").logits
    assert back.isfinite().all() and back[0, 0] == 65504 and back[1, 1] == -65504


# What the writer refuses


def test_without_close_there_is_no_data_set(tmp_path: Path) -> None:
    with Writer(tmp_path / "set", SPEC, 3, shard=10) as writer:
        writer.add(*made(25))
    assert store.is_store(tmp_path / "set")
    refused(tmp_path / "set", "unfinished")
    with pytest.raises(InputError, match="unfinished"):  # and not half of it as class folders
        load_images(str(tmp_path / "set"), SPEC, classes=3, labelled=True)


def test_a_folder_that_holds_folders_or_a_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="checkpoints"):
        Writer(tmp_path / "a", SPEC, 3)
    write(tmp_path / "b", folders=False)
    with pytest.raises(InputError, match="already there"):
        Writer(tmp_path / "b", SPEC, 3)
    (tmp_path / "c").write_text("a file")
    with pytest.raises(InputError, match="cannot be written"):
        Writer(tmp_path / "c", SPEC, 3)


def test_wrong_batches_are_refused(tmp_path: Path) -> None:
    pixels, labels, logits = made(4)
    writer = Writer(tmp_path / "set", SPEC, 3)
    for wrong in (
        (pixels.float(), labels, logits),
        (pixels[:, :, 1:], labels, logits),
        (pixels[1:], labels, logits),
        (pixels, labels - 1, logits),
        (pixels, labels + 1, logits),
        (pixels, labels, logits[:, 1:]),
        (pixels, labels, logits * float("nan")),
    ):
        with pytest.raises(ValueError):
            writer.add(*wrong)
    with pytest.raises(ValueError, match="without images"):
        writer.close({})
    writer.add(pixels, labels, logits)
    with pytest.raises(ValueError, match="count"):
        writer.close({"count": 3})


def test_a_full_disk_is_one_line_and_leaves_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left") as caught:
        write(tmp_path / "set")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set" / "manifest.json").exists()


# Damage


def test_a_folder_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such")
    refused(tmp_path, "no manifest.json")
    for text in ("{", "[1]", "[" * 100_000, '{"count": 1}', "\x00"):
        (tmp_path / "manifest.json").write_text(text)
        refused(tmp_path, "manifest.json")
        assert not store.is_store(tmp_path)


def test_a_newer_version_is_named(made_set: Path) -> None:
    data = json.loads((made_set / "manifest.json").read_text())
    (made_set / "manifest.json").write_text(json.dumps({**data, "version": 2}))
    refused(made_set, "version '2'", "newer synthkd")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("count", 24),
        ("count", -1),
        ("count", True),
        ("count", 1e400),
        ("classes", 4),
        ("names", 5),
        ("per_class", [25, 0, 0]),
        ("per_class", None),
        ("spec", {}),
        ("spec", {"channels": 3, "height": 8, "width": 10**12, "mean": [], "std": []}),
        ("shards", []),
        ("shards", [{"count": 25}]),
        ("shards", "shard"),
    ],
)
def test_a_damaged_manifest_is_one_line(made_set: Path, key: str, value: object) -> None:
    data = json.loads((made_set / "manifest.json").read_text())
    (made_set / "manifest.json").write_text(json.dumps({**data, key: value}))
    refused(made_set)


def test_a_missing_a_short_a_long_and_a_strange_shard_are_one_line_each(made_set: Path) -> None:
    file = made_set / "shard-00001.images.npy"
    content = file.read_bytes()
    file.unlink()
    refused(made_set, file.name, "missing")
    for wrong in (
        content[:-1],
        content[:40],
        b"",
        content + b"x",
        b"PK\x03\x04" + content,
        b"\x80",
    ):
        file.write_bytes(wrong)
        refused(made_set, file.name)
    np.save(file, np.zeros((10, 3, 8, 6), dtype=np.float32))
    refused(made_set, file.name, "float32")
    np.save(file, np.array([{"a": 1}] * 10), allow_pickle=True)
    refused(made_set, file.name)
    file.unlink()
    os.mkfifo(file)
    refused(made_set, file.name, "not a plain file")


def test_no_broken_header_escapes_as_another_exception(made_set: Path) -> None:
    file = made_set / "shard-00000.labels.npy"
    content = bytearray(file.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(content)
        for place in rng.integers(0, 128, size=3):
            broken[place] = rng.integers(256)
        file.write_bytes(broken)
        try:
            open_store(made_set)
        except InputError as error:
            assert "\n" not in str(error)


def test_a_flipped_bit_is_found_by_verifying_and_when_read_as_data(made_set: Path) -> None:
    file = made_set / "shard-00002.images.npy"
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    open_store(made_set)
    refused(made_set, file.name, "SHA-256", verify=True)
    with pytest.raises(InputError, match="SHA-256"):
        load_images(str(made_set), SPEC, classes=3, labelled=False)


def test_labels_that_do_not_fit_the_manifest_are_refused(made_set: Path) -> None:
    labels = np.load(made_set / "shard-00000.labels.npy")
    np.save(made_set / "shard-00000.labels.npy", np.roll(labels, 1))
    open_store(made_set)  # the same counts: only the hash can tell
    np.save(made_set / "shard-00000.labels.npy", labels * 0)
    refused(made_set, "per_class")
    np.save(made_set / "shard-00000.labels.npy", labels + 3)
    refused(made_set, "0..2")


# Cost


def test_fsyncs_are_three_a_shard_and_two_for_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = 0, os.fsync

    def counted(handle: int) -> None:
        nonlocal calls
        calls += 1
        real(handle)

    monkeypatch.setattr(os, "fsync", counted)
    write(tmp_path / "set", count=95)
    assert calls == 3 * 10 + 2


def test_what_an_interrupted_writer_wrote_last_is_not_kept(tmp_path: Path) -> None:
    """What is made anew may be of other classes."""
    pixels, labels, logits = made(40)
    options: dict[str, Any] = {"shard": 10}
    with Writer(tmp_path / "set", SPEC, 3, NAMES, **options) as writer:
        writer.add(pixels[:15], labels[:15], logits[:15])
        state = copy.deepcopy(writer.state_dict())
        writer.add(pixels[15:40], labels[15:40], logits[15:40])  # and then it was killed
    other = (labels + 1) % 3
    with Writer(tmp_path / "set", SPEC, 3, NAMES, resumed=True, **options) as writer:
        writer.load_state_dict(state)
        writer.prune()
        writer.add(pixels[15:20], other[15:20], logits[15:20])
        writer.close({})
    found = open_store(tmp_path / "set", verify=True)
    assert len(found) == 20 == len(ImageFolder(str(tmp_path / "set")))
    left = sorted(path.name for path in (tmp_path / "set").glob("shard-*.images.npy"))
    assert left == ["shard-00000.images.npy", "shard-00001.images.npy"]
    for path, label in ImageFolder(str(tmp_path / "set")).samples:
        assert int(found.labels[int(Path(path).stem)]) == label


MEMORY = """
import sys, torch
from pathlib import Path
from synthkd.engine.machine import peak_memory_mb
from synthkd.core.images import ImageSpec
from synthkd.data.store import Writer

def peak():
    return peak_memory_mb(torch.device("cpu"))  # not that of the process that started this one

count = int(sys.argv[2])
spec = ImageSpec(3, 32, 32, (0.0,) * 3, (1.0,) * 3)
with Writer(Path(sys.argv[1]), spec, 10, shard=1024) as writer:
    while writer.count < count:
        colours = torch.randint(0, 256, (250, 3, 1, 1), dtype=torch.uint8)
        pixels = colours.expand(250, 3, 32, 32).contiguous()
        writer.add(pixels, torch.arange(250) % 10, torch.randn(250, 10))
        if writer.count == 2000:
            start = peak()
    writer.close({})
print(peak() - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="where /proc tells")
def test_the_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "set"), "20000"],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert float(done.stdout) < 10  # MB; the 18,000 images after the first 2,000 are 55 MB
    assert len(open_store(tmp_path / "set", verify=True)) == 20_000
