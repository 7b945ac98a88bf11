"""Data paths: what each kind gives, and that strangers' files are refused and never run."""

import hashlib
import io
import json
import os
import pickle
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec
from synthkd.data.sources import Images, count_images, demo_digits, load_images

GREY = ImageSpec(1, 8, 8, (0.5,), (0.5,))
COLOUR = ImageSpec(3, 8, 8, (0.5,) * 3, (0.5,) * 3)
SHARED = Path(__file__).parents[2] / "shared" / "data" / "read.py"

rng = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return rng.integers(0, 256, size=shape, dtype=np.uint8)


def load(path: Path | str, spec: ImageSpec | None = COLOUR, **options: Any) -> Images:
    return load_images(str(path), spec, **{"classes": 2, "labelled": True, **options})


def refused(path: Path | str, *words: str, spec: ImageSpec | None = COLOUR, **options: Any) -> None:
    """Loading is refused in one line that holds these words."""
    with pytest.raises(InputError) as caught:
        load(path, spec, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def class_folders(root: Path, suffix: str = "png") -> np.ndarray:
    """Two class folders with three lossless images each; gives them as [6, 8, 8, 3]."""
    arrays = noise(6, 8, 8, 3)
    for i, array in enumerate(arrays):
        folder = root / ("cat", "dog")[i // 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / f"{i}.{suffix}", lossless=True)
    return arrays


# Class folders


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "PNG"])
def test_class_folders_give_pixels_labels_and_names(tmp_path: Path, suffix: str) -> None:
    arrays = class_folders(tmp_path / "set", suffix)
    (tmp_path / "set" / "notes.txt").write_text("not an image")
    (tmp_path / "set" / "cat" / "Thumbs.db").write_text("not an image either")
    (tmp_path / "set" / ".hidden").mkdir()
    images = load(tmp_path / "set")
    assert images.pixels.dtype == torch.uint8
    assert np.array_equal(images.pixels.permute(0, 2, 3, 1).numpy(), arrays)
    assert images.labels is not None and images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.names == ("cat", "dog")
    assert images.source == str(tmp_path / "set")


def test_jpeg_is_read_as_pillow_reads_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "a" / "x.jpg")
    with Image.open(tmp_path / "a" / "x.jpg") as picture:
        expected = np.asarray(picture)
    images = load(tmp_path, classes=1)
    assert np.array_equal(images.pixels[0].permute(1, 2, 0).numpy(), expected)


def test_images_are_fitted_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    sizes = [(8, 8), (20, 12), (5, 7)]
    arrays = [noise(height, width) for height, width in sizes]
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / "a" / f"{i}.png")
    images = load(tmp_path, GREY, classes=1)
    assert images.pixels.shape == (3, 1, 8, 8)
    for array, mine in zip(arrays, images.pixels, strict=True):
        theirs = Image.fromarray(array).resize((8, 8), Image.Resampling.BILINEAR)
        assert np.abs(mine[0].numpy().astype(int) - np.asarray(theirs).astype(int)).max() <= 1


