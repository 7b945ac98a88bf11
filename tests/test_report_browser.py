"""Reports in a real browser: no error on its console, nothing fetched from elsewhere."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from short_runs import main
from test_report import HOSTILE, SHORT, poisoned

from synthkd.reports.bench_page import bench_report
from synthkd.reports.record import read_run
from synthkd.reports.run_page import run_report

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
     if (found := shutil.which(name))), None,
)  # fmt: skip
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser is installed")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("browser") / "run"
    main([*SHORT, "--out", str(out)])
    return out


def looked_at(html: Path, folder: Path, *flags: str) -> tuple[str, set[str]]:
    """What a browser says of a page on its console, and the addresses it asked for."""
    log = folder / "net.json"
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--disable-default-apps", "--enable-logging=stderr", f"--log-net-log={log}",
         f"--user-data-dir={folder / 'profile'}", "--dump-dom", *flags, f"file://{html}"],
        capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "HOME": str(folder)},
    )  # fmt: skip
    assert "<h1>" in done.stdout
    told = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    addresses = set(re.findall(r'"url":"([^"]+)"', log.read_text(errors="replace")))
    return told, {a for a in addresses if not a.startswith(("file:", "data:", "chrome"))}


def test_the_report_of_a_run_opens_in_silence(finished: Path, tmp_path: Path) -> None:
    told, addresses = looked_at(finished / "report.html", tmp_path)
    assert told == ""
    assert not {a for a in addresses if "google" not in a}, addresses  # the browser's own checks


def test_hostile_texts_in_every_field_do_nothing(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for name in ("summary.json", "manifest.json", "details.json"):
        data = json.loads((run / name).read_text())
        for text in HOSTILE:
            if len(text) < 1000:
                data = data | {text: text}
        (run / name).write_text(json.dumps(poisoned(data, HOSTILE[1])))
    html = tmp_path / "r.html"
    html.write_text(run_report(read_run(run)), encoding="utf-8", errors="replace")
    told, addresses = looked_at(html, tmp_path)
    assert told == ""
    assert not {a for a in addresses if "google" not in a}, addresses


def test_a_bench_opens_too(tmp_path: Path) -> None:
    html = tmp_path / "r.html"
    html.write_text(bench_report(Path(__file__).parents[1] / "docs/bench/cifar10"))
    told, _ = looked_at(html, tmp_path)
    assert told == ""
