"""Does a data-free run work under `--sealed` for every form in which a teacher can come?

    python benchmarks/sealed_formats.py [--only onnx,hf] [--size 32]

Makes a small network in each form (random weights: what it answers is not the question), distils
it sealed and not sealed with the same few images, and prints a line each: exit codes, level of
proof, whether the two students are equal byte for byte, and why the proof is no higher, or what
was said where there is no student. `timm`, `hf`, `onnx` and `pt2` need their packages.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rows import CODE, SYNTHKD, show
from safetensors.torch import save_file
from torch import nn

from synthkd.core.files import sha256_of
from synthkd.networks import build_network

SHORT = (
    "--images-seen 128 --training.batch 32 --memory.capacity 200 --val-data none --quiet --anyway "
    "--run.threads 1 --student resnet8-w4 --teacher-mean .5 --teacher-std .25 --channels 3 "
)
CODE_OF_A_TEACHER = (
    "from synthkd.networks import build_network\n\n\n"
    "def make():\n    return build_network('resnet8', channels=3, size={size}, classes=5)\n"
)
Made = Callable[[Path, int], str]  # a folder and a size in, flags out


def body(size: int) -> nn.Module:
    """A ResNet-8 for five classes."""
    torch.manual_seed(0)
    return build_network("resnet8", channels=3, size=size, classes=5).eval()


def graph(folder: Path, size: int) -> str:
    """An ONNX graph."""
    torch.onnx.export(
        body(size), (torch.zeros(2, 3, size, size),), folder / "net.onnx",
        dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
    )  # fmt: skip
    return "--teacher onnx:net.onnx"


def exported(folder: Path, size: int) -> str:
    """A program of torch.export."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        body(size), (torch.zeros(2, 3, size, size),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, folder / "net.pt2")
    return "--teacher net.pt2 --trust-code"


def scripted(folder: Path, size: int) -> str:
    """TorchScript."""
    traced = torch.jit.trace(body(size), torch.zeros(2, 3, size, size))
    torch.jit.save(traced, folder / "net.torchscript.pt")
    return "--teacher net.torchscript.pt --trust-code"


def pickled(folder: Path, size: int) -> str:
    """Weights by torch.save, for a network of ours."""
    torch.save(body(size).state_dict(), folder / "net.pth")
    return "--teacher resnet8 --teacher-weights net.pth"


def plain(folder: Path, size: int) -> str:
    """Weights as safetensors."""
    save_file(body(size).state_dict(), folder / "net.safetensors")
    return "--teacher resnet8 --teacher-weights net.safetensors"


def code(folder: Path, size: int) -> str:
    """A file of code, with weights."""
    (folder / "net.py").write_text(CODE_OF_A_TEACHER.format(size=size))
    torch.save(body(size).state_dict(), folder / "net.pt")
    return "--teacher net.py:make --teacher-weights net.pt --trust-code"


def several(folder: Path, size: int) -> str:
    """Two teachers as one."""
    plain(folder, size)
    pickled(folder, size)
    (folder / "two.toml").write_text("".join(
        f'[[teacher]]\nspec = "resnet8"\nweights = "{name}"\nimage_size = {size}\nchannels = 3\n'
        "mean = [0.5]\nstd = [0.25]\n\n"
        for name in ("net.safetensors", "net.pth")
    ))  # fmt: skip
    return "--teacher ensemble:two.toml"


def of_torchvision(folder: Path, size: int) -> str:
    """torchvision's ResNet-18 with a file of weights."""
    from torchvision import models

    torch.manual_seed(0)
    torch.save(models.resnet18(num_classes=5).state_dict(), folder / "net.pth")
    return "--teacher torchvision:resnet18 --teacher-weights net.pth"


def of_timm(folder: Path, size: int) -> str:
    """A network of timm with a file of weights."""
    import timm

    torch.manual_seed(0)
    save_file(timm.create_model("mobilenetv3_small_050", num_classes=5).state_dict(),
              folder / "net.safetensors")  # fmt: skip
    return "--teacher timm:mobilenetv3_small_050 --teacher-weights net.safetensors"


def of_transformers(folder: Path, size: int) -> str:
    """A folder as transformers saves it."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ResNetConfig(
        num_labels=5, hidden_sizes=[16, 32], depths=[1, 1], embedding_size=16, layer_type="basic"
    )
    ResNetForImageClassification(config).save_pretrained(folder / "net")
    edges = {"height": size, "width": size}
    ViTImageProcessor(size=edges, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(
        folder / "net"
    )
    return "--teacher hf:net"


def ran(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """`synthkd distill` in a folder."""
    return subprocess.run(
        [sys.executable, *SYNTHKD, "distill", *words], cwd=folder, check=False,
        env={**os.environ, "PYTHONPATH": str(CODE)}, capture_output=True, text=True,
    )  # fmt: skip


def run_of(folder: Path, size: int) -> str:
    """The student of another run."""
    ran(folder, f"{plain(folder, size)} {SHORT} --image-size {size} --out first".split())
    return "--teacher first"


FORMS: dict[str, Made] = {
    "safetensors": plain, "torch.save": pickled, "code": code, "torchscript": scripted,
    "pt2": exported, "onnx": graph, "torchvision": of_torchvision, "timm": of_timm,
    "hf": of_transformers, "run": run_of, "ensemble": several,
}  # fmt: skip


def distilled(folder: Path, flags: str, size: int, *, sealed: bool) -> tuple[int, str, int, str]:
    """Exit code, digest of the student, level of proof, and why it is no higher; or what was said
    where there is no student."""
    out = "sealed" if sealed else "open"
    words = [*flags.split(), *SHORT.split(), "--image-size", str(size), "--out", out]
    if flags.startswith(tuple(f"--teacher {own}" for own in ("hf", "first", "ensemble"))):
        # they say themselves what images they want
        words = [*flags.split(), *SHORT.partition(" --teacher-mean")[0].split(), "--out", out]
    done = ran(folder, [*(["--sealed"] if sealed else []), *words])
    student, manifest = folder / out / "student.safetensors", folder / out / "manifest.json"
    said = (done.stderr.strip() or "-").splitlines()[-1]
    if not student.is_file():
        return done.returncode, "", -1, said
    found = json.loads(manifest.read_text())
    reasons = "; ".join(found["proof_not_higher"]) or "-"
    return done.returncode, sha256_of(student), found["proof_level"], reasons


def main() -> None:
    """A line for each form."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(FORMS))
    parser.add_argument("--size", type=int, default=32)
    given = parser.parse_args()
    lines = []
    for name in given.only.split(","):
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            flags = FORMS[name](folder, given.size)
            shut, student, level, said = distilled(folder, flags, given.size, sealed=True)
            free, other, _, _ = distilled(folder, flags, given.size, sealed=False)
            alike = "yes" if student and student == other else "no"
            lines.append((name, shut, free, level, alike, said))
            print(" | ".join(map(str, lines[-1])), flush=True)
    show(
        "teacher | exit code, sealed | not | level of proof | students equal | why no higher", lines
    )


if __name__ == "__main__":
    main()
