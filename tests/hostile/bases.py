"""What the cases are changed copies of: weights, graphs, folders and runs that are right."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

CONTRACT = (
    "--image-size", "16", "--channels", "1", "--teacher-mean", "0.5", "--teacher-std", "0.25"
)  # fmt: skip
SHORT = (
    "--pipeline", "gan", "--student", "resnet8-w4", "--images-seen", "32", "--training.batch",
    "16", "--generator.width", "4", "--run.threads", "1", "--memory.capacity", "200",
    "--stage.pregenerate.fresh", "32", "--stage.pregenerate.synthesis-batch", "16",
    "--stage.joint.synthesis-batch", "16", "--stage.joint.fresh", "32", "--run.stages",
    "pregenerate,joint", "--val-data", "none", "--run.checkpoint-seconds", "1e-6", "--quiet",
)  # fmt: skip


def make(folder: Path) -> None:
    """All of them, in a folder."""
    os.chdir(folder)
    torch.manual_seed(0)
    _weights()
    _images()
    _hugging_face()
    _timm()
    _diffusers()
    _onnx()
    _runs()
    _bench()


def _synthkd(*argv: str) -> None:
    from synthkd.cli import main

    sys.argv = ["synthkd", *argv]
    try:
        main()
    except SystemExit as stop:
        assert stop.code in (0, 3, None), (argv, stop.code)


def _weights() -> None:
    from synthkd.networks import build_network

    network = build_network("resnet8-w4", channels=1, size=16, classes=10)
    state = network.state_dict()
    torch.save(state, "weights.pt")
    save_file(state, "weights.safetensors")
    Path("net.py").write_text(NET)


def _images() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 16, 16), dtype=np.uint8)
    for row, image in enumerate(pixels):
        place = Path("pictures") / str(row % 10) / f"{row}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    np.savez("images.npz", x=pixels, y=np.arange(20) % 10)


def _hugging_face() -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic",
        id2label={k: f"class {k}" for k in range(10)},
    )  # fmt: skip
    ResNetForImageClassification(config).save_pretrained("hf", safe_serialization=True)
    size = {"height": 32, "width": 32}
    told = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": True}
    Path("hf/preprocessor_config.json").write_text(json.dumps(told))


def _timm() -> None:
    import timm

    arguments = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=10, **arguments)
    Path("timm").mkdir()
    save_file(network.state_dict(), "timm/model.safetensors")
    told = {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 10}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 10, "model_args": arguments}
    Path("timm/config.json").write_text(json.dumps(config | {"pretrained_cfg": told}))


def _diffusers() -> None:
    from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel

    unet = UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    DDPMPipeline(unet=unet, scheduler=DDIMScheduler()).save_pretrained("diffusers")


def _onnx() -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((256, 10), np.float32), "weight")
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 1, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [weight],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, "graph.onnx")


def _runs() -> None:
    from synthkd.runs.directory import Run

    with pytest.MonkeyPatch.context() as patched:  # as if it were killed in its last act
        patched.setattr(Run, "_clear_checkpoints", lambda _: None)
        _synthkd("distill", *SHORT, "--out", "run")
    _synthkd(
        "generate", "--pipeline", "shaders", "--count", "40", "--run.threads", "1", "--quiet",
        "--out", "set",
    )  # fmt: skip
    # a run and a set that broke off
    for name, last in (("run", "summary.json"), ("set", "manifest.json")):
        for path in sorted(Path(name).rglob("*")):
            place = Path(f"broken-{name}") / path.relative_to(name)
            if path.is_dir():
                place.mkdir(parents=True)
            elif path.name != last:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(path.read_bytes())
    shutil.rmtree("run/checkpoints")


def _bench() -> None:
    settings = {
        "teacher": "demo", "student": "resnet8-w4", "val": "demo:unseen", "minutes": 1,
        "threads": 1, "device": "cpu", "precision": "float32",
    }  # fmt: skip
    (Path("bench") / "runs").mkdir(parents=True)
    fixed: dict[str, Any] = {}
    told = {"settings": settings, "fixed": fixed, "pipelines": ["gan"], "seeds": [0]}
    Path("bench/bench.json").write_text(json.dumps(told))
    Path("bench/lock").touch()
    summary = {
        "student_accuracy": 0.5, "teacher_accuracy": 0.9, "agreement": 0.5, "wall_seconds": 60.0,
        "images_seen": 100, "images_synthesized": 100, "real_images_read": 0, "promise_level": 0,
        "student_parameters": 10, "teacher_parameters": 100, "val_images": 539,
        "seconds": {"rest": 1.0},
    }  # fmt: skip
    record = {
        "pipeline": "gan", "seed": 0, "state": "finished", "minutes": 1, "threads": 1,
        "device": "cpu", "load": 0.1, "probe": {"float32": 10.0}, "code": "0123", "recipe": {},
        "process_seconds": 61.0, "summary": summary, "others": {}, "real_sha256": None,
        "curve": [{"share": 0.5, "seconds": 30.0, "images_seen": 50, "accuracy": 0.4}],
    }  # fmt: skip
    Path("bench/runs/gan-s0.json").write_text(json.dumps(record))


NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(256, 10)

    def forward(self, x):
        return self.linear(x.flatten(1))


def make():
    return Net()
"""
