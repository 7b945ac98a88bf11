"""DICOM: files written byte by byte, against pydicom's own window and sums by hand."""

import struct
from pathlib import Path

import numpy as np
import pytest

from synthkd.core.errors import InputError
from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec
from synthkd.images.decode import read_pictures

pydicom = pytest.importorskip("pydicom")
from synthkd.images.dicom import read_scan, windowed  # noqa: E402

H, W = 9, 12


def element(group: int, number: int, kind: str, value: object) -> bytes:
    """One data element, explicit VR, little-endian (DICOM PS3.5, 7.1.2)."""
    if kind == "US":
        data = struct.pack("<H", value)
    elif isinstance(value, bytes):
        data = value
    else:
        data = str(value).encode()
    data += (b"\0" if kind in ("UI", "OB", "OW") else b" ") * (len(data) % 2)
    head = struct.pack("<HH", group, number) + kind.encode()
    long = kind in ("OB", "OW")
    return (
        head + (struct.pack("<HI", 0, len(data)) if long else struct.pack("<H", len(data))) + data
    )


def dicom(
    values: np.ndarray, *, kind: str = "MONOCHROME2", bits: int = 12, **more: object
) -> bytes:
    """A DICOM file of [H, W], [F, H, W] or [H, W, 3], with tags by their keyword."""
    colour, signed = kind in ("RGB", "YBR_FULL"), values.dtype.kind == "i"
    rows, columns = values.shape[-3:-1] if colour else values.shape[-2:]
    syntax = str(more.pop("syntax", "1.2.840.10008.1.2.1"))
    size = 8 * values.dtype.itemsize
    body = [
        (0x0028, 0x0002, "US", 3 if colour else 1), (0x0028, 0x0004, "CS", kind),
        (0x0028, 0x0010, "US", rows), (0x0028, 0x0011, "US", columns),
        (0x0028, 0x0100, "US", size), (0x0028, 0x0101, "US", min(bits, size)),
        (0x0028, 0x0102, "US", min(bits, size) - 1), (0x0028, 0x0103, "US", int(signed)),
    ]  # fmt: skip
    if colour:
        body.append((0x0028, 0x0006, "US", 0))
    numbers = {
        "frames": (0x0028, 0x0008, "IS"), "centre": (0x0028, 0x1050, "DS"),
        "width": (0x0028, 0x1051, "DS"), "intercept": (0x0028, 0x1052, "DS"),
        "slope": (0x0028, 0x1053, "DS"), "function": (0x0028, 0x1056, "CS"),
    }  # fmt: skip
    body += [(*numbers[key], value) for key, value in more.items()]
    body.append((0x7FE0, 0x0010, "OW", values.tobytes()))
    meta = element(0x0002, 0x0010, "UI", syntax)
    head = element(0x0002, 0x0000, "UL", struct.pack("<I", len(meta)))
    return bytes(128) + b"DICM" + head + meta + b"".join(element(*one) for one in sorted(body))


def noise(*shape: int, top: int = 4095, kind: type = np.uint16) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, top + 1, shape)
    values.flat[0], values.flat[1] = 0, top
    return values.astype(kind)


def read(path: Path, content: bytes, spec: ImageSpec | None = None):
    path.write_bytes(content)
    notes: list[Finding] = []
    found = read_pictures("x", [path], spec, notes)[0].permute(1, 2, 0).numpy()
    return (found[..., 0] if found.shape[2] == 1 else found), {note.code: note for note in notes}


def scaled(share: np.ndarray) -> np.ndarray:
    return np.floor(share.clip(0, 1) * 255 + 0.5).astype(np.uint8)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize(("signed", "slope", "intercept"), [(False, 1, -1024), (True, 2, 10)])
def test_a_window_is_applied_as_pydicom_does_it(
    tmp_path: Path, function: str, kind: str, signed: bool, slope: int, intercept: int
) -> None:
    stored = noise(H, W).astype(np.int16) - 1024 if signed else noise(H, W)
    content = dicom(
        stored, kind=kind, bits=16 if signed else 12, centre=40, width=400, slope=slope,
        intercept=intercept, function=function,
    )  # fmt: skip
    found, notes = read(tmp_path / "a.dcm", content)
    data = pydicom.dcmread(tmp_path / "a.dcm")
    real = pydicom.pixels.apply_modality_lut(data.pixel_array, data)
    shown = pydicom.pixels.apply_windowing(real, data)
    limits = np.array([-32768, 32767]) if signed else np.array([0, 4095])
    low, high = limits * slope + intercept
    share = (shown - low) / (high - low)
    assert np.array_equal(found, scaled(1 - share if kind == "MONOCHROME1" else share))
    assert "centre 40, width 400" in str(notes["dicom-window"])


