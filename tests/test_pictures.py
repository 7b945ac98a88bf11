"""Files of images: bytes written by hand, and other readers, against what comes out."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthkd.core.errors import InputError
from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec
from synthkd.images.decode import (
    block_means,
    is_picture,
    laid_on,
    luma,
    oriented,
    read_pictures,
)
from synthkd.recipe import DataTable

GREY = ImageSpec(1, 16, 16, (0.5,), (0.5,))
COLOUR = ImageSpec(3, 16, 16, (0.5,) * 3, (0.5,) * 3)
H, W = 7, 11


def noise(*shape: int, top: int = 255, kind: type = np.uint8, seed: int = 0) -> np.ndarray:
    """Random values that reach 0 and `top`."""
    values = np.random.default_rng(seed).integers(0, top + 1, shape)
    values.flat[0], values.flat[1] = 0, top
    return values.astype(kind)


def scaled(values: np.ndarray, top: float) -> np.ndarray:
    """The plain sum: v of `top` as a byte."""
    return np.floor(values.astype(np.float64) * 255 / top + 0.5).clip(0, 255).astype(np.uint8)


def read(*paths: Path, spec: ImageSpec | None = None, **table: object):
    """Images [N, H, W] or [N, H, W, C], and the codes of what was found."""
    notes: list[Finding] = []
    pixels = read_pictures("x", list(paths), spec, notes, DataTable(**table))
    array = pixels.permute(0, 2, 3, 1).numpy()
    return (array[..., 0] if array.shape[3] == 1 else array), {note.code: note for note in notes}


def refused(*paths: Path, spec: ImageSpec | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read(*paths, spec=spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Writers by hand: the layouts of the specifications, without a library


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: np.ndarray, *, extra: bytes = b"", kind: int | None = None, bits: int = 0) -> bytes:
    """A PNG of [H, W] or [H, W, C], 8 or 16 bits, filter 0 (ISO 15948)."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels] if kind is None else kind
    depth = bits or 8 * values.dtype.itemsize
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
        + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )  # fmt: skip


