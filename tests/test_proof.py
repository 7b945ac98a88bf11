"""What a run can show of what it read: cheats, each with the level of proof that catches it.

| cheat | caught by |
|---|---|
| the teacher's code opens a folder of images | 1 (listed), 2 (refused) |
| … in a child, by mmap, by ctypes, by /proc/self/fd, by a link inside an allowed folder | 2 |
| network | 1 (listed), 2 (refused) |
| an extra key, between or after zip members, a pickle's padding, a safetensors header | 3 |
| an initializer that no node reads, a buffer that no answer depends on | 3 |
| in the weights themselves | none |
"""

import json
import os
import pickle
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from short_runs import DONE, status
from torch import nn

from synthkd.core.errors import InputError
from synthkd.networks import build_network
from synthkd.proof import hashes, landlock, pickled, seccomp
from synthkd.proof.accounting import Account, account, account_teachers
from synthkd.proof.containers import safetensors_layout, zip_layout
from synthkd.proof.declared import VALIDATION, Place, declared, external_files
from synthkd.proof.levels import level_of
from synthkd.proof.opened import Recording, judged
from synthkd.proof.sealing import _fingerprint as sealing_of
from synthkd.proof.sealing import unchanged
from synthkd.proof.unread import unread
from synthkd.recipe import load_recipe, validated
from synthkd.specs import load_teachers
from synthkd.specs.ensembles import ensemble_tables

ROOT = Path(__file__).resolve().parents[1]
SEALS = landlock.version() > 0 and os.uname().machine in seccomp.MACHINES
sealing = pytest.mark.skipif(not SEALS, reason="this kernel has no Landlock")
SHORT = shlex.split(
    "--student resnet8-w4 --images-seen 64 --training.batch 32 --pipeline noise --run.threads 1 "
    "--memory.capacity 100 --val-data none --out run --quiet"
)
CONTRACT = shlex.split(
    "--image-size 16 --channels 1 --teacher-mean 0.5 --teacher-std 0.25 --anyway"
)

PAYLOAD = "cGl4ZWxz" * 1000  # eight thousand bytes of foreign text


def synthkd(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "synthkd", *words],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip


def manifest_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


# --- sealed runs: the cheats of a teacher's code, all in one

CHEATS = """
import ctypes, json, mmap, os, socket, subprocess, sys
from pathlib import Path
from torch import nn

HIDDEN = Path({hidden!r})
BESIDE = Path({beside!r})

def by_open(): return HIDDEN.read_bytes()
def by_listing(): return os.listdir(HIDDEN.parent)
def run(*words): return subprocess.run(words, capture_output=True, check=True).stdout
def by_child(): return run("/bin/cat", str(HIDDEN))
def by_python():
    code = f"print(open({{str(HIDDEN)!r}}, 'rb').read())"
    return run(sys.executable, "-c", code)
def by_mmap():
    handle = os.open(HIDDEN, os.O_RDONLY)
    return mmap.mmap(handle, 0, access=mmap.ACCESS_READ)[:]
def by_ctypes():
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.open(str(HIDDEN).encode(), 0)
    if handle < 0: raise PermissionError(ctypes.get_errno())
    held = ctypes.create_string_buffer(64)
    return held.raw[: libc.read(handle, held, 64)]
def by_handle():
    for number in range(3, 64):
        try:
            if found := os.read(number, 64): return found
        except OSError: pass
    return Path("/proc/self/fd/9").read_bytes()
def by_input(): return os.read(0, 64) or (_ for _ in ()).throw(OSError("empty"))
def by_link(): return BESIDE.read_bytes()
def by_attribute(): return os.getxattr(HIDDEN, "user.image")
def by_environment(): return os.environ["SYNTHKD_TEST_IMAGE"]
def by_socket():
    s = socket.create_connection(("127.0.0.1", {port}), 2)
    return s.recv(64)
def by_parent(): return Path(f"/proc/{{os.getppid()}}/environ").read_bytes()
def by_writing(): return Path({outside!r}).write_text("x")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        got = {{}}
        for name, way in sorted(globals().items()):
            if name.startswith("by_"):
                try: got[name] = str(way())[:40]
                except BaseException as error: got[name] = None
        Path({report!r}).write_text(json.dumps(got))
        self.conv, self.linear = nn.Conv2d(1, 8, 3, 2), nn.Linear(8, 10)

    def forward(self, x):
        return self.linear(self.conv(x).relu().mean((2, 3)))
"""


@pytest.fixture
def cheating(tmp_path: Path) -> Path:
    """A folder with a teacher that tries every way to a file of images, and a server for it."""
    hidden = tmp_path / "images" / "secret.png"
    hidden.parent.mkdir()
    hidden.write_bytes(b"the pixels of a real image")
    work = tmp_path / "work"
    (work / "run").mkdir(parents=True)
    (work / "nets").mkdir()
    (work / "nets" / "beside.bin").symlink_to(hidden)
    return work


def cheat(work: Path, *more: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    hidden = work.parent / "images" / "secret.png"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        code = CHEATS.format(
            hidden=str(hidden), beside=str(work / "nets" / "beside.bin"),
            outside=str(work.parent / "written"), report=str(work / "run" / "got.json"),
            port=server.getsockname()[1],
        )  # fmt: skip
        (work / "nets" / "cheat.py").write_text(code)
        report = work / "run" / "got.json"
        handle = os.open(hidden, os.O_RDONLY)
        os.set_inheritable(handle, True)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "synthkd", "distill", *SHORT, *CONTRACT, *more,
                 "--teacher", "nets/cheat.py:Net", "--trust-code"],
                cwd=work, pass_fds=[handle], stdin=hidden.open(), capture_output=True, text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                     "SYNTHKD_TEST_IMAGE": "pixels"},
                timeout=110,
            )  # fmt: skip
        finally:
            os.close(handle)
    return done, json.loads(report.read_text()) if report.exists() else {}


