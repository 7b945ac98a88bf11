"""Reports: of runs in every state, of several, of a bench; and what strangers put into files."""

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from short_runs import main, status

from synthkd.core.errors import InputError
from synthkd.reports.charts import line_chart
from synthkd.reports.glance import glance, read_ends, sparkline
from synthkd.reports.record import Curve, Span, Thinned, rates, read_run
from synthkd.reports.run_page import run_report
from synthkd.reports.runs_page import runs_report
from synthkd.reports.search_page import search_report

SHORT = shlex.split(
    "distill --student resnet8-w4 --images-seen 2048 --training.batch 32 --run.threads 1 --quiet "
    "--stage.refine.synthesis-steps 2 --stage.refine.synthesis-batch 32 --stage.refine.fresh 32 "
    "--stage.draw.fresh 256"
)
HOSTILE = [
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "' onmouseover='alert(1)",
    "javascript:alert(1)", "</style><script>alert(1)</script>", "</title><script>x</script>",
    "{{ 7 * 7 }}", "{% for x in y %}", "&lt;script&gt;", "<!--", "-->", "]]>",
    "<svg/onload=alert(1)>",
    "http://example.org/x", "https://example.org", "//example.org/a.js", "data:text/html,<script>",
    "<iframe src=//example.org>", "<link rel=stylesheet href=//example.org>", "<base href=//x>",
    "url(http://example.org)", "expression(alert(1))", "\x1b[31mred\x1b[0m",
    "a\nb\r\nc", "\x00\x07",
    "$\\frac{1}{2}$", "$$", "\\", "`", "|", "%s%n", "../../etc/passwd", "\u202eevil", "\ud800",
    "🙂" * 50, "x" * 100_000, "<meta http-equiv=refresh content='0;url=//x'>", "<a href=//x>x</a>",
    "#000001", "<style>*{background:url(//x)}</style>",
]  # fmt: skip


