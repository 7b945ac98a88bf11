"""`synthkd report`: a run, several runs, a search or a bench as one HTML file. Imports no torch."""

from pathlib import Path

from synthkd.core import files
from synthkd.core.errors import InputError, quoted
from synthkd.reports.bench_page import bench_report
from synthkd.reports.record import is_run, read_run
from synthkd.reports.run_page import run_report
from synthkd.reports.runs_page import runs_report
from synthkd.reports.search import is_search
from synthkd.reports.search_page import search_report

NAME = "report.html"
OURS = b'name="generator" content="synthkd'


def run(
    paths: tuple[Path, ...],
    *,
    out: Path | None = None,
    no_images: bool = False,
    quiet: bool = False,
) -> None:
    """Writes the report of what the paths name: `out`, or report.html in the run, the search or the
    bench, or for several in the working directory."""
    if not paths:
        raise InputError("say which run directories, search or bench: synthkd report RUN")
    target = write(paths, out=out, images=not no_images)
    if not quiet:
        print(f"report: {target}")


def write(paths: tuple[Path, ...], *, out: Path | None = None, images: bool = True) -> Path:
    """Writes a report, and says where. A file that is no report of ours is not replaced."""
    first = paths[0]
    if len(paths) > 1:
        text = runs_report([read_run(path, pictures=False) for path in paths])
    elif (first / "bench.json").is_file() and not is_run(first):
        text = bench_report(first)
    elif is_search(first) and not is_run(first):
        text = search_report(first)
    else:
        text = run_report(read_run(first, pictures=images), images=images)
    target = out or (first / NAME if len(paths) == 1 else Path(NAME))
    if target.is_dir():
        target = target / NAME
    if files.exists(target) and OURS not in _beginning(target):
        raise InputError(
            f"--out {quoted(target)}: this file is there already, and is no report of synthkd: "
            "choose another"
        )
    files.write_atomic(target, text, sync=False)
    return target


def _beginning(path: Path) -> bytes:
    """The first bytes of a plain file."""
    if not files.is_plain(path):
        return b""
    with path.open("rb") as file:
        return file.read(1024)