@sealing
def test_a_sealed_teacher_gets_at_no_image_in_any_way(cheating: Path) -> None:
    done, got = cheat(cheating, "--sealed")
    assert len(got) >= 13, done.stderr
    assert {name: found for name, found in got.items() if found is not None} == {}
    assert not (cheating.parent / "written").exists()


@pytest.mark.slow
def test_without_the_seal_the_same_ways_lead_to_the_image(cheating: Path) -> None:
    """So that the test above cannot pass for another reason."""
    _, got = cheat(cheating)
    taken = {name for name, found in got.items() if found is not None}
    assert {"by_open", "by_child", "by_python", "by_mmap", "by_ctypes", "by_handle", "by_link",
            "by_environment", "by_listing", "by_writing"} <= taken  # fmt: skip


READING = """
from pathlib import Path
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        try: Path({hidden!r}).read_bytes()
        except OSError: pass
        self.conv, self.linear = nn.Conv2d(1, 8, 3, 2), nn.Linear(8, 10)

    def forward(self, x):
        return self.linear(self.conv(x).relu().mean((2, 3)))
"""


@pytest.mark.slow
def test_a_teacher_that_reads_an_image_is_listed_and_verify_says_so(tmp_path: Path) -> None:
    hidden = tmp_path / "image.png"
    hidden.write_bytes(b"pixels")
    (tmp_path / "net.py").write_text(READING.format(hidden=str(hidden)))
    done = synthkd(
        tmp_path, "distill", *SHORT, *CONTRACT, "--teacher", "net.py:Net", "--trust-code"
    )
    assert done.returncode in DONE, done.stderr
    told = manifest_in(tmp_path / "run")
    rows = {row["path"]: row for row in told["opened"][0]["files"]}
    assert rows[str(hidden)]["role"] == "unknown"
    assert rows[str(hidden)]["when"] == "before the student was chosen"
    assert rows[str(tmp_path / "net.py")]["role"] == "teacher"
    assert told["proof_level"] == 1
    codes = [
        found["code"]
        for found in json.loads((tmp_path / "run/summary.json").read_text())["findings"]
    ]
    assert "opened-elsewhere" in codes
    checked = synthkd(tmp_path, "verify", "run")
    assert checked.returncode == 1
    assert f"{str(hidden)!r} was read, and no recipe names it" in checked.stdout
    assert checked.stdout.count("differs:") == 1


@sealing
def test_a_sealed_run_says_the_same_student_and_tells_of_its_seal(tmp_path: Path) -> None:
    plain = synthkd(tmp_path, "distill", *SHORT)
    assert plain.returncode in DONE, plain.stderr
    (tmp_path / "run").rename(tmp_path / "plain")
    done = synthkd(tmp_path, "distill", "--sealed", *SHORT)
    assert done.returncode in DONE, done.stderr
    assert done.stderr == ""
    for name in ("student.safetensors", "recipe.toml"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    told = manifest_in(tmp_path / "run")
    assert (told["proof_level"], manifest_in(tmp_path / "plain")["proof_level"]) == (3, 1)
    (seal,) = told["sealed"]
    assert seal["abi"] == landlock.version() and "socket" in seal["refused_calls"]
    assert seal["packages"]["torch"] and seal["write"][0] == str((tmp_path / "run").resolve())
    assert told["accounting"]["files"][0]["spare"] == 0
    checked = synthkd(tmp_path, "verify", "run", "--rerun")
    assert checked.returncode == 0, checked.stdout
    assert "the student is equal" in checked.stdout


@pytest.mark.slow
@sealing
def test_a_sealed_run_reads_the_data_that_its_recipe_names_and_no_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("mine", "other"):
        pixels = rng.integers(0, 256, (40, 16, 16), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", x=pixels, y=np.arange(40) % 10)
    words = [w for w in SHORT if w not in ("--val-data", "none")]
    done = synthkd(
        tmp_path,
        "distill",
        "--sealed",
        *words,
        "--val-data",
        "mine.npz",
        "--real-data",
        "other.npz",
    )
    assert done.returncode in DONE, done.stderr
    told = manifest_in(tmp_path / "run")
    allowed = {Path(entry["path"]).name: entry["role"] for entry in told["sealed"][0]["read"]}
    assert allowed == {"noise.toml": "recipe", "mine.npz": "validation data"}  # mix ratio 1
    rows = {Path(row["path"]).name: row for row in told["opened"][0]["files"]}
    assert rows["mine.npz"]["when"] == "after the student was chosen"
    assert "other.npz" not in rows


@pytest.mark.slow
@sealing
def test_a_sealed_run_that_was_stopped_goes_on_sealed(tmp_path: Path) -> None:
    words = [word if word != "64" else "6400000" for word in SHORT]
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                   "TMPDIR": str(tmp_path / "tmp")}  # fmt: skip
    begun = subprocess.Popen(
        [sys.executable, "-m", "synthkd", "distill", "--sealed", *words],
        cwd=tmp_path, env=environment, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    begun.send_signal(signal.SIGTERM)
    begun.communicate(timeout=30)
    assert begun.returncode == 143
    told = manifest_in(tmp_path / "run")
    assert told["state"] == "running" and len(told["opened"]) == 1
    assert list((tmp_path / "tmp").iterdir()) == []
    again = subprocess.Popen(
        [sys.executable, "-m", "synthkd", "distill", "--sealed", "--resume", "run", "--quiet"],
        cwd=tmp_path, env=environment, stderr=subprocess.PIPE,
    )  # fmt: skip
    while len(manifest_in(tmp_path / "run")["sealed"]) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=30)
    told = manifest_in(tmp_path / "run")
    assert again.returncode == 143
    assert [bool(record) for record in told["sealed"]] == [True, True]
    assert level_of(told)[0] == 2


@pytest.mark.slow
@sealing
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--teacher", "timm:resnet18", "--teacher-weights", "hub"),
            "--teacher-weights hub needs a",
        ),
        (("--teacher", "missing.py:Net", "--trust-code"), "there is no file 'missing.py'"),
    ],
)
def test_what_cannot_be_sealed_is_one_line_and_leaves_nothing(tmp_path: Path, words, said) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    done = synthkd(tmp_path, "distill", "--sealed", *SHORT, *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and said in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    taken = ["full" if word == "run" else word for word in SHORT]
    done = synthkd(tmp_path, "distill", "--sealed", *taken)
    assert done.returncode == 2 and "this directory is not empty" in done.stderr
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


@sealing
def test_the_marks_of_a_seal_do_not_make_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "synthkd", "distill", "--sealed", *SHORT], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SYNTHKD_SEALED": "1"},
        input=json.dumps({"canary": str(ROOT / "README.md")}), capture_output=True, text=True,
    )  # fmt: skip
    assert (
        done.returncode == 2 and "the seal does not hold (a file elsewhere, a socket" in done.stderr
    )