class Reader(HTMLParser):
    """Everything in a page that could run, or lead outside."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.bad: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ("script", "iframe", "object", "embed", "link", "base", "form", "a", "frame"):
            self.bad.append(tag)
        for name, value in attrs:
            inside = (value or "").startswith(("data:image/", "#"))
            if name.startswith("on") or (
                name in ("src", "href", "xlink:href", "action") and not inside
            ):
                self.bad.append(f"{tag} {name}={value}")
            if name == "style" and ("url(" in (value or "") or "expression" in (value or "")):
                self.bad.append(f"{tag} style={value}")

    def handle_data(self, data):
        self.text.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.bad == []
    assert reader.tags.count("html") == reader.tags.count("style") == 1
    assert html.count("Content-Security-Policy") == 1
    return reader


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "run"
    main([*SHORT, "--out", str(out)])
    return out


def copied(run: Path, place: Path) -> Path:
    shutil.copytree(run, place)
    return place


def test_a_run_ends_with_a_report_of_what_was_asked_and_what_came_out(finished: Path) -> None:
    html = (finished / "report.html").read_text()
    text = " ".join(read(html).text)
    summary = json.loads((finished / "summary.json").read_text())
    assert f"{100 * summary['student_accuracy']:.2f} %" in text
    assert f"{100 * summary['teacher_accuracy']:.2f} %" in text
    assert f"constant {100 * summary['constant_accuracy']:.2f} %" in text
    for words in ("This run read no real data", "How it went", "The images", "Classes",
                  "Where the time went", "Quality", "The plan", "How to repeat it",
                  "2,048 student images of the pipeline synthkd", "noise to our eyes"):  # fmt: skip
        assert words in text
    assert html.count("<svg") >= 4 and html.count("data:image/") >= 5
    assert len(html) < 5_000_000


def test_details_count_the_votes_and_describe_the_classes(finished: Path) -> None:
    details = json.loads((finished / "details.json").read_text())
    summary = json.loads((finished / "summary.json").read_text())
    votes = details["held_out"]["votes"]
    assert sum(n for *_, n in votes) == summary["held_out_images"]
    right = sum(n for t, s, n in votes if t == s)
    assert right / summary["held_out_images"] == pytest.approx(summary["held_out_agreement"])
    assert len(details["classes"]) == 10
    assert sum(row["n"] for row in details["classes"]) == summary["val_images"]
    assert set(details["quality"]) >= {"teacher_inception_score", "intra_class_diversity"}


def test_sheets_know_what_they_show(finished: Path) -> None:
    pictures = {picture.name: picture for picture in read_run(finished).pictures}
    assert {"draw-first", "refine-first", "refine-middle", "refine-latest", "memory",
            "hardest"} <= set(pictures)  # fmt: skip
    first, latest = (pictures[f"refine-{moment}"].caption for moment in ("first", "latest"))
    assert first["kind"] == "pixels" and len(first["rows"]) == 10
    assert 0 < first["share"] < latest["share"] <= 1
    assert 0.1 <= first["confidence"] <= 1
    assert len(pictures["hardest"].caption["images"]) == 16


@pytest.mark.slow
def test_no_report_is_written_where_none_is_wanted(tmp_path: Path) -> None:
    main([*SHORT, "--no-report", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run" / "report.html").exists()


def test_without_images_there_are_none(finished: Path, tmp_path: Path) -> None:
    main(["report", str(finished), "--no-images", "--out", str(tmp_path / "r.html"), "--quiet"])
    html = (tmp_path / "r.html").read_text()
    read(html)
    assert "data:image/" not in html


def test_a_file_that_is_no_report_is_not_replaced(finished: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.html").write_text("mine")
    assert status("report", str(finished), "--out", str(tmp_path / "mine.html")) == 2
    assert (tmp_path / "mine.html").read_text() == "mine"
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("gone", ["summary.json", "metrics.jsonl", "manifest.json", "recipe.toml",
                                  "details.json", "samples"])  # fmt: skip
def test_a_run_that_lacks_something_is_shown_as_far_as_it_goes(
    finished: Path, tmp_path: Path, gone: str
) -> None:
    run = copied(finished, tmp_path / "run")
    target = run / gone
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    read(run_report(read_run(run)))


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "manifest.json", "recipe.toml",
                                  "details.json", "samples/memory.png"])  # fmt: skip
@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 40, b"[1, 2", b"[]\n", b"3\n", b"{}\n",
                                     b'{"a": ' * 4000, b"null\n"])  # fmt: skip
def test_damaged_files_are_said_and_not_stumbled_over(
    finished: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    run = copied(finished, tmp_path / "run")
    (run / name).write_bytes(content)
    read(run_report(read_run(run)))


def test_an_interrupted_run_says_how_to_go_on(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    (run / "summary.json").unlink()
    record = read_run(run)
    assert record.state == "interrupted"
    text = " ".join(read(run_report(record)).text)
    assert "was interrupted" in text and "--resume" in text
    assert glance(run).state == "interrupted"


def poisoned(value: object, text: str) -> object:
    """Plain data with a text in the place of every text and of every name of an entry."""
    if isinstance(value, dict):
        known = {k: poisoned(v, text) for k, v in value.items()}
        return known | {text: text}
    if isinstance(value, list):
        return [poisoned(v, text) for v in value] + [text]
    return text if isinstance(value, str) else value


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_are_shown_as_texts(finished: Path, tmp_path: Path, text: str) -> None:
    run = copied(finished, tmp_path / "run")
    for name in ("summary.json", "manifest.json", "details.json"):
        data = poisoned(json.loads((run / name).read_text()), text)
        (run / name).write_text(json.dumps(data))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = [line | {"stage": text, text: 1.0, f"term.{text}": 2.0} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    (run / "recipe.toml").write_text(text, encoding="utf-8", errors="replace")
    caption = PngInfo()
    caption.add_text("synthkd", json.dumps({"rows": [text], "kind": text, "images": [text]}))
    sheet = run / "samples" / "memory.png"
    with Image.open(sheet) as picture:
        picture.save(sheet, pnginfo=caption)
    record = read_run(run)
    html = run_report(record)
    read(html)
    html.encode("utf-8")
    if HOSTILE.index(text) % 8 == 0:
        read(runs_report([record, record]))


def test_numbers_that_are_none_are_not_drawn(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    odd = [
        '{"seconds": NaN, "round": 1}', '{"seconds": 1e999, "loss": 1}', '{"seconds": "1"}',
        '{"seconds": 2, "loss": -1e308}', '{"seconds": 3, "loss": 1e308}', '{"seconds": true}',
        '{"seconds": ' + "9" * 400 + "}",
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("\n".join(lines + odd) + "\n")
    read(run_report(read_run(run)))


def test_two_runs_stand_side_by_side(finished: Path, tmp_path: Path) -> None:
    other = copied(finished, tmp_path / "other")
    main(["report", str(finished), str(other), "--out", str(tmp_path / "r.html"), "--quiet"])
    text = " ".join(read((tmp_path / "r.html").read_text()).text)
    assert "other" in text and "2 runs side by side" in text


def test_a_bench_has_its_table_and_its_plot(tmp_path: Path) -> None:
    folder = copied(Path(__file__).parents[1] / "docs/bench/cifar10", tmp_path / "bench")
    main(["report", str(folder), "--quiet"])
    html = (folder / "report.html").read_text()
    text = " ".join(read(html).text)
    assert "nayer" in text and "synthkd" in text and "data:image/" in html


def searched(folder: Path, student: str = "resnet8-w8", odd: str = "nsga2") -> Path:
    """The directory of a search, without its student."""
    folder.mkdir()
    trial = {"student": student, "seconds": 4.0, "agreement": 0.9, "milliseconds": 1.5,
             "parameters": 1000, "generation": 1}  # fmt: skip
    slow = trial | {"student": "prune:0.2", "seconds": 0.0, "agreement": 0.0, "milliseconds": 7.0}
    lines = [json.dumps(one | {"params": {}}) for one in (trial, slow)]
    (folder / "trials.jsonl").write_text("\n".join(lines) + "\n")
    recipe = json.dumps({"teacher": {"spec": odd}, "budget": {"minutes": 3.0}})
    asked = {"recipe": recipe, "limit": 2.0, "sampler": odd}
    (folder / "search.json").write_text(json.dumps(asked))
    found = {"chosen": trial, "milliseconds": 2.5, "conditions": odd,
             "timed_for_longer": {student: 2.25, "b": None, "c": [1]}}  # fmt: skip
    (folder / "front.json").write_text(json.dumps(found))
    return folder


def test_a_search_has_its_front_its_candidates_and_what_was_chosen(
    tmp_path: Path, finished: Path
) -> None:
    folder = searched(tmp_path / "found")
    main(["report", str(folder), "--quiet"])
    text = " ".join(read((folder / "report.html").read_text()).text)
    for words in ("resnet8-w8", "2 candidates", "90.00 %", "not tried: too slow", "limit 2",
                  "the student takes 2.5 ms, the limit is 2", "interrupted",
                  "chosen, 2.25 ms when timed for longer: too slow",
                  "3 minutes"):  # fmt: skip
        assert words in text
    copied(finished, folder / "student")
    main(["report", str(folder), "--quiet"])
    text = " ".join(read((folder / "report.html").read_text()).text)
    accuracy = json.loads((finished / "summary.json").read_text())["student_accuracy"]
    assert f"{100 * accuracy:.2f} %" in text and "This run read no real data" in text
    assert "finished" in text


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_of_a_search_are_shown_as_texts(tmp_path: Path, text: str) -> None:
    read(search_report(searched(tmp_path / "found", text, text)))


@pytest.mark.parametrize("name", ["search.json", "trials.jsonl", "front.json"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 40, b"[1, 2", b"3\n", b"{}\n",
                                     b'{"chosen": 3, "recipe": [], "student": "a"}\n'])  # fmt: skip
def test_a_damaged_search_is_shown_as_far_as_it_goes(
    tmp_path: Path, name: str, content: bytes
) -> None:
    folder = searched(tmp_path / "found")
    (folder / name).write_bytes(content)
    try:
        read(search_report(folder))
    except InputError as error:  # what was asked for is not known at all
        assert name == "search.json" and "\n" not in str(error)


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path, capsys) -> None:
    for words in (("report", str(tmp_path)), ("watch", str(tmp_path)), ("report",),
                  ("report", str(tmp_path / "none"))):  # fmt: skip
        assert status(*words) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_series_is_thinned_to_means_of_neighbours() -> None:
    series = Thinned(points=4)
    for x in range(1000):
        series.add(float(x), float(x) ** 2)
    curve = series.curve()
    assert 4 <= len(curve.minutes) <= 8
    assert list(curve.minutes) == sorted(curve.minutes)
    width = 1000 / len(curve.minutes)
    for x, y in zip(curve.minutes, curve.values, strict=True):  # mean of squares = mean² + variance
        assert y == pytest.approx(x**2, abs=width**2 / 6)


def test_rates_of_a_line_are_its_slope() -> None:
    line = Curve((0.0, 0.5, 2.0), (10.0, 40.0, 130.0))  # 60 a minute
    assert rates(line).values == pytest.approx((1.0, 1.0))


def test_a_chart_is_text_without_address_or_script() -> None:
    curve = Curve((0.0, 1.0), (0.1, 0.9))
    for title in ("agreement", "<script>", "$x$", "a_b^c"):
        chart = line_chart(title, {title: curve}, spans=[Span("draw", 0, 0.5)], share=True)
        assert "http" not in chart and "<script" not in chart
        assert "var(--line0)" in chart and "#0000" not in chart.replace("#000001", "")
    assert line_chart("a", {"a": Curve((), ())}).startswith("<svg")
    assert math.isfinite(len(line_chart("a", {"a": Curve((0.0,), (-1.0,))}, log=True)))


def test_ids_of_two_charts_differ() -> None:
    curve = Curve((0.0, 1.0), (0.1, 0.9))
    ids = [set(re.findall(r'id="([^"]+)"', line_chart(t, {t: curve}))) for t in ("a", "b")]
    clips = [{one for one in found if one.startswith("p")} for found in ids]
    assert clips[0] and not {c for c in clips[0] if len(c) > 8} & clips[1]


def test_watch_reads_the_ends_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        for k in range(30_000):
            file.write(json.dumps({"round": k, "seconds": k / 10, "agreement": k / 30_000}) + "\n")
        file.write('{"round": 30000, "sec')  # being written
    sampled, tail = read_ends(path)
    assert tail[-1]["round"] == 29_999
    rounds = [line["round"] for line in sampled]
    assert rounds == sorted(rounds) and rounds[0] == 0 and len(rounds) > 50
    assert max(b - a for a, b in pairwise(rounds)) < 2000


def test_watch_shows_a_finished_run_and_imports_no_torch(finished: Path) -> None:
    code = (
        "import sys; from synthkd import cli\n"
        "try: cli.main(['watch', sys.argv[1], '--once'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(finished)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout and "student accuracy" in done.stdout


def test_looking_changes_nothing(finished: Path) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        found = [p for p in sorted(finished.rglob("*")) if p.is_file()]
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in found}

    before = state()
    glance(finished)
    read_run(finished)
    assert state() == before


def test_a_constant_series_is_a_flat_line() -> None:
    assert set(sparkline([2.0] * 9)) == {"▁"}
    assert len(sparkline(list(map(float, range(1000))), width=40)) == 40


def test_the_report_of_nothing_is_an_error() -> None:
    import synthkd

    with pytest.raises(InputError, match="which run"):
        synthkd.report()