def test_without_a_spec_images_keep_their_size_and_grey_stays_one_channel(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(noise(5, 7)).save(tmp_path / "a" / "0.png")
    assert load(tmp_path, None, classes=1).pixels.shape == (1, 1, 5, 7)
    Image.fromarray(noise(6, 7)).save(tmp_path / "a" / "1.png")
    refused(tmp_path, "1.png", "6x7", "5x7", spec=None, classes=1)
    Image.fromarray(noise(5, 7, 3)).save(tmp_path / "a" / "1.png")
    refused(tmp_path, "1.png", "3 channels", "1 channel", spec=None, classes=1)


def test_sixteen_bit_grey_is_scaled_and_not_cut_off(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    wide = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    Image.fromarray(wide).save(tmp_path / "a" / "0.png")
    expected = (wide / 65535 * 255).round()
    for spec in (GREY, None):
        assert np.array_equal(load(tmp_path, spec, classes=1).pixels[0, 0].numpy(), expected)


def test_a_flat_folder_is_enough_without_labels(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "0.png")
    images = load(tmp_path, labelled=False)
    assert images.labels is None and images.names == ()
    refused(tmp_path, "labels are needed", "one folder per class")


def test_labels_that_do_not_fit_are_left_out_where_none_are_needed(tmp_path: Path) -> None:
    class_folders(tmp_path)
    assert load(tmp_path, labelled=False).labels is not None
    images = load(tmp_path, labelled=False, classes=10)
    assert images.labels is None and images.names == ()


def test_the_number_of_class_folders_must_be_that_of_the_classes(tmp_path: Path) -> None:
    class_folders(tmp_path)
    refused(tmp_path, "2 classes", "the teacher has 10", classes=10)
    (tmp_path / "eel").mkdir()  # a class without images is a class
    labels = load(tmp_path, classes=3).labels
    assert labels is not None and labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_numbered_folders_are_counted_by_their_numbers_padded_or_not(tmp_path: Path) -> None:
    for index in range(11):
        (tmp_path / str(index)).mkdir()
        Image.fromarray(noise(8, 8, 3)).save(tmp_path / str(index) / "0.png")
    images = load(tmp_path, classes=11)
    assert images.labels is not None and sorted(images.labels.tolist()) == list(range(11))
    assert images.labels.tolist()[:3] == [0, 1, 10]  # the files stay in text order
    assert "by number" in images.order
    for index in range(10):
        (tmp_path / str(index)).rename(tmp_path / f"0{index}")
    labels = load(tmp_path, classes=11).labels
    assert labels is not None and labels.tolist() == list(range(11))


def test_empty_folders_and_missing_paths_are_refused_with_a_hint(tmp_path: Path) -> None:
    refused(tmp_path, "there is no image in it")
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "a").mkdir()
    refused(tmp_path / "validation", "there is no image in it", labelled=False)
    refused(tmp_path / "validaton", "no such file", "did you mean", "validation")
    refused(tmp_path / "no" / "where", "no such file")
    refused("", "no such file")
    (tmp_path / "x.npy").write_bytes(b"")
    refused(tmp_path / "x.npy", "not a data path", ".npz")


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "crc"])
def test_a_corrupt_image_among_good_ones_is_named(tmp_path: Path, damage: str) -> None:
    class_folders(tmp_path)
    file = tmp_path / "dog" / "4.png"
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(
        {
            "cut": content[:middle],
            "text": b"<html>not found</html>",
            "empty": b"",
            "crc": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
        }[damage]
    )
    refused(tmp_path, "4.png", "1 of 6 images", "5 are fine", "repair or remove it")


def test_formats_that_start_other_programs_are_not_tried(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    stream = io.BytesIO()
    Image.fromarray(noise(8, 8, 3)).save(stream, format="EPS")
    (tmp_path / "a" / "x.png").write_bytes(stream.getvalue())
    refused(tmp_path, "x.png", "PostScript", classes=1)


@pytest.mark.parametrize("side", [14_000, 60_000])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, side: int
) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    refused(tmp_path, "bomb.png", "more than 178,000,000 pixels", classes=1)


def test_pipes_and_broken_links_are_refused_and_never_waited_for(tmp_path: Path) -> None:
    class_folders(tmp_path)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    refused(tmp_path, "pipe.png", "not a plain file")
    (tmp_path / "cat" / "pipe.png").unlink()
    (tmp_path / "cat" / "zero.png").symlink_to("/dev/zero")
    refused(tmp_path, "zero.png", "not a plain file")
    (tmp_path / "cat" / "zero.png").unlink()
    (tmp_path / "cat" / "link.png").symlink_to(tmp_path / "nowhere")
    refused(tmp_path, "link.png", "cannot be read")


def test_names_of_strangers_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x\x1b[31m\n.png").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        load(tmp_path, classes=1)
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)


# .npz


