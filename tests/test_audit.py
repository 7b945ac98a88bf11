"""What a data-free run reads: the package, the teacher, its own run directory, and nothing else.

An audit hook sees every file that Python opens, but nothing that C or Rust code opens by itself; on
Linux a second test asks the kernel, by strace where it is installed.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from short_runs import DONE

from synthkd.networks import build_network

ROOT = Path(__file__).resolve().parents[1]
SHORT = shlex.split(
    "distill --quiet --student resnet8-w4 --images-seen 96 --training.batch 32 --generator.width 4 "
    "--pipeline gan "
    "--run.threads 1 --memory.capacity 300 --stage.pregenerate.fresh 64 --val-data none --out run "
    "--stage.pregenerate.synthesis-batch 16 --stage.joint.synthesis-batch 16 "
    "--stage.joint.fresh 32 --run.checkpoint-seconds 1e-6"
)
CONTRACT = shlex.split("--image-size 16 --channels 1 --teacher-mean 0.5 --teacher-std 0.25")

_AUDITED = """
import json, os, sys

_, log, *argv = sys.argv
sys.argv[1:] = argv
seen = []

def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        written = arguments[2] & (os.O_WRONLY | os.O_RDWR)
        seen.append(["write" if written else "read", os.path.abspath(os.fsdecode(arguments[0]))])
    elif event in ("os.listdir", "os.scandir") and arguments[0] is not None:
        seen.append(["list", os.path.abspath(os.fsdecode(arguments[0]))])
    elif event in ("socket.connect", "socket.getaddrinfo"):
        seen.append(["network", str(arguments[1:])])

sys.addaudithook(hook)
from synthkd.cli import main
try:
    main()
finally:
    recorded = list(seen)
    with open(log, "w") as file:
        json.dump(recorded, file)
"""

# Python and its packages; the parts of the checkout that ship
PYTHON = {Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
PYTHON |= {Path(sysconfig.get_path(kind, vars={"base": sys.base_prefix})) for kind in ("purelib",)}
PACKAGE = {ROOT / "synthkd", ROOT / "assets", ROOT / "pipelines"}
# nothing of anybody's: devices, the kernel's tables, libraries, time zone, the system's fonts
SYSTEM = {Path(p) for p in ("/dev", "/proc", "/sys", "/etc/ld.so.cache", "/etc/localtime")}
SYSTEM |= {Path("/usr/share/fonts"), Path("/usr/local/share/fonts")}


def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tmp").mkdir(exist_ok=True)
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path / "tmp"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def audited(tmp_path: Path, *argv: str) -> list[tuple[str, Path]]:
    """Everything that a run in `tmp_path / "work"` opened or listed."""
    work, tool = tmp_path / "work", tmp_path / "tool"
    for folder in (work, tool):
        folder.mkdir(exist_ok=True)
    (tool / "audited.py").write_text(_AUDITED)
    done = subprocess.run(
        [sys.executable, str(tool / "audited.py"), str(tool / "log.json"), *SHORT, *argv],
        cwd=work, env=environment(tmp_path), capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode in DONE, done.stderr
    return [(kind, Path(path)) for kind, path in json.loads((tool / "log.json").read_text())]


def strange(seen: list[tuple[str, Path]], *allowed: Path) -> list[tuple[str, Path]]:
    """What was opened outside Python, the package, the system's own and the allowed places."""
    places = [place.resolve() for place in (*PYTHON, *PACKAGE, *allowed)] + [*PYTHON, *SYSTEM]
    return [
        (kind, path)
        for kind, path in seen
        if not any(path.is_relative_to(p) or path.resolve().is_relative_to(p) for p in places)
        # modules and CUDA's libraries are looked for in every folder of sys.path, there or not
        and (kind, path) != ("list", ROOT)
        and (kind == "write" or path.exists())
    ]


def own(tmp_path: Path) -> tuple[Path, ...]:
    """The run directory, the private temporary folder, and that of the script with the hook."""
    return tmp_path / "work" / "run", tmp_path / "tmp", tmp_path / "tool"


@pytest.fixture
def real(tmp_path: Path) -> Path:
    folder = tmp_path / "work" / "real"
    rng = np.random.default_rng(0)
    for k in range(10):
        (folder / str(k)).mkdir(parents=True)
        for i in range(2):
            array = rng.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(array).save(folder / str(k) / f"{i}.png")
    return folder


def test_a_run_from_the_demo_reads_nothing_but_package_and_run_directory(
    tmp_path: Path, real: Path
) -> None:
    seen = audited(tmp_path, "--real-data", str(real))  # named, but mix ratio 1.0 must not open it
    assert strange(seen, *own(tmp_path)) == []
    assert ("read", ROOT / "assets" / "demo_teacher.safetensors") in seen  # so the hook does see
    assert (
        json.loads((tmp_path / "work" / "run" / "summary.json").read_text())["real_images_read"]
        == 0
    )
    written = {path for kind, path in seen if kind == "write"}
    places = (tmp_path / "work" / "run", tmp_path / "tmp", Path("/dev/null"))
    assert not [path for path in written if not any(path.is_relative_to(p) for p in places)]
    assert not [what for what in seen if what[0] == "network"]


