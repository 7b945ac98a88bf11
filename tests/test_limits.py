"""What configurations may ask for: small files that would fill the memory, or never end."""

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from synthkd.core.errors import InputError
from synthkd.networks import build_network
from synthkd.recipe import TeacherTable
from synthkd.specs import limits, load_teacher
from synthkd.teachers.frozen import FrozenTeacher

LARGER = "far larger than its weights|no network has that|lists 5,000 numbers"


@pytest.fixture(autouse=True)
def frugal() -> Any:
    """Nothing here may take much memory."""
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 3_000_000  # kB


def load(spec: object) -> FrozenTeacher:
    return load_teacher(TeacherTable(spec=str(spec)))


def of_timm(folder: Path, name: str = "vit_tiny_patch16_224", **change: Any) -> nn.Module:
    import timm

    sized = {"img_size": 32} if name.startswith("vit") else {}
    torch.manual_seed(0)
    body: nn.Module = timm.create_model(name, num_classes=5, **sized).eval()
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in body.state_dict().items()},
              folder / "model.safetensors")  # fmt: skip
    (folder / "config.json").write_text(json.dumps({
        "architecture": name, "num_classes": 5, "model_args": sized,
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3},
    } | change))  # fmt: skip
    return body


def of_transformers(folder: Path, **change: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, num_labels=5,
    )  # fmt: skip
    torch.manual_seed(7)
    body: nn.Module = transformers.ViTForImageClassification(config).eval()
    body.save_pretrained(str(folder), safe_serialization=True)
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 32, "width": 32},
    }))  # fmt: skip
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return body


@pytest.mark.parametrize(
    "arguments",
    [
        {"depth": 10**9}, {"depth": 60_000}, {"embed_dim": 10**6},
        {"embed_dim": 60_000, "num_heads": 1}, {"img_size": 60_000}, {"mlp_ratio": 1e300},
        {"depth": float("nan")}, {"depth": [1] * 5000},
    ],
)  # fmt: skip
def test_arguments_of_timm_are_bounded(tmp_path: Path, arguments: dict[str, Any]) -> None:
    of_timm(tmp_path / "net", model_args=arguments)
    with pytest.raises(InputError, match=LARGER):
        load(f"hf:{tmp_path / 'net'}")


def test_tables_that_a_network_makes_while_it_is_built_are_bounded(tmp_path: Path) -> None:
    """Swin compares every place in a window with every other."""
    of_timm(tmp_path / "net", "resnet10t", architecture="swin_tiny_patch4_window7_224",
            model_args={"window_size": 245, "img_size": 980})  # fmt: skip
    with pytest.raises(InputError, match=LARGER):
        load(f"hf:{tmp_path / 'net'}")