def test_npz_gives_pixels_and_labels_for_each_layout(tmp_path: Path) -> None:
    labels = np.array([1, 0, 1, 1], dtype=np.uint8)
    for array, spec in (
        (noise(4, 8, 8), GREY),
        (noise(4, 8, 8, 1), GREY),
        (noise(4, 8, 8, 3), COLOUR),
        (np.asfortranarray(noise(4, 8, 8, 3)), COLOUR),
    ):
        for save in (np.savez, np.savez_compressed):
            save(tmp_path / "a.npz", x=array, y=labels)
            images = load(tmp_path / "a.npz", spec)
            expected = array.reshape(4, 8, 8, -1).transpose(0, 3, 1, 2)
            assert np.array_equal(images.pixels.numpy(), expected)
            assert images.pixels.is_contiguous()
            assert images.labels is not None and images.labels.dtype == torch.int64
            assert images.labels.tolist() == labels.tolist() and images.names == ()
            assert load(tmp_path / "a.npz", None).pixels.shape == expected.shape


def test_npz_images_are_fitted(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.full((1500, 4, 6), 77, dtype=np.uint8))
    images = load(tmp_path / "a.npz", labelled=False)
    assert images.pixels.shape == (1500, 3, 8, 8) and images.pixels.unique().tolist() == [77]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": noise(2, 8, 8)}, ("no array x", "pictures", "np.savez")),
        ({"x": noise(2, 8, 8).astype(np.complex64)}, ("numbers", "complex64")),
        ({"x": noise(2, 5, 8, 8), "y": np.array([0, 1])}, ("(N, H, W, C)", "(2, 5, 8, 8)")),
        ({"x": noise(8, 8), "y": np.array([0, 1])}, ("(N, H, W)",)),
        ({"x": noise(0, 8, 8, 3), "y": np.zeros(0, dtype=int)}, ("no images",)),
        ({"x": noise(2, 8, 8)}, ("labels are needed", "no array y")),
        ({"x": noise(2, 8, 8), "y": np.array([0])}, ("2 images", "(1,)")),
        ({"x": noise(2, 8, 8), "y": np.array([0.5, 1.0])}, ("whole numbers", "float64")),
        ({"x": noise(2, 8, 8), "y": np.array([0, 2])}, ("0..1", "0..2")),
        ({"x": noise(2, 8, 8), "y": np.array([-1, 1])}, ("0..1", "-1..1")),
        ({"x": noise(2, 8, 8, 2), "y": np.array([0, 1])}, ("2 channels", "teacher of 3")),
        ({"x": noise(1, 3000, 3000), "y": np.array([0])}, ("4,000,000 pixels",)),
    ],
)
def test_npz_that_does_not_fit_is_one_line(
    tmp_path: Path, arrays: dict[str, np.ndarray], words: tuple[str, ...]
) -> None:
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz", *words)


def test_negative_labels_are_refused_also_when_the_classes_are_unknown(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=noise(2, 8, 8), y=np.array([-1, 1]))
    refused(tmp_path / "a.npz", "0 and up", classes=None)
    np.savez(tmp_path / "a.npz", x=noise(2, 8, 8), y=np.array([[7], [99]]))
    labels = load(tmp_path / "a.npz", classes=None).labels
    assert labels is not None and labels.tolist() == [7, 99]


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


def test_a_pickle_in_an_npz_is_refused_and_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    trap = np.empty(1, dtype=object)
    trap[0] = Payload(target)
    for arrays in ({"x": trap}, {"x": noise(1, 8, 8, 3), "y": trap}):
        np.savez(tmp_path / "a.npz", **arrays)
        refused(tmp_path / "a.npz", "Python objects", "run code")
        assert not target.exists()
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Payload(target)))
    refused(tmp_path / "b.npz", "not a readable .npz")
    assert not target.exists()

    with np.load(tmp_path / "a.npz", allow_pickle=True) as careless:
        careless["y"]
    assert target.exists()  # so the trap was real