@pytest.mark.slow
@sealing
def test_a_set_of_images_is_made_sealed(tmp_path: Path) -> None:
    done = synthkd(
        tmp_path, "generate", "--sealed", "--pipeline", "noise", "--count", "20", "--quiet",
        "--run.threads", "1", "--out", "set",
    )  # fmt: skip
    assert done.returncode in DONE, done.stderr
    assert manifest_in(tmp_path / "set")["proof_level"] == 3
    checked = synthkd(tmp_path, "verify", "set", "--json")
    assert checked.returncode == 0, checked.stdout
    assert json.loads(checked.stdout)["verified"]


def test_several_processes_cannot_be_sealed(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert status("distill", "--sealed", "--out", str(tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert "socket" in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_without_landlock_a_sealed_run_is_refused_in_one_line(monkeypatch, capsys) -> None:
    """The kernel's answer on an old Linux, or another system, is version 0."""
    from synthkd.cli import main

    monkeypatch.setattr(landlock, "version", lambda: 0)
    with pytest.raises(SystemExit) as stop:
        main(["distill", "--sealed", *SHORT])
    assert stop.value.code == 2
    assert "has no Landlock" in capsys.readouterr().err


HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
           "aarch64": "/usr/include/asm-generic/unistd.h"}  # fmt: skip


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_the_numbers_of_system_calls_are_those_of_the_kernels_headers(machine: str) -> None:
    header = Path(HEADERS[machine])
    if not header.exists():
        pytest.skip("the kernel's headers are not installed")
    words = [line.split() for line in header.read_text().splitlines() if "#define __NR" in line]
    known = {w[1].removeprefix("__NR_"): int(w[2]) for w in words if len(w) > 2 and w[2].isdigit()}
    column = list(seccomp.MACHINES).index(machine)
    shared = [n for n in (*seccomp.CALLS, *seccomp.ATTRIBUTES) if n in known]
    assert len(shared) > 40
    for name in shared:
        assert (seccomp.CALLS | seccomp.ATTRIBUTES)[name][column] == known[name], name


def test_every_jump_of_the_filter_stays_within_it() -> None:
    for machine in seccomp.MACHINES:
        code = seccomp.program(machine)
        steps = [code[i : i + 8] for i in range(0, len(code), 8)]
        for at, step in enumerate(steps):
            if step[0] in (seccomp.EQUAL, seccomp.AT_LEAST):
                assert at + 1 + max(step[2], step[3]) < len(steps)
        assert steps[-1][0] == seccomp.RETURN


@sealing
def test_a_sealed_run_takes_no_directory_in_which_something_lies(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".nfs1").write_bytes(b"pixels")
    done = synthkd(tmp_path, "distill", "--sealed", *SHORT)
    assert done.returncode == 2 and "not empty" in done.stderr
    (tmp_path / "run" / "recipe.toml").write_text('pipeline = "noise"\n')
    done = synthkd(tmp_path, "distill", "--sealed", "--resume", "run")
    assert done.returncode == 2 and "'.nfs1' is no file of a run" in done.stderr


ECHO = """
import os
from pathlib import Path
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        try: got = os.read(1, 64)
        except OSError as error: got = type(error).__name__.encode()
        Path({report!r}).write_bytes(got)
        self.conv, self.linear = nn.Conv2d(1, 8, 3, 2), nn.Linear(8, 10)

    def forward(self, x):
        return self.linear(self.conv(x).relu().mean((2, 3)))
"""


@pytest.mark.slow
@sealing
def test_nothing_can_be_read_from_where_a_sealed_run_writes_to(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(ECHO.format(report=str(tmp_path / "run" / "got")))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    both = os.open(pipe, os.O_RDWR)
    os.write(both, b"the pixels of a real image")
    words = [*SHORT, *CONTRACT, "--teacher", "net.py:Net", "--trust-code", "--sealed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "synthkd", "distill", *words], cwd=tmp_path, env=environment,
        stdout=both, stderr=subprocess.PIPE, timeout=110, check=False,
    )  # fmt: skip
    os.close(both)
    assert (tmp_path / "run" / "got").read_bytes() == b"OSError"  # a bad file descriptor
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [sys.executable, "-m", "synthkd", "distill",
             *(word if word != "run" else "other" for word in words)],
            cwd=tmp_path, env=environment, stdout=theirs, stderr=subprocess.PIPE, text=True,
            timeout=110,
            check=False,
        )  # fmt: skip
    assert done.returncode == 2 and "the standard output is a socket" in done.stderr


# --- what was opened


def test_a_recording_tells_files_links_folders_and_children(tmp_path: Path) -> None:
    file, link, fresh = tmp_path / "file", tmp_path / "link", tmp_path / "fresh"
    file.write_bytes(b"abc")
    link.symlink_to(file)
    recording = Recording()
    link.read_bytes()
    recording.chosen()
    fresh.write_text("x")
    list(tmp_path.iterdir())
    subprocess.run([sys.executable, "-c", ""], check=True)
    with socket.socket() as one:
        one.connect_ex(("127.0.0.1", 9))
    recording.stop()
    (tmp_path / "later").write_text("not seen")
    found = judged(recording, [], [])
    rows = {row["path"]: row for row in found.data["files"]}
    assert rows[str(file)]["when"].startswith("before") and rows[str(file)]["read"]
    assert rows[str(file)]["sha256"].startswith("ba7816bf")  # SHA-256 of "abc", FIPS 180-2
    assert str(link) not in rows and str(tmp_path / "later") not in rows
    assert str(tmp_path) in found.data["listed"]
    assert "python" in found.data["children"][0]["what"]
    assert "127.0.0.1" in found.data["sockets"][0]["what"]
    assert {f.code for f in found.findings} == {
        "opened-elsewhere",
        "opened-network",
        "opened-children",
    }


def test_whatever_can_be_read_counts_as_read(tmp_path: Path) -> None:
    """Also where a file is opened for both, or from an open folder, or by a database."""
    names = ("plus", "flags", "below", "base", "cut")
    for name in names:
        (tmp_path / name).write_bytes(b"")
    recording = Recording()
    (tmp_path / "plus").open("r+b").close()
    os.close(os.open(tmp_path / "flags", os.O_RDWR))
    folder = os.open(tmp_path, os.O_RDONLY)
    os.close(os.open("below", os.O_RDONLY, dir_fd=folder))
    os.close(folder)
    sqlite3.connect(tmp_path / "base").close()
    (tmp_path / "cut").write_bytes(b"x")
    recording.stop()
    found = judged(recording, [], [])
    read = {Path(row["path"]).name for row in found.data["files"] if row["read"]}
    assert read == {"plus", "flags", "below", "base"}


def test_what_was_in_the_directory_of_a_run_before_is_not_the_runs(tmp_path: Path) -> None:
    (tmp_path / ".nfs1").write_bytes(b"pixels")
    (tmp_path / "recipe.toml").write_text("")
    recording = Recording()
    (tmp_path / ".nfs1").read_bytes()
    (tmp_path / "recipe.toml").read_bytes()
    (tmp_path / "cache").write_text("x")
    (tmp_path / "cache").read_text()
    recording.stop()
    found = judged(recording, [], [tmp_path])
    assert [Path(row["path"]).name for row in found.data["files"]] == [".nfs1"]
    assert [f.code for f in found.findings] == ["opened-elsewhere"]
    assert hashes.strange(tmp_path) == [".nfs1", "cache"]


def test_the_files_of_a_teachers_package_are_listed_one_by_one(tmp_path: Path) -> None:
    package = tmp_path / "mynets"
    (package / "data").mkdir(parents=True)
    (package / "net.py").write_text("x = 1")
    (package / "data" / "scans.npz").write_bytes(b"pixels")
    recording = Recording()
    (package / "net.py").read_text()
    (package / "data" / "scans.npz").read_bytes()
    recording.stop()
    found = judged(recording, [Place(package, "teacher", tree=True)], [])
    rows = {Path(row["path"]).name: row for row in found.data["files"]}
    assert set(rows) == {"net.py", "scans.npz"} and all(row["sha256"] for row in rows.values())
    assert [f.code for f in found.findings] == ["opened-package-data"]


def test_what_a_reader_of_validation_data_opens_is_listed_and_no_finding(tmp_path: Path) -> None:
    """Only after the student was chosen, and only where code reads them."""
    images, reader, data = (tmp_path / name for name in ("a.npz", "read.py", "b.npz"))
    for path in (images, reader, data):
        path.write_bytes(b"x")

    def found(declares: Path, *, early: bool) -> tuple[str, set[str]]:
        recording = Recording()
        if early:
            images.read_bytes()
        recording.chosen()
        images.read_bytes()
        recording.stop()
        told = judged(recording, [Place(declares, VALIDATION)], [])
        [row] = [row for row in told.data["files"] if row["path"] == str(images)]
        return row["role"], {finding.code for finding in told.findings}

    assert found(reader, early=False) == ("with the validation data", set())
    assert found(reader, early=True) == ("unknown", {"opened-elsewhere"})
    assert found(data, early=False) == ("unknown", {"opened-elsewhere"})


def test_a_recipe_declares_its_files_and_no_real_data_that_it_does_not_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "w.pt").write_bytes(b"")
    flags = {"teacher": {"spec": "resnet20", "weights": str(tmp_path / "w.pt")},
             "data": {"real": str(tmp_path / "real")}}  # fmt: skip
    names = {(p.path.name, p.role) for p in declared(load_recipe(flags=flags))}
    assert names == {("synthkd.toml", "recipe"), ("w.pt", "teacher")}
    flags["data"]["mix_ratio"] = "0.5"
    names = {(p.path.name, p.role) for p in declared(load_recipe(flags=flags))}
    assert ("real", "real data") in names
    flags["data"]["real"] = "demo:seen"
    found = {p.path: p.role for p in declared(load_recipe(flags=flags))}
    (digits,) = [path for path in found if path.name == "digits.csv.gz"]
    assert found[digits] == "real data" and digits.is_file()


# --- every byte of the teacher's file


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_network("resnet8-w4", channels=1, size=16, classes=10).eval()


IMAGES = bytes(range(256)) * 40


def test_a_plain_file_is_accounted_for_to_the_last_byte(network: nn.Module, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = network.state_dict()
    torch.save(state, tmp_path / "a.pt")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "b.pt")
    save_file(state, tmp_path / "c.safetensors")
    numbers = sum(t.numel() * t.element_size() for t in state.values())
    for name in ("a.pt", "b.pt", "c.safetensors"):
        found = account(tmp_path / name, network)
        assert (found.spare, found.findings) == (0, ()), name
        assert found.numbers == numbers
        assert found.numbers + found.structure + found.text == found.bytes


def extra_key(network: nn.Module, path: Path) -> None:
    torch.save({**network.state_dict(), "thumbnails": torch.ones(40, 16, 16)}, path)


def wide_numbers(network: nn.Module, path: Path) -> None:
    torch.save({k: v.double() if v.is_floating_point() else v
                for k, v in network.state_dict().items()}, path)  # fmt: skip


def large_storage(network: nn.Module, path: Path) -> None:
    state = dict(network.state_dict())
    key = next(iter(state))
    room = torch.zeros(state[key].numel() + 9000)
    room[: state[key].numel()] = state[key].flatten()
    state[key] = room[: state[key].numel()].view(state[key].shape)
    torch.save(state, path)


def beside_weights(network: nn.Module, path: Path) -> None:
    torch.save({"state_dict": network.state_dict(), "note": IMAGES.decode("latin-1")}, path)


def list_of_numbers(network: nn.Module, path: Path) -> None:
    torch.save({"state_dict": network.state_dict(), "seeds": list(IMAGES)}, path)


def extra_member(network: nn.Module, path: Path) -> None:
    torch.save(network.state_dict(), path)
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/readme", IMAGES)


def rebuilt(network: nn.Module, path: Path, between: bytes, after: bytes) -> None:
    """The archive again, member by member, with bytes between the last two and at the end."""
    torch.save(network.state_dict(), path)
    with zipfile.ZipFile(path) as old:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w") as new:
            for name, data in members[:-1]:
                new.writestr(name, data)
            file.write(between)
            new.start_dir = file.tell()
            new.writestr(*members[-1])
            new.start_dir = file.tell()
        file.write(after)


def between_members(network: nn.Module, path: Path) -> None:
    rebuilt(network, path, IMAGES, b"")


def comment(network: nn.Module, path: Path) -> None:
    torch.save(network.state_dict(), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = IMAGES


def in_counters(network: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    more = {f"{PAYLOAD[:500]}{i}.num_batches_tracked": torch.tensor(1) for i in range(12)}
    save_file({**network.state_dict(), **more}, path)


def in_names(network: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({**network.state_dict(), PAYLOAD: torch.ones(0)}, path)


def in_names_of_an_archive(network: nn.Module, path: Path) -> None:
    torch.save({**network.state_dict(), PAYLOAD: torch.ones(0)}, path)


def in_the_header(network: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(network.state_dict(), path, metadata={"about": "f" * 100_000})


CHEATING_FILES = {
    extra_key: "weights-spare", wide_numbers: "weights-spare", large_storage: "weights-spare",
    beside_weights: "weights-text", list_of_numbers: "weights-text", extra_member: "weights-spare",
    between_members: "weights-spare", comment: "weights-spare", in_the_header: "weights-text",
    in_counters: "weights-spare", in_names: "weights-spare",
    in_names_of_an_archive: "weights-spare",
}  # fmt: skip


@pytest.mark.parametrize("make", CHEATING_FILES, ids=lambda make: make.__name__)
def test_images_hidden_in_a_file_of_weights_are_found(make, network, tmp_path: Path) -> None:
    header = (in_the_header, in_counters, in_names)
    path = tmp_path / ("a.safetensors" if make in header else "a.pt")
    make(network, path)
    found = account(path, network)
    assert [f.code for f in found.findings] == [CHEATING_FILES[make]]
    assert found.spare + found.text >= 5000
    assert found.numbers + found.structure + found.text + found.spare == found.bytes


def test_values_that_a_pickle_throws_away_are_seen() -> None:
    lost = (
        b"\x80\x02}(X\x01\x00\x00\x00aB\x00\x04\x00\x00"
        + b"p" * 1024
        + b"X\x01\x00\x00\x00aK\x01u."
    )
    assert pickle.loads(lost) == {"a": 1}  # noqa: S301
    found = pickled.contents(lost)
    assert sum(found.told.values()) >= 1024 and found.strange
    with pytest.raises(ValueError, match="POP"):
        pickled.contents(b"\x80\x02B\x04\x00\x00\x00pppp0}.")
    behind = pickled.contents(pickle.dumps({}, 2) + IMAGES)
    assert behind.told == {"behind the pickle's end": len(IMAGES)}
    shared: Any = ()
    for _ in range(60):  # 2 ** 60 values, if each place counted
        shared = (shared, shared)
    assert pickled.contents(pickle.dumps({"a": shared}, 2)).told


def test_a_gap_between_tensors_is_seen_where_the_reader_would_not_look(tmp_path: Path) -> None:
    header = json.dumps({
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [108, 112]},
    }, separators=(",", ":")).encode()  # fmt: skip
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 112 + b"end")
    found = safetensors_layout(path)
    assert [each.bytes for each in found.spare] == [100, 3]
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be told apart"):
        safetensors_layout(path)


@pytest.mark.parametrize("cut", [10, 500, 5000])
def test_a_damaged_archive_is_one_line(cut: int, network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(network.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(InputError, match="cannot be told apart"):
        zip_layout(path)


class Album(nn.Module):
    """A network with images that it does not need."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 3)
        self.register_buffer("album", torch.rand(20, 16))
        self.register_buffer("bytes", torch.arange(100, dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(1))
        self.table = nn.Parameter(torch.rand(50, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv(x)).relu().mean((2, 3)) * self.scale
        return self.linear(x + self.table[0]) + 0 * self.album.sum()


def test_numbers_that_no_answer_depends_on_are_found_and_no_others() -> None:
    found = unread(Album().eval(), torch.rand(4, 1, 16, 16))
    assert found == {"album": 20 * 16 * 4, "bytes": 100, "table": 49 * 8 * 4}


class Decoy(nn.Module):
    """A network with an image in a filter whose output nobody takes, and a filter that is merely
    dead for all images but needed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 5), nn.Conv2d(8, 4, 3)
        self.linear = nn.Linear(4, 3)
        with torch.no_grad():
            self.second.weight[:, 3] = 0  # what filter 3 makes is not taken
            self.first.weight[5] = -1.0  # filter 5 is dead where pixels are positive
            self.first.bias[5] = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.second(self.first(x).relu()).mean((2, 3)))


def test_a_row_that_no_answer_depends_on_is_found_beside_one_that_is_merely_dead() -> None:
    torch.manual_seed(0)
    found = unread(Decoy().eval(), torch.rand(4, 1, 16, 16))
    assert found.pop("first.weight") == 25 * 4  # filter 3, and not filter 5
    assert found.keys() <= {"second.weight"}  # what reads the dead filter is not read either


def test_a_trained_network_reads_all_its_numbers(network: nn.Module) -> None:
    assert unread(network, torch.rand(4, 1, 16, 16)) == {}


def test_an_initializer_that_no_node_reads_is_found(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    from synthkd.proof.graph_parts import graph_layouts

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT

    def graph(*more: Any, doc: str = "", nodes: tuple[Any, ...] = ()) -> Any:
        weight = helper.make_tensor("w", kind, [4, 3], np.ones(12, np.float32).tobytes(), raw=True)
        made = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"]), *nodes], "g",
            [helper.make_tensor_value_info("x", kind, [1, 4])],
            [helper.make_tensor_value_info("y", kind, [1, 3])], [weight, *more],
        )  # fmt: skip
        made.doc_string = doc
        return helper.make_model(made)

    path = tmp_path / "a.onnx"
    onnx.save(graph(doc="hello"), path)
    (plain,) = graph_layouts(path).values()
    assert plain.spare == []
    assert plain.told == {"GraphProto.name": "g", "GraphProto.doc_string": "hello"}
    for hide in (
        lambda model: setattr(model, "producer_name", PAYLOAD),
        lambda model: setattr(model.graph, "name", PAYLOAD),
        lambda model: setattr(model.graph.node[0], "name", "n" * 200 + PAYLOAD),
        lambda model: model.graph.value_info.add(name=PAYLOAD),
        lambda model: setattr(
            model.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", PAYLOAD
        ),
        lambda model: model.graph.node[0].attribute.add(name="a", doc_string=PAYLOAD),
    ):
        model = graph()
        hide(model)
        onnx.save(model, path)
        (found,) = graph_layouts(path).values()
        assert sum(map(len, found.told.values())) >= len(PAYLOAD)
    album = helper.make_tensor("album", kind, [64], bytes(256), raw=True)
    onnx.save(graph(album), path)
    (found,) = graph_layouts(path).values()
    assert sum(each.bytes for each in found.spare) >= 256
    dead = helper.make_node("Relu", ["album"], ["nowhere"])
    onnx.save(graph(album, nodes=(dead,)), path)  # read by a node that nobody reads
    (found,) = graph_layouts(path).values()
    assert sum(each.bytes for each in found.spare) >= 256
    path.write_bytes(path.read_bytes() + b"\xfa\x7f\x64" + b"p" * 100)  # a field of no known number
    (found,) = graph_layouts(path).values()
    assert sum(each.bytes for each in found.spare) >= 356


def test_external_data_of_a_graph_is_known_beforehand_and_accounted_for(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    from synthkd.proof.graph_parts import graph_layouts

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = helper.make_tensor("w", kind, [4, 3], np.ones(12, np.float32).tobytes(), raw=True)
    made = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", kind, [1, 4])],
        [helper.make_tensor_value_info("y", kind, [1, 3])], [weight],
    )  # fmt: skip
    path, data = tmp_path / "a.onnx", tmp_path / "a.data"
    onnx.save(helper.make_model(made), path, save_as_external_data=True, location="a.data",
              size_threshold=0)  # fmt: skip
    assert external_files(path) == [data]
    assert graph_layouts(path)[data].spare == []
    data.write_bytes(data.read_bytes() + IMAGES)
    assert sum(each.bytes for each in graph_layouts(path)[data].spare) == len(IMAGES)


def test_files_of_several_teachers_are_accounted_for_each_by_its_own_network(
    tmp_path: Path,
) -> None:
    """Files of weights of one are no text beside those of the other, and what lies beside the
    weights is counted though a file of the same name is accounted for."""
    specs, tables = ("resnet8-w4", "resnet8-w8"), []
    for folder, spec in zip("ab", specs, strict=True):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "weights.pt"
        torch.save(build_network(spec, channels=1, size=16, classes=10).state_dict(), path)
        tables.append(
            f'[[teacher]]\nspec = "{spec}"\nweights = "{path}"\nimage_size = "16"\n'
            "channels = 1\nclasses = 10\nmean = [0.3]\nstd = [0.3]\n"
        )
    both = tmp_path / "both.toml"
    both.write_text("".join(tables))
    recipe = validated({"teacher": {"spec": f"ensemble:{both}"}})
    teacher = load_teachers(recipe.teacher)
    parts = ensemble_tables(recipe.teacher)[1]

    def of_both(*more: Place) -> Account:
        networks = [(t, m.classifier) for t, m in zip(parts, teacher.teachers, strict=True)]
        found = account_teachers(networks, [*declared(recipe), *more])
        for each in found.files:
            assert each.numbers + each.structure + each.text + each.spare == each.bytes
        return found

    found = of_both()
    assert [f.code for f in found.findings if f.code != "weights-unread"] == []
    assert [each.path.name for each in found.files] == ["weights.pt", "weights.pt", "both.toml"]
    assert [each.text > 0 for each in found.files] == [False, False, True]
    beside = tmp_path / "weights.pt"
    beside.write_bytes(IMAGES * 10)
    assert [f.code for f in of_both(Place(beside, "teacher")).findings][:1] == ["weights-text"]
    extra_key(teacher.teachers[1].classifier.body, tmp_path / "b" / "weights.pt")
    assert [f.code for f in of_both().findings][:1] == ["weights-spare"]


def test_images_in_the_weights_themselves_are_not_found(network: nn.Module, tmp_path: Path) -> None:
    """What no level covers: the last bits of weights that are used hold 4 bits a number."""
    state = {k: v.clone() for k, v in network.state_dict().items()}
    key = "body.0.weight" if "body.0.weight" in state else next(iter(state))
    whole = state[key].numpy().view(np.uint32)
    whole[...] = (whole & ~np.uint32(15)) | np.uint32(9)
    torch.save(state, tmp_path / "a.pt")
    assert account(tmp_path / "a.pt", network).findings == ()


# --- the hashes of a run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("finished")
    done = synthkd(folder, "distill", *[w for w in SHORT if w != "--quiet"])
    assert done.returncode in DONE, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "digest of the run" in line]
    return folder / "run", line.split()[-1]


@pytest.fixture
def copied(finished: tuple[Path, str], tmp_path: Path) -> Path:
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def test_a_run_that_nobody_touched_is_as_it_was(finished: tuple[Path, str]) -> None:
    found = hashes.check(*finished)
    assert found.findings == () and found.digest == finished[1]
    assert found.files == sum(p.is_file() for p in finished[0].rglob("*")) - 1


def test_a_report_made_anew_is_a_note_and_one_that_was_changed_a_difference(copied: Path) -> None:
    from synthkd.commands.report import write
    from synthkd.jobs.verification import verify

    report, before = copied / "report.html", (copied / "report.html").read_bytes()
    write((copied,))  # the copy's files have other times
    assert report.read_bytes() == before and verify(copied).notes == ()
    write((copied,), images=False)
    assert report.read_bytes() != before
    found = verify(copied)
    assert found.findings == () and "was made anew" in found.notes[0]
    report.write_bytes(before.replace(b"teacher", b"student", 1))
    (changed,) = verify(copied).findings
    assert changed.code == "file-changed" and "report.html" in changed.seen
    report.unlink()
    (gone,) = verify(copied).findings
    assert gone.code == "file-missing" and "report.html" in gone.seen


def test_a_run_without_its_summary_is_told_what_is_missing(copied: Path) -> None:
    from synthkd.jobs.verification import verify

    (copied / "summary.json").unlink()
    (gone,) = verify(copied).findings
    assert gone.code == "file-missing" and "summary.json" in gone.seen


def test_one_flipped_bit_in_any_file_is_found_and_named(copied: Path) -> None:
    rng = np.random.default_rng(0)
    names = [p for p in sorted(copied.rglob("*")) if p.is_file() and p.name != hashes.NAME]
    assert len(names) > 5
    for path in names:
        data = path.read_bytes()
        for place in rng.integers(0, len(data), 5).tolist():
            flipped = bytearray(data)
            flipped[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            (found,) = hashes.check(copied).findings
            assert found.code == "file-changed" and path.name in found.seen
        path.write_bytes(data)
    assert hashes.check(copied).findings == ()


def test_files_that_are_dropped_swapped_added_linked_or_cut_are_named(copied: Path) -> None:
    def codes() -> list[str]:
        return sorted(found.code for found in hashes.check(copied).findings)

    student, sheet = copied / "student.safetensors", copied / "calibration.npz"
    one, other = student.read_bytes(), sheet.read_bytes()
    student.write_bytes(other)
    sheet.write_bytes(one)
    assert codes() == ["file-exchanged", "file-exchanged"]
    sheet.write_bytes(other)
    student.write_bytes(one[:-1])
    (cut,) = hashes.check(copied).findings
    assert f"has {len(one) - 1:,} bytes, and had {len(one):,}" in cut.seen
    student.unlink()
    assert codes() == ["file-missing"]
    student.symlink_to(sheet)
    assert codes() == ["file-replaced"]
    student.unlink()
    student.write_bytes(one)
    (copied / "samples" / "more.png").write_bytes(b"x")
    assert codes() == ["file-added"]
    (copied / "samples" / "more.png").unlink()
    (copied / "export").mkdir()
    (copied / "export" / "student.onnx").write_bytes(b"x")
    found = hashes.check(copied, "0" * 64)
    assert [f.code for f in found.findings] == ["digest-differs"]
    assert found.later == ("export/student.onnx",)
    (copied / "export" / "student.onnx").unlink()
    (copied / "checkpoints").mkdir()  # the run was killed in its last act
    (copied / "checkpoints" / "rows-000000003-0.safetensors").write_bytes(b"x")
    assert codes() == []


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 2, "files": {}}', '{"format": 1, "files": {"../a": {}}}',
     '{"format": 1, "files": {"/etc/passwd": {"bytes": 1, "sha256": "x"}}}', "[" * 9000],
)  # fmt: skip
def test_hashes_that_make_no_sense_are_one_line(text: str, copied: Path) -> None:
    (copied / hashes.NAME).write_text(text)
    with pytest.raises(InputError, match=r"hashes\.json"):
        hashes.check(copied)


