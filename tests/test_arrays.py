"""Arrays of images of any numbers, and the .npz that holds them, piece by piece."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from synthkd.core.errors import InputError
from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec
from synthkd.data.sources import load_images
from synthkd.images import arrays
from synthkd.images.arrays import as_pixels, member, stack_in, stacked
from synthkd.images.decode import laid_on
from synthkd.recipe import DataTable

GREY = ImageSpec(1, 8, 8, (0.5,), (0.5,))
COLOUR = ImageSpec(3, 8, 8, (0.5,) * 3, (0.5,) * 3)


def noise(*shape: int, top: int = 255, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, top + 1, shape)
    values.flat[0], values.flat[1] = 0, top
    return values


def read(images: np.ndarray, spec: ImageSpec | None = None, **table: object):
    """Pixels [N, H, W, C] and the codes of what was found."""
    notes: list[Finding] = []
    pixels = as_pixels("x", stacked(images), spec, notes, DataTable(**table))
    return pixels.permute(0, 2, 3, 1).numpy(), {note.code: note for note in notes}


@pytest.mark.parametrize(
    ("images", "black", "white"),
    [
        (noise(5, 8, 8, top=1).astype(np.uint8), 0, 1),
        (noise(5, 8, 8, top=1).astype(bool), 0, 1),
        (noise(5, 8, 8, top=16).astype(np.uint8), 0, 16),  # the digits of scikit-learn
        (noise(5, 8, 8, top=15).astype(np.float64), 0, 15),
        (noise(5, 8, 8).astype(np.int64), 0, 255),
        (noise(5, 8, 8, top=4095).astype(np.uint16), 0, 4095),
        (noise(5, 8, 8, top=65535).astype(">u2"), 0, 65535),
        (noise(5, 8, 8).astype(np.float32) / 255, 0, 1),
        (noise(5, 8, 8).astype(np.float16) / 255, 0, 1),
        (noise(5, 8, 8) / 127.5 - 1, -1, 1),
        (noise(5, 8, 8) + np.float32(0.25), 0, 255),
        (noise(5, 8, 8).astype(np.int16).astype(np.int8), -128, 127),
    ],
)
def test_numbers_of_every_kind_become_bytes_and_it_is_said(images, black, white) -> None:
    found, notes = read(images)
    share = (images.astype(np.float64) - black) / (white - black)
    assert np.array_equal(found[..., 0], np.floor(share.clip(0, 1) * 255 + 0.5).astype(np.uint8))
    assert "value-range" in notes


def test_bytes_stay_as_they_are_and_nothing_is_said() -> None:
    images = noise(5, 8, 8, 3).astype(np.uint8)
    found, notes = read(images, COLOUR)
    assert np.array_equal(found, images) and not notes


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.random.default_rng(0).normal(0, 1, (5, 8, 8)), "--data.range"),  # normalised
        (noise(5, 8, 8) / 255 / 255, "--data.range"),  # divided twice
        (noise(5, 8, 8, top=90_000), "--data.range"),
        (np.full((5, 8, 8), np.nan), "NaN"),
        (noise(5, 8, 8).astype(np.complex64), "numbers"),
        (np.full((5, 8, 8), "a"), "numbers"),
        (noise(5, 784), "(N, H, W)"),
        (noise(5, 8, 8, 7), "(N, H, W, C)"),
        (noise(5, 8, 8, 2), "2 channels"),
    ],
)
def test_what_is_not_understood_is_one_line_with_the_way_out(images, words) -> None:
    with pytest.raises(InputError) as caught:
        read(images, COLOUR)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_user_may_say_what_is_black_and_white() -> None:
    images = noise(5, 8, 8).astype(np.float64) / 51 - 2  # -2..3
    found, _ = read(images, range=(-2, 3))
    assert np.array_equal(found[..., 0], noise(5, 8, 8))
    found, _ = read(noise(5, 8, 8, top=100).astype(np.uint8), range=(0, 100))
    assert found.max() == 255


def test_channels_first_are_recognised_and_said() -> None:
    images = noise(5, 8, 9, 3).astype(np.uint8)
    found, notes = read(images.transpose(0, 3, 1, 2))
    assert np.array_equal(found, images) and "channels-first" in notes


@pytest.mark.parametrize(("bright", "ground"), [(False, 255), (True, 0)])
def test_transparent_images_are_laid_on_a_ground(bright: bool, ground: int) -> None:
    ink = noise(5, 8, 8, 3).astype(np.uint8) // 3 + np.uint8(170 * bright)
    opacity = noise(5, 8, 8, seed=1).astype(np.uint8)
    found, notes = read(np.concatenate([ink, opacity[..., None]], 3), COLOUR)
    expected = np.stack([laid_on(i, o, ground) for i, o in zip(ink, opacity, strict=True)])
    assert np.array_equal(found, expected)
    assert ("white" if ground else "black") in str(notes["transparency"])


def test_the_proportion_and_the_channels_are_said() -> None:
    _, notes = read(noise(5, 8, 24, 3).astype(np.uint8), GREY)
    assert set(notes) == {"to-grey", "aspect"}
    _, notes = read(noise(5, 8, 8).astype(np.uint8), COLOUR)
    assert set(notes) == {"to-colour"}


def test_pieces_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images = noise(100, 12, 10, 3, top=4095).astype(np.uint16)
    whole, _ = read(images, GREY)
    monkeypatch.setattr(arrays, "PIECE", 12 * 10 * 3 * 2 * 7)  # seven images
    assert np.array_equal(read(images, GREY)[0], whole)
    for order in "CF":
        np.savez_compressed(tmp_path / "a.npz", x=np.asarray(images, order=order))
        found = load_images(str(tmp_path / "a.npz"), GREY, classes=None, labelled=False)
        assert np.array_equal(found.pixels.permute(0, 2, 3, 1).numpy(), whole)
        assert found.notes


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_damage_in_the_middle_of_an_array_is_found(tmp_path: Path) -> None:
    content = npy(noise(50, 8, 8).astype(np.uint8))
    path = npz(tmp_path / "a.npz", x=content)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    path.write_bytes(bytes(raw))
    with pytest.raises(InputError, match=r"a\.npz"):
        load_images(str(path), GREY, classes=None, labelled=False)


def bomb(path: Path, mebibytes: int) -> Path:
    """An .npz of zeros that a few hundred times less of it holds."""
    shape = (mebibytes, 1024, 1024)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        file.write(header.getvalue())
        for _ in range(mebibytes):
            file.write(bytes(1 << 20))
    return path


def test_a_bomb_is_refused_by_the_directory_of_the_archive(tmp_path: Path) -> None:
    path = bomb(tmp_path / "a.npz", 300)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("x.npy")
        for read_ in (stack_in, lambda w, p, i: member(w, p, archive, i)):
            with pytest.raises(InputError, match="zip bomb"):
                read_("x", path, info)


@pytest.mark.slow
def test_a_large_array_is_never_whole_in_memory(tmp_path: Path) -> None:
    """200 MB, as a file holds it without compression: the peak of another process."""
    row = np.random.default_rng(0).integers(0, 256, (1, 1000, 1000), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=np.broadcast_to(row, (200, 1000, 1000)))
    code = (
        "import resource, sys; from synthkd.data.sources import load_images\n"
        "from synthkd.core.images import ImageSpec\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "spec = ImageSpec(1, 16, 16, (0.5,), (0.5,))\n"
        "load_images(sys.argv[1], spec, classes=None, labelled=False)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.npz")], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert int(told.stdout) < 150  # MB
