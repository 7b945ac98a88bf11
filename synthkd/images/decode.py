"""Files of images, decoded: whatever an untrusted file holds, as bytes for a network.

N images, C channels, H height, W width. A file is judged by its content, not by its name; headers
are read before memory is given. What had to be assumed is in the findings, for all files.
"""

import functools
import math
import re
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec, fitted
from synthkd.images import dicom
from synthkd.images.value_range import SMALL, Extent, Levels, Values, levels_of, to_bytes
from synthkd.recipe import DataTable

SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".dib", ".gif",
    ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpx", ".avif",
    ".dcm", ".dicom",
)  # fmt: skip
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
KNOWN = "a PNG, JPEG, WebP, BMP, GIF, TIFF, PPM, JPEG 2000, AVIF or DICOM image"
MOST_PIXELS = 4_000_000  # of an image that is kept as it is; larger ones are shrunk
MOST_DECODED = 178_000_000  # pixels of a file; Pillow's own limit is 178,956,970
MOST_SCANNED = 4_000_000_000  # pixels of all passes of a progressive JPEG together
MOST_DEEP = 64_000_000  # pixels of a file of more than 8 bits, or of one that wants more memory
BOMB_BYTES, BOMB_RATIO = 300 << 20, 200  # decoded bytes from which on that ratio is refused
MOST_BYTES = 16 << 30  # of all images together
MARGIN = 3  # times the wanted side to which a large image is reduced before it is resized
ASPECT = 1.25  # the change of proportion from which on it is reported
TINY, SHRUNK = 64, 16  # below this side, from that factor on, the loss is reported
HELD_BYTES = 256 << 20  # of images that wait for the others to be judged

_FOREIGN = (
    (rb"....ftyp(heic|heix|hevc|heim|mif1|msf1)", "a HEIC image: save it as JPEG or PNG"),
    (rb"%PDF", "a PDF: save its pages as PNG"),
    (rb"%!PS", "PostScript, which is a program: save it as PNG"),
    (
        rb"version https://git-lfs",
        "a pointer of Git LFS, not the image: fetch it with git lfs pull",
    ),
    (rb"\s*<(!DOCTYPE|html)", "a web page, not an image"),
    (rb"\s*<(svg|\?xml)", "an SVG: save it as PNG"),
    (rb"SIMPLE  =", "a FITS image: save it as TIFF or PNG"),
    (rb"\x93NUMPY", "an array: save arrays as .npz with x and y"),
)
# EXIF orientation: whether rows and columns are exchanged, then which are reversed
_TURNS: dict[float, tuple[bool, tuple[int, ...]]] = {
    2: (False, (1,)), 3: (False, (0, 1)), 4: (False, (0,)),
    5: (True, ()), 6: (True, (1,)), 7: (True, (0, 1)), 8: (True, (0,)),
}  # fmt: skip
_SAID = {
    "frames": "of several frames or pages the first was taken",
    "exif-rotation": "turned as the EXIF says",
    "cmyk": "CMYK, turned into RGB without a colour profile",
    "to-grey": "colour turned into grey",
    "to-colour": "grey copied into every colour",
    "dicom-window": "DICOM, shown through the first window of the file",
    "coarse": "colour of 16 bits, of which the higher 8 were read",
}


class Picture(NamedTuple):
    """A decoded file, before it is known how the whole set is to be understood."""

    values: Values  # [H, W] or [H, W, 3]; bytes, or deeper numbers
    size: tuple[int, int]  # height and width in the file
    opacity: NDArray[np.uint8] | None = None  # [H, W], where something is transparent
    white: float | None = None  # the value of white, where the file tells it
    inverted: bool = False  # counts from white
    lossless: bool = True
    scan: bool = False  # of a scanner, without a window: any values may be black and white
    facts: tuple[tuple[str, str], ...] = ()  # what was done, of _SAID, each with a detail

    @property
    def deep(self) -> bool:
        """Whether its values are not bytes."""
        return self.values.dtype != np.uint8