def test_a_level_that_is_only_claimed_is_found(copied: Path) -> None:
    from synthkd.jobs.verification import verify

    assert verify(copied).findings == ()
    told = manifest_in(copied)
    (copied / "manifest.json").write_text(json.dumps(told | {"proof_level": 3}))
    codes = {found.code for found in verify(copied).findings}
    assert codes == {"file-changed", "level-differs", "summary-differs"}
    (copied / "hashes.json").unlink()
    told.pop("proof_level")
    (copied / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="kept no hashes"):
        verify(copied)


@pytest.mark.slow
def test_a_teacher_that_changed_since_is_named(network: nn.Module, tmp_path: Path) -> None:
    from synthkd.jobs.verification import verify

    weights = tmp_path / "w.pt"
    torch.save(network.state_dict(), weights)
    done = synthkd(
        tmp_path, "distill", *SHORT, *CONTRACT, "--teacher", "resnet8-w4",
        "--teacher-weights", str(weights),
    )  # fmt: skip
    assert done.returncode in DONE, done.stderr
    assert verify(tmp_path / "run").findings == ()
    weights.write_bytes(weights.read_bytes() + b"x")
    (found,) = verify(tmp_path / "run").findings
    assert found.code == "teacher-changed"
    weights.unlink()
    assert "not at its place" in verify(tmp_path / "run").notes[0]