def test_a_window_of_one_is_a_step() -> None:
    found = windowed(np.array([38.0, 39.5, 39.6, 41.0]), 40, 1)
    assert found.tolist() == [0, 0, 1, 1]


def test_of_several_windows_and_frames_the_first_is_taken_and_said(tmp_path: Path) -> None:
    frames = noise(3, H, W)
    content = dicom(frames, frames=3, centre="1000\\40", width="501\\400")
    found, notes = read(tmp_path / "a.dcm", content)
    share = (frames[0].astype(float) - 999.5) / 500 + 0.5
    assert np.array_equal(found, scaled(share))
    assert "3 frames" in str(notes["frames"])


@pytest.mark.parametrize(("top", "bits"), [(4095, 12), (4095, 16), (255, 16), (65535, 16)])
def test_without_a_window_the_depth_is_judged_by_the_values(tmp_path: Path, top, bits) -> None:
    stored = noise(H, W, top=top)
    found, notes = read(tmp_path / "a.dcm", dicom(stored, bits=bits))
    assert np.array_equal(found, scaled(stored / top))
    assert f"white {top}" in str(notes["value-range"])
    found, _ = read(tmp_path / "a.dcm", dicom(stored, bits=bits, kind="MONOCHROME1"))
    assert np.array_equal(found, scaled(1 - stored / top))


def test_without_a_window_signed_values_go_from_least_to_largest(tmp_path: Path) -> None:
    stored = noise(H, W).astype(np.int16) - 1024
    found, notes = read(tmp_path / "a.dcm", dicom(stored, bits=16))
    assert np.array_equal(found, scaled((stored + 1024) / 4095))
    assert "no window" in str(notes["value-range"])


def test_colour_and_bytes_come_as_they_are(tmp_path: Path) -> None:
    colour = noise(H, W, 3, top=255, kind=np.uint8)
    found, notes = read(tmp_path / "a.dcm", dicom(colour, kind="RGB", bits=8))
    assert np.array_equal(found, colour) and not notes
    grey = noise(H, W, top=255, kind=np.uint8)
    found, _ = read(tmp_path / "b.dcm", dicom(grey, bits=8))
    assert np.array_equal(found, grey)


def test_luma_and_chroma_become_rgb(tmp_path: Path) -> None:
    values = np.full((H, W, 3), 128, np.uint8)
    values[..., 0] = 77
    found, _ = read(tmp_path / "a.dcm", dicom(values, kind="YBR_FULL", bits=8))
    assert (found == 77).all()


def test_a_file_without_suffix_and_among_pngs_is_read(tmp_path: Path) -> None:
    path = tmp_path / "IM0001"
    spec = ImageSpec(1, 8, 8, (0.5,), (0.5,))
    found, _ = read(path, dicom(noise(32, 32), centre=2048, width=4096), spec)
    assert found.shape == (8, 8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (dicom(noise(H, W))[:-100], "cannot be read"),
        (bytes(128) + b"DICM", "without an image"),
        (bytes(128) + b"DICM" + b"\xff" * 200, "DICOM"),
        (dicom(noise(H, W), syntax="1.2.840.10008.1.2.1.99"), "deflated"),
        (dicom(noise(H, W), syntax="1.2.840.10008.1.2.4.80"), "JPEG-LS"),
        (dicom(np.zeros((1, 1), np.uint16)).replace(
            struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, 1),
            struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, 60_000)).replace(
            struct.pack("<HH2sHH", 0x28, 0x11, b"US", 2, 1),
            struct.pack("<HH2sHH", 0x28, 0x11, b"US", 2, 60_000)), "60000x60000 pixels"),
    ],
    ids=["cut", "empty", "noise", "deflated", "jpeg-ls", "bomb"],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path / "a.dcm", content)
    assert words in str(caught.value) and "a.dcm" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_file_that_pydicom_ships_is_read_or_refused_in_one_line() -> None:
    read_, refused = 0, 0
    for path in sorted((Path(pydicom.__file__).parent / "data/test_files").glob("*.dcm")):
        try:
            assert read_scan(path).values.ndim in (2, 3)
            read_ += 1
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert read_ >= 30, refused