class Facts:
    """What was found in files of a set: how many, and which first."""

    def __init__(self) -> None:
        self.count: dict[str, int] = {}
        self.first: dict[str, tuple[Path, str]] = {}

    def add(self, code: str, path: Path, detail: str = "") -> None:
        """Notes one file."""
        self.count[code] = self.count.get(code, 0) + 1
        self.first.setdefault(code, (path, detail))

    def finding(self, code: str, total: int, said: str, remedy: str = "") -> Finding:
        """`said`, with how many of all files, and the first of them."""
        path, detail = self.first[code]
        number = self.count[code]
        many = "the image" if total == 1 else f"{number:,} of {total:,} images"
        shown = "" if total == 1 else f", first {quoted(path.name)}"
        inside = f": {detail}" if detail else ""
        return Finding(code, f"{said} ({many}{shown}{inside})", remedy)


def is_picture(path: Path) -> bool:
    """Whether a path looks like an image that can be read: by its suffix, or, where it has none (as
    DICOM files), by its first bytes."""
    if path.name.startswith(".") or path.is_dir():
        return False
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    if suffix and not suffix[1:].isdecimal():
        return False
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        return _head(path)[128:132] == dicom.MAGIC
    except OSError:
        return False


def read_pictures(
    where: str,
    paths: Sequence[Path],
    spec: ImageSpec | None,
    notes: list[Finding] | None = None,
    table: DataTable | None = None,
) -> Tensor:
    """Images of a folder as uint8 [N, C, H, W]; if some are bad, one line names the first.

    `table` says what is black and white, the ground under transparency, and how the proportion
    changes; by default all that is judged by the files. What was assumed is added to `notes`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large images; ours is an error
        return _Reading(where, paths, spec, table or DataTable()).all(notes)


class _Reading:
    """A set of files being read: plain ones at once, the others when all have been seen."""

    def __init__(
        self, where: str, paths: Sequence[Path], spec: ImageSpec | None, table: DataTable
    ) -> None:
        self.where, self.paths, self.spec, self.table = where, paths, spec, table
        self.facts = Facts()
        self.bad: list[str] = []
        self.result: Tensor | None = None
        self.waiting: dict[int, Picture | None] = {}  # None: decoded once more
        self.held = 0
        self.deep = Extent()
        self.shallow = Extent()  # of the images of bytes
        self.lossy = False
        self.scans = True  # whether all that is deep comes from scanners
        self.ink, self.cover = 0.0, 0.0  # brightness of what is opaque
        if spec is not None:
            affordable(where, len(paths), spec.shape)
            self.result = torch.empty((len(paths), *spec.shape), dtype=torch.uint8)

    def all(self, notes: list[Finding] | None) -> Tensor:
        """Every image of the set."""
        for row in range(len(self.paths)):
            self._meet(row)
        self._refuse()
        bytes_ = Levels(0, 255, "")
        whole = not (self.lossy or self.waiting or self.table.range)
        if whole and self.shallow.low == 0 and self.shallow.high in SMALL:
            bytes_ = levels_of(self.shallow)  # no bytes, though written as such
            self.waiting = dict.fromkeys(range(len(self.paths)))
        deep, ground = self._judged()
        for row, kept in self.waiting.items():
            picture = kept if kept is not None else self._decoded(row)
            if picture is not None:
                own = picture.white
                levels = bytes_ if not picture.deep else deep
                if picture.deep and own is not None and not self.table.range:
                    levels = Levels(0, own, f"white {own:g}")
                if picture.deep or not levels.plain:
                    self.facts.add("value-range", self.paths[row])
                self._place(row, picture, levels, ground)
        self._refuse()
        if notes is not None:
            small = bytes_ if not bytes_.plain else None
            notes.extend(self._findings(small or deep, ground))
        assert self.result is not None
        return self.result

    def _meet(self, row: int) -> None:
        """Decodes a file; keeps it, or lets it wait."""
        picture = self._decoded(row)
        if picture is None:
            return
        for code, detail in picture.facts:
            self.facts.add(code, self.paths[row], detail)
        if picture.deep and picture.white is None:
            self.deep = self.deep.over(picture.values)
            self.scans &= picture.scan
        elif not picture.deep:
            self.shallow = self.shallow.over(picture.values)
            self.lossy |= not picture.lossless
        channels = self._channels(picture)
        if picture.opacity is not None and channels in (1, 3):
            weight = picture.opacity.astype(np.float64)
            grey = picture.values if picture.values.ndim == 2 else picture.values.mean(2)
            scale = 255 / 65535 if picture.deep else 1.0
            self.ink += float((weight * grey).sum()) * scale
            self.cover += float(weight.sum())
            self.facts.add("transparency", self.paths[row])
        elif not picture.deep:
            self._place(row, picture, Levels(0, 255, ""), 255)
            return
        self.held += picture.values.nbytes
        self.waiting[row] = picture if self.held <= HELD_BYTES else None

    def _decoded(self, row: int) -> Picture | None:
        path = self.paths[row]
        try:
            return decode(path, self.spec)
        except Exception as error:  # Pillow's readers raise many kinds
            self.bad.append(f"{quoted(path)}: {_reason(error)}")
            return None

    def _refuse(self) -> None:
        if not self.bad:
            return
        total = len(self.paths)
        raise InputError(
            f"{self.bad[0]}; {len(self.bad):,} of {total:,} images cannot be used, "
            f"{total - len(self.bad):,} are fine: "
            f"repair or remove {'it' if len(self.bad) == 1 else 'them'}"
        )

    def _judged(self) -> tuple[Levels, int]:
        """What the values of deep images mean, and the ground of transparent ones."""
        deep = Levels(0, 255, "")
        if self.deep != Extent():
            first = next(iter(self.waiting))
            try:
                deep = levels_of(self.deep, self.table.range)
            except InputError as error:
                low, high, _ = self.deep
                if not (self.scans and math.isfinite(low) and math.isfinite(high)):
                    raise InputError(f"{quoted(self.paths[first])}: {error}") from None
                said = f"black {low:g} to white {high:g}, as no window is given"
                deep = Levels(low, max(high, low + 1), said)
        elif self.table.range:
            deep = levels_of(Extent(0, 1), self.table.range)
        ground = {"white": 255, "black": 0}.get(self.table.background)
        if ground is None:
            ground = 0 if self.cover and self.ink / self.cover >= 128 else 255
        return deep, ground

    def _channels(self, picture: Picture) -> int:
        if self.spec is not None:
            return self.spec.channels
        return 1 if picture.values.ndim == 2 else 3

    def _place(self, row: int, picture: Picture, levels: Levels, ground: int) -> None:
        """Turns a picture into bytes of the wanted size and channels."""
        path, spec = self.paths[row], self.spec
        opacity, values = picture.opacity, picture.values
        array = to_bytes(values, levels, inverted=picture.inverted)
        channels = self._channels(picture)
        if opacity is not None and channels in (1, 3):
            array = laid_on(array, opacity, ground)
        if channels == 1 and array.ndim == 3:
            if _coloured(array):
                self.facts.add("to-grey", path)
            array = luma(array)
        elif channels >= 3 and array.ndim == 2:
            self.facts.add("to-colour", path)
            array = np.repeat(array[:, :, None], 3, axis=2)
        elif channels == 2 and array.ndim == 3:
            array = luma(array)
        if channels in (2, 4):
            full = np.full(array.shape[:2], 255, np.uint8) if opacity is None else opacity
            array = np.dstack([array, full])
        image = torch.from_numpy(np.ascontiguousarray(array))
        image = image.unsqueeze(0) if image.dim() == 2 else image.permute(2, 0, 1)
        if spec is not None:
            self._tell_size(path, picture.size, spec)
            image = shaped(image.unsqueeze(0), spec, self.table.resize, ground)[0]
        elif self.result is None:
            affordable(self.where, len(self.paths), image.shape)
            self.result = torch.empty((len(self.paths), *image.shape), dtype=torch.uint8)
        if self.result is None or image.shape != self.result.shape[1:]:
            raise InputError(
                f"{quoted(path)}: {_size(image)}, but the images before it are "
                f"{_size(self.result[0]) if self.result is not None else 'others'}; "
                "give a size to fit them to, or make them equal"
            )
        self.result[row] = image

    def _tell_size(self, path: Path, size: tuple[int, int], spec: ImageSpec) -> None:
        shown = f"{size[1]}x{size[0]} to {spec.width}x{spec.height}"
        if changed_aspect(size, (spec.height, spec.width)):
            self.facts.add("aspect", path, shown)
        factor = max(size[0] / spec.height, size[1] / spec.width)
        if max(spec.height, spec.width) < TINY and factor >= SHRUNK:
            self.facts.add("shrunk", path, shown)

    def _findings(self, levels: Levels, ground: int) -> list[Finding]:
        total, facts = len(self.paths), self.facts
        found = []
        for code in facts.count:
            said, remedy = _SAID.get(code, ""), ""
            if code == "value-range":
                extent = self.deep if self.deep != Extent() else self.shallow
                low, high = (extent.low, extent.high) if extent != Extent() else (0, 0)
                said = f"values {low:g}..{high:g} were taken as {levels.said}"
                if not levels.said:
                    said = "the file says which value is white"
                remedy = "" if self.table.range else "if not so, give --data.range BLACK,WHITE"
            elif code == "transparency":
                name, other = ("white", "black") if ground else ("black", "white")
                said = f"partly transparent, on a {name} ground"
                remedy = f"--data.background {other} for the other"
            elif code == "aspect":
                said, remedy = told_aspect(self.table.resize)
            elif code == "shrunk":
                said = "shrunk so much that little of them is left"
                remedy = "a network of so few pixels sees only their rough shape"
            found.append(facts.finding(code, total, said, remedy))
        return found


def told_aspect(resize: str) -> tuple[str, str]:
    """What a changed proportion did to images, and what else there is."""
    done = {
        "stretch": "stretched to another proportion",
        "crop": "cut to the middle, to another proportion",
        "pad": "padded to another proportion",
    }
    others = [name for name in done if name != resize]
    return done[resize], f"--data.resize {' or '.join(others)} if the teacher was trained so"


def changed_aspect(size: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Whether images of that height and width change their proportion by more than ASPECT."""
    change = (size[0] / size[1]) / (wanted[0] / wanted[1])
    return max(change, 1 / change) > ASPECT