def test_what_a_programs_own_objects_read_is_a_note_and_no_difference(copied: Path) -> None:
    from synthkd.jobs.verification import verify

    told = manifest_in(copied)
    row = {"path": "/data/scan.png", "role": "unknown", "read": True, "when": "before"}
    told["opened"][0]["files"].append(row)
    told["opened"][0]["sockets"] = [{"what": "socket.connect", "when": "before"}]
    for living, codes in ((False, {"opened-elsewhere", "opened-sockets"}), (True, set())):
        told["opened"][0]["living"] = living
        (copied / "manifest.json").write_text(json.dumps(told))
        found = verify(copied)
        assert {f.code for f in found.findings} == codes | {"file-changed"}
        assert any("scan.png" in note for note in found.notes) == living


@pytest.mark.parametrize("key", ["opened", "sealed"])
@pytest.mark.parametrize("value", [3, {"a": 1}, [{"files": [3], "sockets": 4}]])
def test_a_manifest_that_makes_no_sense_is_no_traceback(key: str, value, copied: Path) -> None:
    from synthkd.jobs.verification import verify

    told = manifest_in(copied)
    (copied / "manifest.json").write_text(json.dumps(told | {key: value}))
    try:
        assert verify(copied).findings
    except InputError as error:
        assert "manifest.json is damaged" in str(error)