@pytest.mark.slow
def test_a_run_from_a_teacher_file_reads_that_file_besides(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "teacher" / "weights.pth"
    path.parent.mkdir()
    torch.save(build_network("resnet8-w4", channels=1, size=16, classes=10).state_dict(), path)
    seen = audited(
        tmp_path, "--teacher", "resnet8-w4", "--teacher-weights", str(path), "--anyway", *CONTRACT
    )
    beside = strange(seen, *own(tmp_path))
    assert set(beside) == {("read", path)}


PEEPING = """
import torch
from pathlib import Path
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, 2)
        self.bn = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 10)

    def forward(self, x):
        for path in sorted(Path("real").glob("*/*.png"))[:1]:
            path.read_bytes()
        return self.linear(self.bn(self.conv(x)).mean((2, 3)))
"""


def test_a_teacher_that_opens_an_image_is_caught(tmp_path: Path, real: Path) -> None:
    code = tmp_path / "teacher.py"
    code.write_text(PEEPING)
    seen = audited(tmp_path, "--teacher", f"{code}:Net", "--trust-code", "--anyway", *CONTRACT)
    beside = strange(seen, *own(tmp_path), code)
    assert ("read", real / "0" / "0.png") in beside
    assert all(path.is_relative_to(real) for _, path in beside)


@pytest.mark.slow
def test_real_images_of_a_mixed_run_are_seen_by_the_hook_and_counted(
    tmp_path: Path, real: Path
) -> None:
    seen = audited(tmp_path, "--real-data", str(real), "--mix-ratio", "0.5")
    opened = {path for kind, path in seen if kind == "read" and path.is_relative_to(real)}
    assert opened == set(real.glob("*/*.png"))
    summary = json.loads((tmp_path / "work" / "run" / "summary.json").read_text())
    assert summary["real_images_read"] == len(opened) == 20


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_kernel_saw_no_real_image_opened(tmp_path: Path, real: Path) -> None:
    log = tmp_path / "strace.log"
    started = [
        shutil.which("strace") or "",
        "-f",
        "-qq",
        "--seccomp-bpf",
        "-e",
        "trace=open,openat,openat2,connect",
    ]
    done = subprocess.run(
        [*started, "-o", str(log), sys.executable, "-m", "synthkd", *SHORT, "--real-data", "real"],
        cwd=real.parent, env=environment(tmp_path), capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    if "PTRACE" in done.stderr or "ptrace" in done.stderr:
        pytest.skip("this machine does not let processes be traced")
    assert done.returncode in DONE, done.stderr
    calls = log.read_text(errors="replace").splitlines()
    assert any("demo_teacher.safetensors" in call for call in calls)
    assert not [call for call in calls if '"real' in call or str(real) in call]
    assert not [call for call in calls if "connect(" in call and "AF_INET" in call]


EVERY_WORD = {
    "generate": "generate --pipeline noise --count 20 --run.threads 1 --quiet --out made",
    "distill": "distill --pipeline noise --student resnet8-w4 --images-seen 64 "
    "--training.batch 32 --run.threads 1 --quiet --out run",
    "evaluate": "evaluate --student run --run.threads 1 --quiet",
    "audit": "audit run --members demo:seen --non-members demo:unseen --run.threads 1 --quiet "
    "--out audited",
    "inspect": "inspect demo --run.threads 1 --json",
    "export": "export run --format onnx,pt2 --int8 --quiet",
    "predict": "predict run image.png",
    "bench": "bench --minutes 0.05 --pipelines noise --student resnet8-w4 --run.threads 1 "
    "--quiet --out arena",
}
WRITES = ("O_WRONLY", "O_RDWR", "O_CREAT", " creat(", " mkdir", " rename")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_word_opens_a_socket_or_writes_elsewhere(tmp_path: Path) -> None:
    """Every subcommand, seen by the kernel. ONNX Runtime's wheel would do both if it was let."""
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    work, home, scratch = (tmp_path / name for name in ("work", "home", "tmp"))
    for folder in (work, home, scratch):
        folder.mkdir()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(work / "image.png")
    outside = environment(tmp_path) | {"HOME": str(home), "TMPDIR": str(scratch)}
    for word, line in EVERY_WORD.items():
        log = tmp_path / f"{word}.log"
        done = subprocess.run(
            [shutil.which("strace") or "", "-f", "-qq", "--seccomp-bpf", "-e",
             "trace=open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,connect",
             "-o", str(log),
             sys.executable, "-m", "synthkd", *shlex.split(line)],
            cwd=work, env=outside, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        if "ptrace" in done.stderr.lower():
            pytest.skip("this machine does not let processes be traced")
        assert done.returncode in DONE, (word, done.stderr)
        calls, written = log.read_text(errors="replace").splitlines(), 0
        assert not [c for c in calls if "connect(" in c and "AF_INET" in c], word
        for call in calls:
            if not any(mode in call for mode in WRITES) or "= -1" in call:
                continue
            written += 1
            fine = (str(work), str(scratch), "/dev/", "/proc/self", "/sys/")
            for path in call.split('"')[1::2]:
                assert os.path.normpath(work / path).startswith(fine), (word, call)
        assert written or word in ("inspect", "evaluate", "predict"), word
    assert not list(home.iterdir())