def npz(path: Path, header: str, data: bytes) -> None:
    """An .npz whose x has any header at all."""
    text = header.encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("(1000000, 1000, 1000)", "over the limit"),
        ("(10000, 1000, 1000)", "does not fit its size"),
        ("(3, 8, 8)", "does not fit its size"),
        ("(1, 8, 7)", "does not fit its size"),
        ("(-1, -8, 8)", "not a readable .npz"),
        ("(2**9, 8)", "not a readable .npz"),
        ("'x'", "not a readable .npz"),
    ],
)
def test_a_lying_header_takes_no_memory(tmp_path: Path, shape: str, words: str) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}"
    npz(tmp_path / "a.npz", header, bytes(64))
    refused(tmp_path / "a.npz", words)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_damaged_npz_escapes_as_another_exception(tmp_path: Path, save: Any) -> None:
    file = tmp_path / "a.npz"
    original = noise(2, 8, 8, 3)
    save(file, x=original, y=np.array([0, 1]))
    content = file.read_bytes()
    for trial in range(200):
        broken = bytearray(content)
        for place in rng.integers(0, len(content), size=1 + trial % 4):
            broken[place] = rng.integers(256)
        file.write_bytes(broken[: len(broken) - (trial % 5) * 7])
        try:
            images = load(file)
        except InputError as error:
            assert "\n" not in str(error)
        else:  # the change lay where nothing is read, or the checksum would have told
            assert np.array_equal(images.pixels.permute(0, 2, 3, 1).numpy(), original)


# Code