def test_a_rerun_beside_a_student_of_another_form_is_a_difference(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from synthkd.jobs.verification import _compared

    one, two, three = (tmp_path / f"{n}.safetensors" for n in (1, 2, 3))
    save_file({"a": torch.zeros(3), "b": torch.ones(2)}, one)
    save_file({"a": torch.zeros(4), "b": torch.full((2,), 1.5), "c": torch.ones(1)}, two)
    three.write_bytes(b"x")
    found = _compared(one, two)
    assert found is not None and "3 of 3 tensors differ, by 0.5 at most" in found.seen
    assert _compared(one, one) is None
    assert "no student that can be read" in str(_compared(three, two))


def test_a_run_by_the_clock_is_not_repeated(copied: Path) -> None:
    from synthkd.jobs.verification import rerun

    text = (copied / "recipe.toml").read_text()
    (copied / "recipe.toml").write_text(text.replace("images = 64", "minutes = 0.1"))
    with pytest.raises(InputError, match="the clock decided"):
        rerun(copied)


def test_a_level_needs_the_evidence_of_every_sitting() -> None:
    seal = {"abi": 1, "refused_calls": ["socket"], "confirmed": ["x"], "read": []}
    file = {"bytes": 6, "numbers": 3, "structure": 2, "text": 1, "spare": 0}
    whole = {"opened": [{}], "sealed": [seal], "accounting": {"whole": True, "files": [file]}}
    assert level_of({})[0] == 0
    assert level_of(whole) == (3, ())
    assert level_of(whole | {"sittings": 2, "opened": [{}, None]})[0] == 0
    assert level_of(whole | {"sittings": 2, "opened": [{}, {}], "sealed": [seal, None]})[0] == 1
    assert level_of(whole | {"sittings": 2, "opened": [None, {}], "sealed": [seal, seal]})[0] == 3
    assert level_of(whole | {"sealed": [seal | {"confirmed": []}]})[0] == 1
    assert level_of({"opened": [{"missed": 3}], "sealed": [None]})[0] == 0  # the list is not whole
    short = {"whole": True, "files": [file | {"bytes": 7}]}
    assert level_of(whole | {"accounting": short})[0] == 2


def test_a_package_that_changes_while_a_sealed_run_goes_on_is_named(tmp_path: Path) -> None:
    package = tmp_path / "nets"
    package.mkdir()
    (package / "net.py").write_text("x = 1")
    entry = sealing_of(Place(package, "teacher", tree=True))
    assert unchanged({"read": [entry]}) == []
    (package / "net.py").write_text("x = 2")
    assert unchanged({"read": [entry]}) == [str(package)]


@pytest.mark.parametrize(
    ("settings", "there"),
    [
        ({"pipeline": "diffusion"}, True),
        ({"pipeline": "gan", "generator": {"kind": "diffusion"}}, True),
        ({"pipeline": "gan"}, False),
    ],
)
def test_what_a_generators_library_tries_when_it_is_imported_is_not_recorded(
    settings: dict[str, Any], there: bool
) -> None:
    code = (
        "import sys; from synthkd.jobs.evidence import Evidence; "
        "from synthkd.recipe import load_recipe; "
        f"Evidence(load_recipe(None, {settings!r}, {{}})); "
        "print('urllib3.util.connection' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(there)
