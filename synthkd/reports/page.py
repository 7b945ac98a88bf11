"""A page as one self-contained HTML file, and what its tables and pictures are made of.

No script, no address outside, and every text that comes from a file is escaped. Light, dark, narrow
or printed, by the style sheet in `report.html`.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from PIL import Image

from synthkd import __version__
from synthkd.core.errors import plain
from synthkd.reports.record import Picture, number

MOST_ROWS = 1000  # of a table
PICTURE_WIDTH = 960  # pixels
SMALL = 200_000  # bytes up to which a sheet stays a PNG


def rendered(**view: Any) -> str:
    """The page of a view: title, state, badge, lead, findings, figures, asked, promise, statement,
    and blocks, of which each has what `report.html` shows of it."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = resources.files("synthkd.reports").joinpath("report.html").read_text("utf-8")
    empty = ("lines", "charts", "images", "confusion", "tables", "bars", "texts")
    view["blocks"] = [dict.fromkeys(empty, ()) | block for block in view["blocks"]]
    return environment.from_string(text).render(
        version=__version__, footer=f"Made by synthkd {__version__}.", **_markup(view)
    )


def _markup(view: Mapping[str, Any]) -> dict[str, Any]:
    """The view, with our own charts marked as HTML; nothing else is."""
    from markupsafe import Markup

    blocks = [
        block | {"charts": [Markup(chart) for chart in block["charts"]]} for block in view["blocks"]
    ]
    return {**view, "blocks": blocks}


def image(picture: Picture, title: str, text: str) -> dict[str, Any]:
    """A sheet as data of the page: at most PICTURE_WIDTH wide, and small."""
    with Image.open(io.BytesIO(picture.content), formats=("PNG",)) as opened:
        image = opened.convert("RGB")
    content, kind = picture.content, "png"
    if image.width > PICTURE_WIDTH or len(content) > SMALL:
        height = round(image.height * PICTURE_WIDTH / image.width)
        if image.width > PICTURE_WIDTH:
            image = image.resize((PICTURE_WIDTH, max(1, height)), Image.Resampling.LANCZOS)
        held = io.BytesIO()
        image.save(held, format="WEBP", quality=82, method=4)
        content, kind = held.getvalue(), "webp"
    return {
        "source": f"data:image/{kind};base64,{base64.b64encode(content).decode()}",
        "width": image.width, "height": image.height, "title": title, "text": text,
    }  # fmt: skip


def plain_lines(text: str) -> str:
    """A text without control characters, but with its lines."""
    return "\n".join(plain(line) for line in text.split("\n"))


def short(spec: object) -> str:
    """A SPEC without the folders before its file."""
    text = plain(str(spec))
    return text.rsplit("/", 1)[-1] if "/" in text else text


def table(header: Sequence[str], rows: Iterable[Sequence[object]], text: int = 1) -> dict[str, Any]:
    """A table of a block, whose first `text` columns are set as words and the others as numbers."""
    return {"header": header, "rows": list(rows), "text": text, "title": "", "folded": ""}


def percent(value: object, digits: int = 2) -> str:
    """A share in percent; a dash for what is no number.

    >>> percent(0.123), percent(None)
    ('12.30 %', '–')
    """
    found = number(value)
    return "–" if found is None else f"{100 * found:.{digits}f} %"


def count(value: object) -> str:
    """A whole number; a dash for what is no number.

    >>> count(12345.0), count("many")
    ('12,345', '–')
    """
    found = number(value)
    return "–" if found is None else f"{found:,.0f}"


def mapping(value: object) -> Mapping[str, Any]:
    """A table of a file, and an empty one in the place of anything else."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: object) -> Sequence[Any]:
    """A list of a file, and an empty one in the place of anything else."""
    return value if isinstance(value, list | tuple) else ()