CODE = """
from pathlib import Path
import numpy as np
Path(__file__).with_name("ran").touch()
def both(name="none"):
    return np.full((3, 8, 8), len(name), dtype=np.uint8), np.array([0, 1, 0])
def alone(): return np.zeros((3, 8, 8, 3), dtype=np.uint8)
def lists(): return [[1]], [0]
def leaves(): raise SystemExit(0)
def fails(): raise RuntimeError("two\\nlines \\x1b[31m")
def three(): return 1, 2, 3
number = 5
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


def test_code_needs_trust_and_is_not_even_imported_without(code: Path) -> None:
    refused(f"{code}:both", "--trust-code", "mine.py")
    assert not code.with_name("ran").exists()
    load(f"{code}:both", GREY, trust_code=True)
    assert code.with_name("ran").exists()


def test_code_gives_images_with_an_argument_or_without(code: Path) -> None:
    images = load(f"{code}:both", GREY, trust_code=True)
    assert images.pixels.unique().tolist() == [4]
    assert images.labels is not None and images.labels.tolist() == [0, 1, 0]
    assert load(f"{code}:both:mnist:x", GREY, trust_code=True).pixels.unique().tolist() == [7]
    assert load(f"{code}:alone", trust_code=True, labelled=False).labels is None


def test_running_code_leaves_nothing_behind(code: Path) -> None:
    load(f"{code}:both", GREY, trust_code=True)
    assert not [name for name in sys.modules if name.startswith("synthkd_data")]
    assert not (code.parent / "__pycache__").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bothh", ("no callable bothh", "did you mean both?")),
        ("number", ("no callable number",)),
        ("alone", ("labels are needed", "gave none")),
        ("lists", ("array of numbers", "list")),
        ("leaves", ("failed", "SystemExit")),
        ("fails", ("failed", "RuntimeError")),
        ("three", ("array of numbers", "tuple")),
        ("alone:extra", ("failed", "TypeError")),
    ],
)
def test_code_that_fails_is_one_line(code: Path, name: str, words: tuple[str, ...]) -> None:
    refused(f"{code}:{name}", *words, trust_code=True)


def test_code_that_is_not_there_or_not_python_is_one_line(code: Path) -> None:
    refused(f"{code.with_name('min.py')}:both", "did you mean", "mine.py", trust_code=True)
    code.write_text("def (:")
    refused(f"{code}:both", "SyntaxError", trust_code=True)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared image sets are not beside the checkout")
def test_the_shared_reader_is_a_data_path() -> None:
    spec = ImageSpec(1, 28, 28, (0.1307,), (0.3081,))
    images = load(f"{SHARED}:load:mnist_test", spec, classes=10, trust_code=True)
    assert images.pixels.shape == (10_000, 1, 28, 28)
    assert images.labels is not None
    assert torch.bincount(images.labels).tolist()[:3] == [980, 1135, 1032]


# Digest


def test_the_digest_tells_pixels_and_labels_apart(tmp_path: Path) -> None:
    pixels, labels = noise(4, 8, 8), np.array([0, 1, 0, 1])
    digests = []
    for x, y in (
        (pixels, labels),
        (pixels, 1 - labels),
        (255 - pixels, labels),
        (pixels.reshape(4, 4, 16), labels),
    ):
        np.savez(tmp_path / "a.npz", x=x, y=y)
        digests.append(load(tmp_path / "a.npz", None).digest)
    np.savez(tmp_path / "b.npz", x=pixels, y=labels)
    assert load(tmp_path / "b.npz", None).digest == digests[0]
    assert len(set(digests)) == 4
    np.savez(tmp_path / "b.npz", x=pixels)
    unlabelled = load(tmp_path / "b.npz", None, labelled=False).digest
    shape = repr(((4, 1, 8, 8), False)).encode()
    assert unlabelled == hashlib.sha256(shape + pixels.tobytes()).hexdigest()


# The demo's digits


def test_the_digits_are_scikit_learns_enlarged_as_pillow_does() -> None:
    pixels, labels, _ = demo_digits()
    digits = load_digits()
    assert pixels.shape == (1797, 1, 16, 16) and pixels.dtype == torch.uint8
    assert labels.tolist() == digits.target.tolist()
    for row in (0, 5, 1796):
        small = Image.fromarray((digits.images[row] * 255 / 16).astype(np.float32))
        large = np.asarray(small.resize((16, 16), Image.Resampling.BILINEAR))
        assert np.abs(pixels[row, 0].numpy().astype(float) - large).max() <= 0.51


def test_thirty_percent_of_each_digit_are_unseen_and_always_the_same() -> None:
    _, labels, unseen = demo_digits()
    for digit in range(10):
        members = (labels == digit).numpy()
        assert unseen[members].sum() == round(0.3 * members.sum())
    rows = np.flatnonzero(unseen).tolist()
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == "d7a474666f28d30c"


def test_seen_and_unseen_digits_are_all_digits_and_share_none() -> None:
    spec = ImageSpec(1, 16, 16, (0.5,), (0.5,))
    seen, unseen = (load(f"demo:{part}", spec, classes=10) for part in ("seen", "unseen"))
    sets = [{image.numpy().tobytes() for image in part.pixels} for part in (seen, unseen)]
    assert len(seen.pixels) + len(unseen.pixels) == 1797
    assert not sets[0] & sets[1]
    assert unseen.names == tuple("0123456789")
    assert load("demo:unseen", COLOUR, classes=10).pixels.shape == (539, 3, 8, 8)
    refused("demo:sene", "demo:seen and demo:unseen")


# How many


def test_images_are_counted_without_opening_one(tmp_path: Path) -> None:
    class_folders(tmp_path / "classes")
    np.savez_compressed(tmp_path / "a.npz", x=noise(7, 8, 8, 3), y=np.arange(7))
    (tmp_path / "flat").mkdir()
    for name in ("a.png", "b.jpg", ".c.png", "notes.txt"):
        (tmp_path / "flat" / name).write_bytes(b"not an image")
    assert count_images(str(tmp_path / "classes")) == len(load(tmp_path / "classes").pixels)
    assert count_images(str(tmp_path / "a.npz")) == 7
    assert count_images(str(tmp_path / "flat")) == 2


def test_what_only_opening_tells_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK")
    np.savez(tmp_path / "no_x.npz", y=np.arange(7))
    code = tmp_path / "mine.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for path in ("bad.npz", "no_x.npz", "none", "mine.py", "mine.py:load"):
        assert count_images(str(tmp_path / path)) is None
    assert count_images("demo:unseen") is None
    assert not (tmp_path / "ran").exists()


# Labels and arrays in the forms that people keep them in


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([0, 2, 1, 2]), ""),
        (np.array([[0], [2], [1], [2]]), ""),
        (np.eye(3)[[0, 2, 1, 2]], "one-hot"),
        (np.array([1, 3, 2, 3]), "counted from 1"),
        (np.array(["cat", "eel", "dog", "eel"]), "by name"),
        (np.array([b"Cat", b"EEL", b"dog", b"eel"]), "is refused"),
    ],
)
def test_labels_of_any_form_are_the_teachers_classes(
    tmp_path: Path, labels: np.ndarray, said: str
) -> None:
    file = saved(tmp_path / "a.npz", x=noise(4, 8, 8), y=labels)
    names = ("cat", "dog", "eel")
    if said == "is refused":  # two spellings of one name
        refused(file, "'EEL'", spec=GREY, classes=3, names=names)
        return
    images = load(file, GREY, classes=3, names=names)
    assert images.labels is not None and images.labels.tolist() == [0, 2, 1, 2]
    assert said in images.order and bool(said) == bool(images.order)


def test_labels_in_text_without_the_teachers_names_come_in_alphabetical_order(
    tmp_path: Path,
) -> None:
    file = saved(tmp_path / "a.npz", x=noise(3, 8, 8), y=np.array(["eel", "cat", "dog"]))
    images = load(file, GREY, classes=3)
    assert images.labels is not None and images.labels.tolist() == [2, 0, 1]
    assert images.names == ("cat", "dog", "eel") and "alphabetical" in images.order


def test_rows_for_several_classes_stay_rows(tmp_path: Path) -> None:
    rows = np.array([[1, 0, 1], [0, 0, 0]])
    file = saved(tmp_path / "a.npz", x=noise(2, 8, 8), y=rows)
    images = load(file, GREY, classes=3)
    assert images.labels is not None and images.labels.tolist() == rows.tolist()
    refused(file, "rows of 3 classes, the teacher has 4", spec=GREY, classes=4)


def test_a_part_of_an_archive_is_named_behind_it(tmp_path: Path) -> None:
    file = saved(
        tmp_path / "medmnist.npz",
        train_images=noise(5, 8, 8), train_labels=np.zeros((5, 1), np.uint8),
        test_images=noise(3, 8, 8), test_labels=np.array([[1], [0], [1]]),
    )  # fmt: skip
    refused(file, "test, train", "FILE.npz:test", spec=GREY)
    assert count_images(str(file)) is None
    images = load(f"{file}:test", GREY)
    assert images.labels is not None and images.labels.tolist() == [1, 0, 1]
    assert "test_images" in images.order and count_images(f"{file}:test") == 3
    refused(f"{file}:val", "no images of a part 'val'", spec=GREY)
    refused(f"{tmp_path / 'none.npz'}:test", "no such file", spec=GREY)


def test_images_come_in_rows_or_along_the_last_axis(tmp_path: Path) -> None:
    colour = noise(6, 8, 8, 3)
    y = np.array([0, 1] * 3)
    layouts = {
        "last": np.moveaxis(colour, 0, -1),
        "first": colour.transpose(0, 3, 1, 2),
        "rows": colour.transpose(0, 3, 1, 2).reshape(6, -1),
    }
    for name, array in layouts.items():
        images = load(saved(tmp_path / f"{name}.npz", x=array, y=y))
        assert np.array_equal(images.pixels.permute(0, 2, 3, 1).numpy(), colour), name
        assert count_images(str(tmp_path / f"{name}.npz")) == 6
    grey = noise(6, 8, 8)
    images = load(saved(tmp_path / "rows.npz", data=grey.reshape(6, 64), target=y), GREY)
    assert np.array_equal(images.pixels[:, 0].numpy(), grey)
    assert "8 x 8" in images.order and "'data' and 'target'" in images.order


def test_code_gives_tensors_lists_and_dicts(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "pixels = torch.arange(128, dtype=torch.uint8).reshape(2, 1, 8, 8)\n"
        "def tensors(): return pixels, torch.tensor([[0, 1], [1, 0]])\n"
        "def lists(): return pixels, ['dog', 'cat']\n"
        "def dicts(): return {'images': pixels, 'labels': [1, 0]}\n"
        "def other(): return {'pictures': pixels}\n"
    )
    for name in ("tensors", "lists", "dicts"):
        images = load(f"{tmp_path / 'mine.py'}:{name}", GREY, trust_code=True)
        assert images.labels is not None and images.labels.tolist() == [1, 0], name
        assert images.pixels.flatten().tolist() == list(range(128))
    refused(f"{tmp_path / 'mine.py'}:other", "no array x", spec=GREY, trust_code=True)