def tiff(values: np.ndarray, order: str = "<", **changed: int) -> bytes:
    """An uncompressed TIFF of one strip (TIFF 6.0, section 2 to 8)."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    bits = 8 * values.dtype.itemsize
    form = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = {
        256: width, 257: height, 258: bits, 259: 1, 262: 2 if channels == 3 else 1, 273: 8,
        277: channels, 278: height, 279: len(data), 339: form,
    } | {int(key.removeprefix("t")): value for key, value in changed.items()}  # fmt: skip
    body, entries = b"", b""
    start = 8 + len(data)
    after = start + 2 + 12 * len(tags) + 4
    for tag in sorted(tags):
        kind, value = (4 if tag in (273, 279) else 3), tags[tag]
        count = channels if tag in (258, 339) else 1
        raw = struct.pack(f"{order}{count}{'I' if kind == 4 else 'H'}", *[value] * count)
        if len(raw) > 4:
            body, raw = body + raw, struct.pack(f"{order}I", after + len(body))
        entries += struct.pack(f"{order}HHI", tag, kind, count) + raw.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}I", start) + data
    return head + struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0" + body


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# More than 8 bits


@pytest.mark.parametrize("top", [255, 1023, 4095, 16383, 65535])
@pytest.mark.parametrize("channels", [0, 3])
@pytest.mark.parametrize(
    "write", [png, tiff, lambda v: tiff(v, ">")], ids=["png", "tiff", "tiff-be"]
)
def test_sixteen_bits_are_read_by_the_depth_that_they_hold(
    tmp_path: Path, write: Callable[[np.ndarray], bytes], channels: int, top: int
) -> None:
    shape = (H, W, channels) if channels else (H, W)
    values = noise(*shape, top=top, kind=np.uint16)
    found, notes = read(written(tmp_path / "a.png", write(values)))
    assert np.array_equal(found[0], scaled(values, top))
    assert f"white {top}" in str(notes["value-range"])


def test_the_depth_is_that_of_the_whole_set_not_of_each_image(tmp_path: Path) -> None:
    dark, bright = noise(H, W, top=200, kind=np.uint16), noise(H, W, top=4095, kind=np.uint16)
    paths = [written(tmp_path / f"{i}.png", png(v)) for i, v in enumerate((dark, bright))]
    found, notes = read(*paths)
    assert np.array_equal(found, scaled(np.stack([dark, bright]), 4095))
    assert "2 of 2 images" in str(notes["value-range"])


def test_deep_and_plain_images_mix(tmp_path: Path) -> None:
    plain, deep = noise(H, W), noise(H, W, top=4095, kind=np.uint16, seed=1)
    paths = [written(tmp_path / f"{i}.png", png(v)) for i, v in enumerate((plain, deep, plain))]
    found, notes = read(*paths)
    assert np.array_equal(found[0], plain) and np.array_equal(found[2], plain)
    assert np.array_equal(found[1], scaled(deep, 4095))
    assert "1 of 3 images" in str(notes["value-range"])


def test_the_user_may_say_what_is_black_and_white(tmp_path: Path) -> None:
    values = noise(H, W, top=3000, kind=np.uint16)
    path = written(tmp_path / "a.png", png(values))
    found, notes = read(path, range=(0, 65535))
    assert np.array_equal(found[0], scaled(values, 65535))
    assert "--data.range" in str(notes["value-range"])


@pytest.mark.parametrize(
    ("values", "top"),
    [
        (np.linspace(0, 1, H * W).reshape(H, W).astype(np.float32), 1),
        (np.linspace(0, 254.5, H * W).reshape(H, W).astype(np.float32), 255),
        (noise(H, W, top=4095, kind=np.int16), 4095),
        (noise(H, W, top=4095, kind=np.uint32), 4095),
        (noise(H, W, top=4095, kind=np.int32), 4095),
    ],
    ids=["float", "float bytes", "int16", "uint32", "int32"],
)
def test_tiffs_of_other_numbers_are_read(tmp_path: Path, values: np.ndarray, top: int) -> None:
    found, notes = read(written(tmp_path / "a.tif", tiff(values)))
    assert np.array_equal(found[0], scaled(values, top))
    assert "value-range" in notes


def test_a_tiff_that_counts_from_white_is_turned(tmp_path: Path) -> None:
    shallow, deep = noise(H, W), noise(H, W, top=65535, kind=np.uint16)
    found, _ = read(written(tmp_path / "a.tif", tiff(shallow, t262=0)))
    assert np.array_equal(found[0], 255 - shallow)
    found, _ = read(written(tmp_path / "b.tif", tiff(deep, t262=0)))
    assert np.array_equal(found[0], scaled(65535 - deep.astype(int), 65535))


def test_a_tiff_and_a_pgm_may_say_which_value_is_white(tmp_path: Path) -> None:
    values = noise(H, W, top=600, kind=np.uint16)
    found, notes = read(written(tmp_path / "a.tif", tiff(values, t281=2000)))
    assert np.array_equal(found[0], scaled(values, 2000))
    assert "the file says" in str(notes["value-range"])
    head = b"P5 %d %d 2000\n" % (W, H)
    found, _ = read(written(tmp_path / "a.pgm", head + values.astype(">u2").tobytes()))
    assert np.abs(found[0].astype(int) - scaled(values, 2000)).max() <= 1  # by way of 16 bits


@pytest.mark.parametrize("top", [1, 3, 15, 16])
def test_a_set_of_few_grey_levels_is_no_set_of_black_images(tmp_path: Path, top: int) -> None:
    arrays = [noise(H, W, top=top, seed=seed) for seed in (0, 1)]
    paths = [written(tmp_path / f"{i}.png", png(v)) for i, v in enumerate(arrays)]
    found, notes = read(*paths)
    assert np.array_equal(found, scaled(np.stack(arrays), top))
    assert "value-range" in notes


def test_dark_images_among_others_stay_dark(tmp_path: Path) -> None:
    arrays = [noise(H, W, top=15), noise(H, W)]
    paths = [written(tmp_path / f"{i}.png", png(v)) for i, v in enumerate(arrays)]
    found, notes = read(*paths)
    assert np.array_equal(found, np.stack(arrays)) and not notes


@pytest.mark.parametrize("value", [np.nan, -5.0, 1e6])
def test_values_that_mean_nothing_are_one_line_with_the_way_out(tmp_path: Path, value) -> None:
    values = np.full((H, W), 0.5, np.float32)
    values[0, 0] = value
    line = refused(written(tmp_path / "a.tif", tiff(values)))
    assert "a.tif" in line and ("NaN" in line or "--data.range" in line)


# Colour, transparency, palettes


def test_formats_are_told_by_content_whatever_the_name(tmp_path: Path) -> None:
    values = noise(H, W, 3)
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        path = tmp_path / f"{kind}.jpg"
        Image.fromarray(values).save(path, format=kind)
        assert np.array_equal(read(path)[0][0], values), kind
    Image.fromarray(noise(H, W)).save(tmp_path / "gif.jpg", format="GIF")
    assert np.array_equal(read(tmp_path / "gif.jpg")[0][0], noise(H, W))


def test_a_palette_is_its_colours(tmp_path: Path) -> None:
    colours = noise(256, 3, seed=1)
    index = noise(H, W)
    path = written(tmp_path / "a.png", png(index, kind=3, extra=chunk(b"PLTE", colours.tobytes())))
    assert np.array_equal(read(path)[0][0], colours[index])


@pytest.mark.parametrize(("dark", "ground"), [(True, 255), (False, 0)])
def test_what_is_drawn_stands_out_from_the_ground_that_is_chosen(
    tmp_path: Path, dark: bool, ground: int
) -> None:
    ink = noise(H, W, 3) // 3 + (0 if dark else 170)
    opacity = noise(H, W, seed=3)
    path = written(tmp_path / "a.png", png(np.dstack([ink, opacity])))
    found, notes = read(path)
    a = opacity[..., None] / 255
    assert np.abs(found[0] - (ink * a + ground * (1 - a))).max() <= 0.5 + 1e-9
    assert ("white" if ground else "black") in str(notes["transparency"])
    other, _ = read(path, background="black" if ground else "white")
    assert not np.array_equal(other, found)


def test_the_ground_is_the_same_for_all_images_of_a_set(tmp_path: Path) -> None:
    opacity = noise(H, W, seed=3)
    paths = [
        written(tmp_path / f"{i}.png", png(np.dstack([np.full((H, W), v, np.uint8), opacity])))
        for i, v in enumerate((0, 20, 140))
    ]
    found, _ = read(*paths)
    assert np.array_equal(found[2], laid_on(np.full((H, W), 140, np.uint8), opacity, 255))


def test_transparency_in_palettes_and_by_a_colour_is_seen(tmp_path: Path) -> None:
    colours = noise(256, 3, seed=1) // 2
    index = noise(H, W, top=3)
    extra = chunk(b"PLTE", colours.tobytes()) + chunk(b"tRNS", bytes([255, 0, 128]))
    found, notes = read(written(tmp_path / "p.png", png(index, kind=3, extra=extra)))
    opacity = np.array([255, 0, 128, 255])[index][..., None]
    assert np.abs(found[0] - (colours[index] * opacity + 255 * (255 - opacity)) / 255).max() <= 0.51
    assert "transparency" in notes
    grey = noise(H, W, top=100)
    found, _ = read(written(tmp_path / "g.png", png(grey, extra=chunk(b"tRNS", b"\0\x05"))))
    grey = np.where(grey == 5, 255, grey)
    assert np.array_equal(found[0] if found[0].ndim == 2 else found[0][..., 0], grey)


def test_opaque_images_with_an_opacity_channel_are_not_touched(tmp_path: Path) -> None:
    values = noise(H, W, 3)
    path = written(tmp_path / "a.png", png(np.dstack([values, np.full((H, W), 255, np.uint8)])))
    found, notes = read(path)
    assert np.array_equal(found[0], values) and not notes


def test_sixteen_bits_with_transparency_are_laid_on_a_ground(tmp_path: Path) -> None:
    ink, opacity = noise(H, W, 3, top=65535, kind=np.uint16) // 3, noise(H, W, top=255)
    ink[0, 0] = 65535
    opacity[0, 0] = 0
    deep = np.dstack([ink, opacity.astype(np.uint16) * 257])
    found, _ = read(written(tmp_path / "a.png", png(deep)))
    assert np.array_equal(found[0], laid_on(scaled(ink, 65535), opacity, 255))


@pytest.mark.parametrize("transform", [0, 2], ids=["cmyk", "ycck"])
def test_cmyk_as_adobe_writes_it_is_not_inverted(tmp_path: Path, transform: int) -> None:
    """Flat fields, so that JPEG loses next to nothing: the sum by hand."""
    stream = io.BytesIO()
    inks = stored = (30, 60, 90, 120)
    if transform:  # YCCK: neutral Cb and Cr, and CMY are 255 - Y, all inverted as Adobe does
        inks, stored = (215, 215, 215, 120), (40, 127, 127, 120)
    Image.new("CMYK", (16, 16), stored).save(stream, "JPEG", quality=100)
    content = bytearray(stream.getvalue())
    content[content.index(b"Adobe") + 11] = transform
    found, notes = read(written(tmp_path / "a.jpg", bytes(content)))
    c, m, y, k = inks
    expected = [(255 - v) * (255 - k) / 255 for v in (c, m, y)]
    assert np.abs(found[0, 8, 8] - expected).max() <= 2
    assert "cmyk" in notes


def test_cmyk_tiff_is_the_sum_by_hand(tmp_path: Path) -> None:
    inks = noise(H, W, 4)
    found, _ = read(written(tmp_path / "a.tif", tiff(inks, t262=5)))
    k = inks[..., 3:].astype(float)
    assert np.abs(found[0] - (255.0 - inks[..., :3]) * (255 - k) / 255).max() <= 0.5 + 1e-9


def test_grey_and_colour_become_each_other_and_it_is_said(tmp_path: Path) -> None:
    grey, colour = noise(16, 16), noise(16, 16, 3)
    a = written(tmp_path / "a.png", png(grey))
    b = written(tmp_path / "b.png", png(colour))
    found, notes = read(a, b, spec=GREY)
    assert np.array_equal(found[0], grey) and set(notes) == {"to-grey"}
    assert np.abs(found[1] - colour @ [0.299, 0.587, 0.114]).max() <= 0.6
    found, notes = read(a, b, spec=COLOUR)
    assert np.array_equal(found[0], np.dstack([grey] * 3)) and set(notes) == {"to-colour"}
    same = written(tmp_path / "c.png", png(np.dstack([grey] * 3)))  # colour in name only
    assert not read(same, spec=GREY)[1]


# EXIF, frames, proportion


def test_every_orientation_is_turned_upright(tmp_path: Path) -> None:
    upright = noise(H, W, 3)
    stored = {  # how the camera holds the upright image, by turns and mirrors of numpy
        1: upright, 2: np.fliplr(upright), 3: np.rot90(upright, 2), 4: np.flipud(upright),
        5: upright.swapaxes(0, 1), 6: np.rot90(upright), 7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }  # fmt: skip
    for number, values in stored.items():
        exif = Image.Exif()
        exif[0x112] = number
        for suffix, options in {"png": {}, "webp": {"lossless": True}, "tif": {}}.items():
            path = tmp_path / f"{number}.{suffix}"
            Image.fromarray(np.ascontiguousarray(values)).save(path, exif=exif, **options)
            found, notes = read(path)
            assert np.array_equal(found[0], upright), path.name
            assert ("exif-rotation" in notes) == (number > 1)
        deep = np.ascontiguousarray(values[..., 0]).astype(np.uint16) * 257
        found, _ = read(written(tmp_path / "deep.tif", tiff(deep, t274=number)))
        assert np.array_equal(found[0], upright[..., 0]), number
        assert np.array_equal(oriented(values, number), upright)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken_and_it_is_said(tmp_path: Path, kind: str) -> None:
    first, second = (Image.fromarray(noise(16, 16, seed=s)) for s in (0, 1))
    options = {"lossless": True} if kind == "WEBP" else {}
    first.save(tmp_path / "a.img", format=kind, save_all=True, append_images=[second], **options)
    found, notes = read(tmp_path / "a.img", spec=GREY)
    assert np.array_equal(found[0], noise(16, 16))
    assert "first was taken" in str(notes["frames"])


def test_another_proportion_is_said_and_may_be_cut_or_padded_instead(tmp_path: Path) -> None:
    wide = np.zeros((16, 48), np.uint8)
    wide[:, 16:32] = 200
    path = written(tmp_path / "a.png", png(wide))
    stretched, notes = read(path, spec=GREY)
    assert "48x16 to 16x16" in str(notes["aspect"]) and stretched[0, 8, 0] == 0
    cut, _ = read(path, spec=GREY, resize="crop")
    assert (cut == 200).all()
    padded, _ = read(path, spec=GREY, resize="pad")
    assert (padded[0, :5] == 255).all() and padded[0, 8].max() > 150
    near = written(tmp_path / "b.png", png(noise(16, 19)))
    assert not read(near, spec=GREY)[1]


# Large files, and what is no image


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_photo_of_twelve_million_pixels_is_shrunk(tmp_path: Path, options) -> None:
    small = Image.fromarray(np.kron(noise(4, 3, 3), np.ones((8, 8, 1), np.uint8)))
    photo = small.resize((3024, 4032), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "a.jpg", quality=92, **options)
    found, notes = read(tmp_path / "a.jpg", spec=COLOUR)
    expected = np.asarray(photo.resize((16, 16), Image.Resampling.BILINEAR))
    assert np.abs(found[0].astype(int) - expected).mean() < 3
    assert "shrunk" in notes


def test_a_large_scan_of_16_bits_is_shrunk(tmp_path: Path) -> None:
    values = np.kron(noise(16, 16, top=4095, kind=np.uint16), np.ones((160, 160), np.uint16))
    found, _ = read(written(tmp_path / "a.png", png(values)), spec=GREY)
    cells = scaled(noise(16, 16, top=4095, kind=np.uint16), 4095)
    # bilinear with antialiasing mixes a cell with its neighbours, a quarter on each side
    assert np.abs(found[0].astype(int) - cells).mean() < 40 < cells.std()
    means = block_means(values, 160)
    assert np.array_equal(means, noise(16, 16, top=4095, kind=np.uint16))


def test_without_a_size_to_shrink_to_a_large_image_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", png(np.zeros((2000, 2100), np.uint8)))
    assert "2100x2000 pixels" in refused(path)


@pytest.mark.parametrize("side", [30_000, 13_000])
def test_a_bomb_of_one_colour_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(200_000))
    line = refused(written(tmp_path / "bomb.png", content), spec=GREY)
    assert "bomb.png" in line and ("178,000,000" in line or "decompression bomb" in line)


def test_a_jpeg_of_thousands_of_passes_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (4000, 4000), 90).save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    last = content.rindex(b"\xff\xda")
    content = content[:last] + content[last:-2] * 2000 + content[-2:]
    assert "2,00" in refused(written(tmp_path / "a.jpg", content), spec=GREY)
    found, _ = read(written(tmp_path / "b.jpg", stream.getvalue()), spec=GREY)
    assert (found == 90).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe", "PostScript"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"version https://git-lfs.example/spec/v1\n", "Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"<svg xmlns='x'/>", "SVG"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"", "empty"),
        (b"hello, world", "not a PNG"),
        (b"\x93NUMPY\x01\0", ".npz"),
    ],
)
def test_what_is_no_image_is_named_for_what_it_is(tmp_path: Path, content, words) -> None:
    assert words in refused(written(tmp_path / "a.png", content), spec=GREY)


def test_every_way_of_writing_an_image_suffix_counts_and_dicom_needs_none(tmp_path: Path) -> None:
    dicom = bytes(128) + b"DICM"
    for name in ("a.JPG", "a.jfif", "a.TIFF", "a.gif", "a.ppm", "a.avif", "a.jp2", "a.dcm"):
        assert is_picture(written(tmp_path / name, b"x"))
    for name in ("IM0001", "1.2.840.113619.2"):
        assert is_picture(written(tmp_path / name, dicom))
        assert not is_picture(written(tmp_path / name, b"notes"))
    for name in (".hidden.png", "notes.txt", "a.py", "Thumbs.db", "README"):
        assert not is_picture(written(tmp_path / name, dicom if name == "a.py" else b"x"))
    (tmp_path / "folder.png").mkdir()
    assert not is_picture(tmp_path / "folder.png")


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "YCbCr", "LAB"]
)
def test_every_mode_of_pillow_that_a_tiff_holds_is_read(tmp_path: Path, mode: str) -> None:
    base = Image.fromarray(noise(16, 16, 3))
    if mode == "LAB":
        from PIL import ImageCms

        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(base, rgb, lab, outputMode="LAB")
    else:
        image = base.convert("L").convert(mode) if mode in ("I;16", "LA") else base.convert(mode)
    image.save(tmp_path / "a.tif")
    found, _ = read(tmp_path / "a.tif", spec=COLOUR)
    expected = (
        base.convert("L").convert("RGB") if mode in ("1", "L", "LA", "I", "I;16", "F") else base
    )
    rough = 130 if mode in ("1", "P") else 20
    assert np.abs(found[0].astype(int) - np.asarray(expected)).mean() < rough


def test_luma_is_that_of_itu_r_601() -> None:
    colour = noise(64, 64, 3)
    assert np.abs(luma(colour) - colour @ [0.299, 0.587, 0.114]).max() <= 0.51