def laid_on(array: NDArray[np.uint8], opacity: NDArray[np.uint8], ground: int) -> NDArray[np.uint8]:
    """An image [H, W] or [H, W, 3] over a grey ground: (v a + g (255 − a)) / 255, rounded.

    >>> laid_on(np.array([[200, 200]], np.uint8), np.array([[255, 0]], np.uint8), 255).tolist()
    [[200, 255]]
    """
    share = opacity.astype(np.uint32)
    share = share if array.ndim == 2 else share[:, :, None]
    mixed = array * share + np.uint32(ground) * (255 - share)
    result: NDArray[np.uint8] = ((mixed + 127) // 255).astype(np.uint8)
    return result


def luma(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 3] to grey [H, W] by the luma of ITU-R 601."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(array)).convert("L"))


def _coloured(array: NDArray[np.uint8]) -> bool:
    step = max(1, math.isqrt(array.shape[0] * array.shape[1] // 10_000))
    r, g, b = np.moveaxis(array[::step, ::step].astype(np.int16), 2, 0)
    return bool(max(np.abs(r - g).max(), np.abs(g - b).max(), np.abs(r - b).max()) > 16)


def shaped(pixels: Tensor, spec: ImageSpec, resize: str, ground: int = 0) -> Tensor:
    """`fitted`, with the proportion changed as `data.resize` says: the whole image stretched, its
    middle cut out, or a ground put around it."""
    height, width = pixels.shape[2:]
    if resize == "stretch" or height * spec.width == width * spec.height:
        return fitted(pixels, spec)
    if resize == "crop":
        tall = min(height, max(1, round(width * spec.height / spec.width)))
        wide = min(width, max(1, round(height * spec.width / spec.height)))
        top, left = (height - tall) // 2, (width - wide) // 2
        return fitted(pixels[:, :, top : top + tall, left : left + wide], spec)
    share = min(spec.height / height, spec.width / width)
    tall, wide = (max(1, round(side * share)) for side in (height, width))
    inner = ImageSpec(spec.channels, tall, wide, spec.mean, spec.std)
    result = torch.full((len(pixels), *spec.shape), ground, dtype=torch.uint8)
    top, left = (spec.height - tall) // 2, (spec.width - wide) // 2
    result[:, :, top : top + tall, left : left + wide] = fitted(pixels, inner)
    return result


def _size(image: Tensor) -> str:
    channels, height, width = image.shape
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"


def _reason(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return f"not {KNOWN}"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MOST_DECODED:,} pixels are not read"
    return f"cannot be read: {quoted(error)}"


# One file


def decode(path: Path, spec: ImageSpec | None) -> Picture:
    """One file. Images of more than MOST_PIXELS are reduced at once to MARGIN times the size that
    `spec` wants; without a size they are refused.

    Raises InputError, a reason without the place, and whatever Pillow raises.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError("not a plain file")
    head = _head(path)
    if not head:
        raise InputError("an empty file")
    for pattern, meaning in _FOREIGN:
        if re.match(pattern, head, re.DOTALL):
            raise InputError(meaning)
    if head[128:132] == dicom.MAGIC:
        return _of_dicom(path, spec)
    # by a handle: of a path, Pillow maps a TIFF into memory, and mixes up those turned by EXIF
    with path.open("rb") as file, Image.open(file, formats=_formats()) as picture:
        return _of_pillow(picture, path, spec)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(256)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _of_dicom(path: Path, spec: ImageSpec | None) -> Picture:
    scan = dicom.read_scan(path)
    facts = []
    if scan.windowed not in ("", "palette", "colour"):
        facts.append(("dicom-window", scan.windowed))
    if scan.frames > 1:
        facts.append(("frames", f"{scan.frames} frames"))
    values, size = scan.values, (scan.values.shape[0], scan.values.shape[1])
    values = block_means(values, _reduction(size, spec))
    bare = not scan.windowed
    return Picture(
        values, size, inverted=scan.inverted, lossless=bare, scan=bare, facts=tuple(facts)
    )


def _of_pillow(picture: Image.Image, path: Path, spec: ImageSpec | None) -> Picture:
    facts: list[tuple[str, str]] = []
    width, height = picture.size
    deep_colour = _is_deep_colour(picture)
    deep = deep_colour or picture.mode.startswith(("I", "F"))
    _check_cost(picture, path, deep)
    times = _reduction((height, width), spec)
    if times > 1 and picture.format in ("JPEG", "MPO"):
        picture.draft(None, (width // times, height // times))
    if getattr(picture, "is_animated", False) and picture.format != "MPO":
        facts.append(("frames", ""))
    turn = _tag(picture, 274) or 1
    white, inverted = _told_by(picture)
    opacity = None
    array = _sixteen_bits(picture, path) if deep_colour else None
    picture.load()  # of PNG, EXIF may come last; TIFF is turned by this
    to_turn = turn if picture.format == "TIFF" and array is not None else _orientation(picture)
    turn = turn if picture.format == "TIFF" else to_turn
    if turn in _TURNS:
        facts.append(("exif-rotation", ""))
        if _TURNS[turn][0]:
            height, width = width, height
    if array is None:
        if deep_colour:
            facts.append(("coarse", ""))
        if picture.mode == "CMYK":
            facts.append(("cmyk", ""))
        picture = _plain(picture)
        times = _reduction((picture.height, picture.width), spec)
        if not deep and times > 1:
            picture = picture.reduce(times)
        array = np.asarray(picture)
    if array.ndim == 3 and array.shape[2] in (2, 4):
        full = np.iinfo(array.dtype).max
        opacity = (array[:, :, -1] // (full // 255)).astype(np.uint8)
        array = array[:, :, 0] if array.shape[2] == 2 else array[:, :, :3]
        if bool((opacity == 255).all()):
            opacity = None
    if deep:
        if deep_colour and array.dtype == np.uint8 and array.max(initial=0) < 64:
            raise InputError(
                "colour of 16 bits of which the higher 8 are nearly empty, in a form that is not "
                "read exactly: save it with 8 bits"
            )
        array = block_means(array, times)
        opacity = None if opacity is None else block_means(opacity, times)
    array, opacity = (a if a is None else oriented(a, to_turn) for a in (array, opacity))
    assert array is not None
    return Picture(
        array, (height, width), opacity, white, inverted,
        picture.format not in ("JPEG", "MPO", "WEBP"), facts=tuple(facts),
    )  # fmt: skip


def _check_cost(picture: Image.Image, path: Path, deep: bool) -> None:
    """Refuses an image that takes too much memory, by its header."""
    pixels = picture.width * picture.height
    costly = deep or picture.format in ("JPEG2000", "AVIF")
    most = MOST_DEEP if costly else MOST_DECODED
    if pixels > most:
        raise InputError(f"{picture.width}x{picture.height} pixels; at most {most:,} are read")
    size = pixels * (1 if picture.mode in ("1", "L", "P") else 4)
    if picture.format in ("JPEG", "MPO"):  # is reduced while it is decoded
        scans = path.read_bytes().count(b"\xff\xda") if "progressive" in picture.info else 1
        if scans * pixels > MOST_SCANNED:
            raise InputError(
                f"{picture.width}x{picture.height} pixels in {scans:,} passes: refused"
            )
        return
    if size > BOMB_BYTES and size > BOMB_RATIO * path.stat().st_size:
        raise InputError(
            f"{picture.width}x{picture.height} pixels in {path.stat().st_size:,} bytes: refused as "
            "a decompression bomb"
        )


def _reduction(size: tuple[int, int], spec: ImageSpec | None) -> int:
    """By how much an image of that height and width is to be reduced before it is resized."""
    if size[0] * size[1] <= MOST_PIXELS:
        return 1
    if spec is None:
        raise InputError(
            f"{size[1]}x{size[0]} pixels; without a size to shrink them to at most "
            f"{MOST_PIXELS:,} are read"
        )
    return max(1, min(size) // (MARGIN * max(spec.height, spec.width)))


def block_means(array: Values, times: int) -> Values:
    """An image [H, W] or [H, W, C] with every square of `times` pixels as one, their mean; the
    remainder on the right and below is left out.

    >>> block_means(np.arange(16, dtype=np.uint16).reshape(4, 4), 2).tolist()
    [[2, 4], [10, 12]]
    """
    if times <= 1:
        return array
    height, width = (side // times for side in array.shape[:2])
    rows = []
    for y in range(height):
        strip = array[y * times : (y + 1) * times, : width * times].astype(np.float64)
        rows.append(strip.mean(0).reshape(width, times, *array.shape[2:]).mean(1))
    means = np.stack(rows)
    return means.round().astype(array.dtype) if array.dtype.kind in "iu" else means


def oriented(array: Values, orientation: float) -> Values:
    """An image [H, W] or [H, W, C] turned and mirrored as an EXIF orientation of 1 to 8 says."""
    exchanged, reversed_ = _TURNS.get(int(orientation), (False, ()))
    if exchanged:
        array = array.swapaxes(0, 1)
    return np.flip(array, reversed_) if reversed_ else array


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF: the image itself may be fine
        return 1


def _is_deep_colour(picture: Image.Image) -> bool:
    """Whether it has 16 bits a channel, which Pillow would cut to 8."""
    if picture.mode not in ("RGB", "RGBA", "RGBX", "LA", "CMYK"):
        return False
    return any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ())) or (
        picture.format == "TIFF" and _tag(picture, 258) == 16
    )


def _sixteen_bits(picture: Image.Image, path: Path) -> Values | None:
    """[H, W, C] uint16 of an image of 16 bits a channel, by readers that keep them; None where
    there is none for it."""
    size = (picture.height, picture.width)
    try:
        if picture.format == "PNG":
            from torchvision.io import decode_png

            content = torch.from_numpy(np.fromfile(path, np.uint8))
            found = decode_png(content).permute(1, 2, 0).numpy()
        elif picture.format == "TIFF" and picture.mode == "RGB" and _tag(picture, 284, 1) == 1:
            import kornia_rs

            found = np.asarray(kornia_rs.io.read_image_tiff_u16(str(path), "rgb"))
        else:
            return None
    except Exception:  # another release, or a file that it does not take
        return None
    fits = found.dtype == np.uint16 and found.ndim == 3 and found.shape[:2] == size
    return found if fits and found.shape[2] in (2, 3, 4) else None


def _tag(picture: Image.Image, number: int, otherwise: float | None = None) -> float | None:
    """A number in the header of a TIFF, the first where there are several."""
    value: Any = getattr(picture, "tag_v2", {}).get(number, otherwise)
    if isinstance(value, tuple):
        value = value[0] if value else otherwise
    return float(value) if isinstance(value, int | float) else otherwise


def _told_by(picture: Image.Image) -> tuple[float | None, bool]:
    """The value of white of a deep image, where its file tells it; whether it counts from white."""
    if not picture.mode.startswith(("I", "F")):
        return None, False
    if picture.format == "PPM":
        tiles = getattr(picture, "tile", ())
        # by its own maximum, to 16 bits
        scaled = any(tile[0] != "raw" for tile in tiles)
        return (65535.0 if scaled and picture.mode.startswith("I") else None), False
    if picture.format != "TIFF":
        return None, False
    inverted = _tag(picture, 262) == 0
    bits, most = _tag(picture, 258), _tag(picture, 281)
    if picture.mode.startswith("I;16"):
        if bits is not None and 8 < bits < 16:
            return 2**bits - 1, inverted
        if most is not None and 255 < most < 65535:
            return most, inverted
        if inverted:
            return 65535.0, True
    return None, False


def _plain(picture: Image.Image) -> Image.Image:
    """In a mode whose array means what it seems: L, LA, RGB, RGBA, or a deep one."""
    mode = picture.mode
    if mode.startswith(("I", "F")) or mode in ("L", "RGB", "LA", "RGBA"):
        clear = "transparency" in picture.info and mode in ("L", "RGB")
        return picture.convert({"L": "LA", "RGB": "RGBA"}[mode]) if clear else picture
    if mode == "LAB":
        from PIL import ImageCms

        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        turned = ImageCms.profileToProfile(picture, lab, rgb, outputMode="RGB")
        assert turned is not None
        return turned
    if mode == "P":
        clear = "transparency" in picture.info
        colours = picture.getpalette("RGB") or []
        grey = not clear and colours[0::3] == colours[1::3] == colours[2::3]
        return picture.convert("RGBA" if clear else "L" if grey else "RGB")
    return picture.convert({"1": "L", "La": "LA", "PA": "RGBA", "RGBa": "RGBA"}.get(mode, "RGB"))


# Memory


def affordable(where: str, count: int, shape: Sequence[int]) -> None:
    """Refuses as many images of a shape as would pass the limit of memory."""
    size = count * math.prod(shape)
    if size > most_bytes():
        raise InputError(
            f"{where}: {count:,} images of {'x'.join(str(n) for n in shape)} take {size >> 20:,} "
            f"MiB of memory, over the limit of {most_bytes() >> 20:,} (half of what is free): give "
            "fewer or smaller images"
        )


def most_bytes() -> int:
    """Bytes that images may take together: half of the memory that is free, at most 16 GiB."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found = re.search(r"MemAvailable:\s+(\d+) kB", text)
        return min(MOST_BYTES, int(found[1]) * 512) if found else MOST_BYTES
    except OSError:
        return MOST_BYTES
