"""Parts of one's own in a file that `run.plugins` names: on the command line, in a benchmark, and
told in the manifest."""

import json
import os
import shlex
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGIN = """
from torch import Tensor

from synthkd.losses.distillation import TERMS, DistillationView
from synthkd.losses.term import Term


def margin_gap(view: DistillationView) -> Tensor:
    best = [logits.topk(2, dim=1).values for logits in (view.learned, view.taught)]
    ours, theirs = (top[:, 0] - top[:, 1] for top in best)
    return (ours - theirs).abs()


TERMS["margin_gap"] = Term("distance of the margins", margin_gap)
"""
SHORT = shlex.split(
    "--student resnet8-w4 --training.batch 32 --run.threads 1 --memory.capacity 100 "
    "--val-data demo:unseen"
)
USED = ["--run.plugins", "mine.py", "--trust-code"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(PLUGIN)
    return tmp_path


def synthkd(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "synthkd", *words], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, timeout=110,
    )  # fmt: skip


@pytest.mark.slow
def test_a_loss_of_ones_own_is_there_on_the_command_line(place: Path) -> None:
    words = ["distill", *SHORT, "--pipeline", "noise", "--images-seen", "64", "--out", "run",
             "--training.terms", "soft_targets=1,margin_gap=0.05"]  # fmt: skip
    done = synthkd(place, *words, *USED)
    assert done.returncode in (0, 3), done.stderr
    told = json.loads((place / "run/manifest.json").read_text())
    assert told["plugins"] == {"mine.py": sha256(PLUGIN.encode()).hexdigest()}
    rows = {row["path"]: row["role"] for row in told["opened"][0]["files"]}
    assert rows[str(place / "mine.py")] == "plugin"
    unknown = synthkd(place, *words)
    assert unknown.returncode == 2 and "margin_gap" in unknown.stderr
    untrusted = synthkd(place, *words, "--run.plugins", "mine.py")
    assert untrusted.returncode == 2 and "would run the code in 'mine.py'" in untrusted.stderr
    missing = synthkd(place, *words, "--run.plugins", "other.py", "--trust-code")
    assert missing.returncode == 2 and "there is no such file" in missing.stderr


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_plugin(place: Path) -> None:
    done = synthkd(
        place, "generate", "--count", "20", "--run.threads", "1", "--out", "set", *USED,
        "--pipeline", "noise",
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    assert "mine.py" in json.loads((place / "set/manifest.json").read_text())["plugins"]
    run = place / "run"
    words = ["distill", *SHORT, "--pipeline", "noise", "--images-seen", "6400000", "--out", "run"]
    begun = subprocess.Popen(
        [sys.executable, "-m", "synthkd", *words, *USED, "--quiet"], cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while not (run / "metrics.jsonl").exists() and begun.poll() is None:
        time.sleep(0.2)
    begun.terminate()
    assert begun.wait(60) == 143
    (place / "mine.py").write_text(PLUGIN + "\n# changed\n")
    again = synthkd(place, "distill", "--resume", "run", "--trust-code")
    assert again.returncode == 2 and "run.plugins were changed" in again.stderr


@pytest.mark.slow
def test_a_benchmark_compares_a_loss_of_ones_own_with_the_others(place: Path) -> None:
    text = (ROOT / "pipelines/noise.toml").read_text()
    assert "[training]" in text and "[training.terms]" not in text
    terms = "[training.terms]\nsoft_targets = 1.0\nmargin_gap = 0.05\n\n[[stage]]"
    (place / "mine.toml").write_text(text.replace("[[stage]]", terms, 1))
    done = synthkd(
        place, "bench", "--student", "resnet8-w4", "--run.threads", "1", *USED, "--pipelines",
        "noise,./mine.toml", "--minutes", "0.15", "--val-data", "demo:unseen", "--out", "compared",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads((place / "compared/results.json").read_text())["runs"]
    assert {run["state"] for run in runs} == {"finished"} and len(runs) == 2
    assert all("constant_accuracy" in run and run["verdict"] for run in runs)
    assert "a constant, %" in (place / "compared/table.md").read_text()