def test_nonsense_in_a_configuration_of_timm_is_one_line(tmp_path: Path) -> None:
    of_timm(tmp_path / "net", model_args={"patch_size": 0})
    with pytest.raises(InputError, match="timm cannot build 'vit_tiny_patch16_224' so"):
        load(f"hf:{tmp_path / 'net'}")


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**9}, {"num_hidden_layers": 10**5},
        {"hidden_size": 10**6, "num_attention_heads": 1}, {"image_size": 10**6},
        {"num_labels": 10**6}, {"hidden_size": float("inf")},
    ],
)  # fmt: skip
def test_configurations_of_transformers_are_bounded(
    tmp_path: Path, change: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    of_transformers(tmp_path / "net", **change)
    capfd.readouterr()
    with pytest.raises(InputError, match=LARGER):
        load(f"hf:{tmp_path / 'net'}")
    assert capfd.readouterr() == ("", "")


def test_transformers_shows_neither_bars_nor_tables(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = of_transformers(tmp_path / "net")
    capfd.readouterr()
    assert load(f"hf:{tmp_path / 'net'}").classes == 5
    other = {k: v[:, :3].contiguous() if v.dim() == 2 else v for k, v in body.state_dict().items()}
    save_file(other, tmp_path / "net" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"other shapes than its config\.json says"):
        load(f"hf:{tmp_path / 'net'}")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["transformers", "timm"])
def test_a_folder_with_weights_of_torch_save_is_read(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "net"
    body = of_timm(folder) if kind == "timm" else of_transformers(folder)
    (folder / "model.safetensors").unlink()
    torch.save(body.state_dict(), folder / "pytorch_model.bin")
    teacher = load(f"hf:{folder}")
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        wanted = body((images - 0.5) / 0.25)
    wanted = wanted if kind == "timm" else wanted.logits
    torch.testing.assert_close(teacher(images), wanted, atol=1e-4, rtol=1e-4)


def test_an_index_names_files_of_its_folder_alone(tmp_path: Path) -> None:
    of_transformers(tmp_path / "net")
    shutil.move(tmp_path / "net" / "model.safetensors", tmp_path / "outside.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "net" / "decoy.safetensors")
    index = tmp_path / "net" / "model.safetensors.index.json"
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "", 3, "a\\b",
                 "nowhere.safetensors"):  # fmt: skip
        index.write_text(json.dumps({"metadata": {}, "weight_map": {"vit.a": name}}))
        with pytest.raises(InputError, match="which is not a file in this folder"):
            load(f"hf:{tmp_path / 'net'}")


def test_links_out_of_a_folder_and_pipes_are_refused(tmp_path: Path) -> None:
    of_transformers(tmp_path / "net")
    path = tmp_path / "net" / "model.safetensors"
    shutil.move(path, tmp_path / "outside.safetensors")
    path.symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(InputError, match="is a link that leaves the folder"):
        load(f"hf:{tmp_path / 'net'}")
    path.unlink()
    shutil.move(tmp_path / "outside.safetensors", path)
    os.mkfifo(tmp_path / "net" / "generation_config.json")
    with pytest.raises(InputError, match="is a pipe or a device"):
        load(f"hf:{tmp_path / 'net'}")


def test_the_cache_of_hugging_face_is_made_of_links_and_is_read(tmp_path: Path) -> None:
    of_transformers(tmp_path / "net")
    store, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    store.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, path in enumerate((tmp_path / "net").iterdir()):
        shutil.copy(path, store / str(i))
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    assert load(f"hf:{snapshot}").classes == 5


def run(folder: Path, **change: Any) -> Path:
    body = build_network("resnet8-w4", channels=3, size=32, classes=5)
    card = {
        "network": "resnet8-w4", "channels": 3, "height": 32, "width": 32, "mean": [0.5] * 3,
        "std": [0.25] * 3, "classes": 5, "answers": "logits", "names": [], "args": {},
    } | change  # fmt: skip
    folder.mkdir()
    save_file(dict(body.state_dict()), folder / "student.safetensors",
              {"synthkd": json.dumps(card)})  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": "timm:vit_giant_patch14_224", "height": 224, "width": 224}, LARGER),
        ({"network": "torchvision:regnet_y_128gf"}, LARGER),
        ({"network": "resnet56-w512"}, LARGER),
        ({"mean": [float("nan")] * 3}, "its card has means and deviations"),
        ({"std": [0.0, 1.0, 1.0]}, "its card has means and deviations"),
        ({"classes": 10**9}, "its card has names for other classes"),
    ],
)
def test_a_card_is_bounded_by_the_weights_below_it(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    assert load(run(tmp_path / "good")).classes == 5
    with pytest.raises(InputError, match=said) as caught:
        load(run(tmp_path / "bad", **change))
    assert "bad" in str(caught.value) and "\n" not in str(caught.value)


def test_a_network_may_be_somewhat_larger_than_its_weights() -> None:
    with limits.within(1000, 4, "here"):
        nn.Linear(100, 100)
    with pytest.raises(InputError, match="here: its settings ask"), limits.within(1000, 4, "here"):
        nn.Linear(10_000, 10_000, device="meta")
    nn.Linear(10_000, 10_000, device="meta")  # and the watch has ended
