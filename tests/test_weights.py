"""Files of weights as people have them: which tensors are taken, what is said, what is refused.

Oracle: the answers of the network that was saved.
"""

import argparse
import collections
import dataclasses
import datetime
import os
import pathlib
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from synthkd.core.errors import InputError
from synthkd.networks import build_network
from synthkd.recipe import StudentTable, TeacherTable
from synthkd.specs import load_classifier, load_teacher, read_weights
from synthkd.teachers.frozen import FrozenTeacher

GREY: dict[str, Any] = {"image_size": 16, "channels": 1, "mean": (0.4,), "std": (0.2,)}
State = dict[str, Tensor]


def network(seed: int, name: str = "resnet8-w4") -> nn.Module:
    torch.manual_seed(seed)
    return build_network(name, channels=1, size=16, classes=5).eval()


NET, OTHER = network(0), network(1)


def state(net: nn.Module = NET, prefix: str = "") -> State:
    return {prefix + key: value for key, value in net.state_dict().items()}


def as_kind(kind: torch.dtype) -> State:
    return {k: v.to(kind) if v.is_floating_point() else v for k, v in state().items()}


def load(path: Path, data: Any = None, **table: Any) -> FrozenTeacher:
    if data is not None:
        torch.save(data, path)
    return load_teacher(TeacherTable(spec="resnet8-w4", weights=str(path), **GREY, **table))


def answers(teacher: FrozenTeacher, net: nn.Module = NET) -> bool:
    images = torch.rand(4, 1, 16, 16)
    with torch.no_grad():
        return torch.allclose(teacher(images), net((images - 0.4) / 0.2), atol=2e-2)


@dataclasses.dataclass
class Options:
    width: int = 4


class Words(dict):  # type: ignore[type-arg]
    pass


# What the file is called does not matter


@pytest.mark.parametrize("name", ["w.ckpt", "w.pth.tar", "w.bin", "w.pkl", "w", "w.model", "w.zip"])
@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
def test_weights_are_judged_by_their_content(tmp_path: Path, name: str, form: str) -> None:
    path = tmp_path / name
    if form == "safetensors":
        save_file(state(), path)
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=form == "zip")
    teacher = load(path)
    assert answers(teacher) and not teacher.notes


# Which tensors are meant

LIGHTNING = {
    "epoch": 3, "state_dict": state(prefix="model.") | {"criterion.weight": torch.ones(5)},
    "hyper_parameters": argparse.Namespace(lr=0.1), "callbacks": {"best": pathlib.PurePath("a")},
}  # fmt: skip
TAKEN: dict[str, tuple[Any, str]] = {
    "Lightning": (LIGHTNING, "under 'state_dict.model'"),
    "DataParallel": (state(prefix="module."), "under 'module'"),
    "compiled": (state(prefix="_orig_mod."), "under '_orig_mod'"),
    "compiled in Lightning": (state(prefix="model._orig_mod."), "under 'model._orig_mod'"),
    "mmlab": ({"meta": {}, "state_dict": state(prefix="backbone.")}, "'state_dict.backbone'"),
    "another prefix": (state(prefix="a.b_c.d."), "under 'a.b_c.d'"),
    "a key that nobody knows": ({"checkpoint": {"nn": state()}}, "under 'checkpoint.nn'"),
    "with its optimiser": (
        {"net": state(), "optimizer": torch.optim.Adam(NET.parameters()).state_dict()},
        "under 'net'",
    ),
    "momenta by name": ({"model": state(), "exp_avg": state(OTHER)}, "under 'model'"),
    "counts of operations": (state() | {"total_ops": torch.ones(1)}, ""),
    "a loss beside it": (state() | {"criterion.weight": torch.ones(5)}, "'criterion.weight'"),
    "two that are equal": ({"last": state(), "best": state()}, "'best' would fit as well"),
    "student and teacher": (
        state(prefix="student.") | state(OTHER, "teacher."), "'teacher' would fit as well",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TAKEN)
def test_the_tensors_that_fit_are_found_and_named(tmp_path: Path, what: str) -> None:
    data, said = TAKEN[what]
    teacher = load(tmp_path / "w.pt", data)
    assert answers(teacher)
    assert said in " ".join(map(str, teacher.notes)) and bool(said) == bool(teacher.notes)


def test_wrappers_in_the_middle_of_names_are_seen_through(tmp_path: Path) -> None:
    inside = {k.replace("layer2.", "layer2._orig_mod.module."): v for k, v in state().items()}
    assert answers(load(tmp_path / "w.pt", inside))


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema", "params_ema", "swa.model"])
def test_raw_weights_come_before_averages_and_the_choice_is_told(tmp_path: Path, key: str) -> None:
    data: Any = {"state_dict": state(), key: state(OTHER)}
    teacher = load(tmp_path / "w.pt", data)
    assert answers(teacher)
    (note,) = teacher.notes
    assert f"'{key}' would fit as well" in note.seen and "--teacher.weights_key" in note.remedy
    chosen = load(tmp_path / "w.pt", weights_key=key)
    assert answers(chosen, OTHER) and f"under '{key}'" in str(chosen.notes[0])
    alone = load(tmp_path / "w.pt", {key: state(OTHER)})
    assert answers(alone, OTHER) and f"under '{key}'" in str(alone.notes[0])


def test_two_sets_of_equal_rank_are_not_guessed_between(tmp_path: Path) -> None:
    data = {"first": state(), "second": state(OTHER)}
    with pytest.raises(InputError, match=r"2 sets .*'first', 'second'.*--teacher\.weights_key"):
        load(tmp_path / "w.pt", data)
    assert answers(load(tmp_path / "w.pt", weights_key="second"), OTHER)
    with pytest.raises(InputError, match=r"weights_key 'third'.*'first', 'second'"):
        load(tmp_path / "w.pt", weights_key="third")


def test_a_teachers_key_is_not_asked_of_a_student(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "w.pt")
    table = StudentTable(spec="resnet8-w4", weights=str(tmp_path / "w.pt"))
    student, _ = load_classifier(table, TeacherTable(weights_key="ema", **GREY))
    assert student.classes == 5


def test_a_file_without_the_networks_own_prefix_fits(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom synthkd.networks import build_network\n\n\n"
        "class Wrapped(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.body = build_network('resnet8-w4', channels=1, size=16, classes=5)\n\n"
        "    def forward(self, x):\n        return self.body(x)\n"
    )
    torch.save({"model": state()}, tmp_path / "w.pt")
    spec = f"{tmp_path / 'net.py'}:Wrapped"
    table = TeacherTable(spec=spec, weights=str(tmp_path / "w.pt"), **GREY)
    teacher = load_teacher(table, trust_code=True)
    assert answers(teacher) and "lack the network's prefix 'body.'" in str(teacher.notes[0])


def test_a_larger_networks_weights_are_not_cut_to_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown 'layer1\.1\.conv1\.weight'"):
        load(tmp_path / "w.pt", network(2, "resnet14-w4").state_dict())
    more = state() | {"layer4.0.weight": torch.ones(3)}
    with pytest.raises(InputError, match=r"unknown 'layer4\.0\.weight'"):
        load(tmp_path / "w.pt", more)


def test_the_classes_are_those_of_the_last_layer_whatever_follows_it(tmp_path: Path) -> None:
    data = {"state_dict": state(prefix="net.") | {"net_loss.weight": torch.ones(77)}}
    assert load(tmp_path / "w.pt", data).classes == 5


# Kinds of numbers


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_and_told(tmp_path: Path, kind: torch.dtype) -> None:
    teacher = load(tmp_path / "w.pt", as_kind(kind))
    assert {p.dtype for p in teacher.parameters()} == {torch.float32} and answers(teacher)
    assert f"holds {str(kind)[6:]}; run in float32" in str(teacher.notes[0])


@pytest.mark.parametrize("kind", ["half", "double", "bfloat16"])
def test_a_network_made_in_another_precision_is_computed_in_float32(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom synthkd.networks import build_network\n\n\ndef make():\n"
        "    torch.manual_seed(0)\n"
        f"    return build_network('resnet8-w4', channels=1, size=16, classes=5).{kind}()\n"
    )
    teacher = load_teacher(TeacherTable(spec=f"{tmp_path / 'net.py'}:make", **GREY),
                           trust_code=True)  # fmt: skip
    assert {p.dtype for p in teacher.parameters()} == {torch.float32} and answers(teacher)
    assert "float32" in str(teacher.notes[0])


@pytest.mark.parametrize(
    ("kind", "said"),
    [(torch.complex64, "complex numbers"), (torch.int8, "whole numbers"), (torch.bool, "truth")],
)
def test_numbers_of_another_kind_are_refused(tmp_path: Path, kind: torch.dtype, said: str) -> None:
    data = state() | {"linear.weight": state()["linear.weight"].to(kind)}
    with pytest.raises(InputError, match=f"'linear.weight' holds {said}"):
        load(tmp_path / "w.pt", data)
    save_file(data, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=f"'linear.weight' holds {said}"):
        load(tmp_path / "w.safetensors")


def test_nan_names_the_file_and_the_tensor(tmp_path: Path) -> None:
    data = state() | {"linear.bias": torch.full((5,), torch.nan)}
    with pytest.raises(InputError, match=r"w\.pt'.*'linear\.bias' hold NaN"):
        load(tmp_path / "w.pt", data)


# What lies beside weights

BESIDE: dict[str, Callable[[], Any]] = {
    "Namespace": lambda: argparse.Namespace(a=1, b=[argparse.Namespace()]),
    "numpy's number": lambda: np.float64(3),
    "numpy's array": lambda: np.arange(3),
    "numpy's generator": lambda: np.random.default_rng(0),
    "numpy's state": lambda: np.random.RandomState(0),
    "a path": lambda: pathlib.PosixPath("/a/b"),
    "a defaultdict": lambda: collections.defaultdict(list, {"a": [1]}),
    "a deque": lambda: collections.deque([1, 2], 5),
    "a counter": lambda: collections.Counter("ab"),
    "a date": lambda: [datetime.date(2026, 1, 1), datetime.timedelta(1)],
    "a size": lambda: [torch.Size([1]), torch.device("cpu"), torch.float16],
    "a namespace": lambda: types.SimpleNamespace(a=1),
    "a set": lambda: [frozenset([1]), {2}, 1j, slice(1, 2), range(3)],
    "a dataclass of the script": lambda: Options(3),
    "a dictionary of the script": lambda: Words(a=1),
    "a scheduler": lambda: torch.optim.lr_scheduler.StepLR(
        torch.optim.SGD(NET.parameters(), 0.1), 3
    ),
}


@pytest.mark.parametrize("what", BESIDE)
def test_harmless_things_beside_weights_do_no_harm(tmp_path: Path, what: str) -> None:
    assert answers(load(tmp_path / "w.pt", {"state_dict": state(), "beside": BESIDE[what]()}))


@pytest.mark.parametrize("form", ["alone", "in a checkpoint", "in parallel"])
def test_a_network_pickled_whole_gives_its_tensors(tmp_path: Path, form: str) -> None:
    data: Any = {"alone": NET, "in a checkpoint": {"model": NET, "epoch": 3},
                 "in parallel": nn.DataParallel(NET)}[form]  # fmt: skip
    teacher = load(tmp_path / "w.pt", data)
    assert answers(teacher) and teacher.notes


class Calls:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *values: Any) -> None:
        self.function, self.values = function, values

    def __reduce__(self) -> Any:
        return self.function, self.values


class Armed:
    """Unpickled by anybody else, it writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __setstate__(self, told: dict[str, str]) -> None:
        Path(told["path"]).touch()


def touch(path: str) -> None:
    Path(path).touch()


def touching(path: Path) -> dict[str, Any]:
    text = str(path)
    return {
        "os.system": Calls(os.system, f"touch {text}"),
        "exec": Calls(exec, f"open({text!r}, 'w')"),
        "open": Calls(open, text, "w"),
        "Path.touch": Calls(pathlib.Path.touch, pathlib.Path(text)),
        "the script's": Calls(touch, text),
        "numpy's": Calls(np.save, text, np.zeros(1)),
        "torch's": Calls(torch.save, 1, text),
    }


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("what", touching(Path()))
def test_a_payload_beside_weights_is_refused_and_not_run(
    tmp_path: Path, what: str, old: bool
) -> None:
    fired = tmp_path / "fired"
    data = {"state_dict": state(), "beside": touching(fired)[what]}
    torch.save(data, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(InputError, match="not plain weights"):
        load(tmp_path / "w.pt")
    assert not list(tmp_path.glob("fired*"))
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert list(tmp_path.glob("fired*"))  # so it was armed


@pytest.mark.parametrize("old", [False, True])
def test_an_object_that_sets_its_own_state_is_a_stand_in(tmp_path: Path, old: bool) -> None:
    fired = tmp_path / "fired"
    data = {"state_dict": state(), "beside": Armed(str(fired))}
    torch.save(data, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
    assert answers(load(tmp_path / "w.pt")) and not fired.exists()
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert fired.exists()


def test_a_stand_in_cannot_be_made_to_lie_about_itself(tmp_path: Path) -> None:
    """Attributes of a file's making hide the methods of the dictionary that stands for it."""
    nasty = Options()
    vars(nasty).update(items=5, keys=None, _parameters={"a": torch.ones(1)}, _modules=3,
                       _non_persistent_buffers_set=7, _buffers={"b": 1})  # fmt: skip
    assert answers(load(tmp_path / "w.pt", {"state_dict": state(), "beside": nasty}))


def test_a_dictionary_in_itself_and_a_deep_one_are_one_line(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"x": torch.ones(1)}
    loop["self"] = loop
    with pytest.raises(InputError, match=r"deeply nested|not plain weights"):
        load(tmp_path / "w.pt", loop)
    wide: dict[str, Any] = {"x": torch.ones(1)}
    for _ in range(30):
        wide = {str(i): wide for i in range(10)}
    with pytest.raises(InputError, match=r"deeply nested|not plain weights"):
        load(tmp_path / "w.pt", wide)


# What is refused in one line


def bomb(path: Path, megabytes: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}q\x00.")
        with archive.open("a/data/0", "w") as file:
            for _ in range(megabytes):
                file.write(bytes(1 << 20))


def test_an_archive_that_unpacks_to_far_more_is_not_read(tmp_path: Path) -> None:
    bomb(tmp_path / "w.pt", 100)
    assert (tmp_path / "w.pt").stat().st_size < 200_000
    for read in (load, read_weights):
        with pytest.raises(InputError, match=r"w\.pt' unpacks to 105 MB out of 0\.1 MB"):
            read(tmp_path / "w.pt")


def test_a_packed_file_of_weights_is_read(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain:
        parts = {info.filename: plain.read(info) for info in plain.infolist()}
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in parts.items():
            packed.writestr(name, data)
    assert answers(load(tmp_path / "w.pt"))


OTHERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "a page": (b"\n<!DOCTYPE html>", "is text"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), "gzip"),
    "an array": (b"\x93NUMPY\x01\x00" + bytes(99), "numpy"),
    "noise": (bytes(range(256)), "not plain weights"),
    "a short header": (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "not plain weights"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_files_are_called_what_they_are(tmp_path: Path, what: str) -> None:
    content, said = OTHERS[what]
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(InputError, match=rf"w\.pt'.*{said}") as caught:
        load(tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


def test_other_archives_are_called_what_they_are(tmp_path: Path) -> None:
    torch.jit.trace(NET, torch.zeros(2, 1, 16, 16)).save(str(tmp_path / "w.pt"))
    with pytest.raises(InputError, match="is TorchScript"):
        load(tmp_path / "w.pt")
    np.savez(tmp_path / "w.npz", a=np.zeros(3))
    with pytest.raises(InputError, match="numpy's arrays"):
        load(tmp_path / "w.npz")
    torch.save(state(), tmp_path / "w.pt", pickle_protocol=4)
    with pytest.raises(InputError, match="a pickle of protocol 4"):
        load(tmp_path / "w.pt")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pt")
    with pytest.raises(InputError, match="there is no such file"):
        load(tmp_path / "w.pt")


# Names of networks


def test_a_folder_that_is_called_as_a_network_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("resnet8-w4").mkdir()
    assert answers(load(tmp_path / "w.pt", state()))


@pytest.mark.parametrize("spec", ["my-run", "runs", "resnet15"])
def test_a_run_that_is_not_there_is_said_to_be_missing(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # `synthkd distill`, where the suite is run, has left a runs/
    with pytest.raises(InputError, match=rf"there is no run directory '{spec}', and no network"):
        load_teacher(TeacherTable(spec=spec))


@pytest.mark.parametrize("name", ["w.pt", "w.ckpt", "w.safetensors", "w"])
def test_a_file_of_weights_is_no_network_by_itself(tmp_path: Path, name: str) -> None:
    torch.save(state(), tmp_path / name)
    with pytest.raises(InputError, match="holds weights: name the network"):
        load_teacher(TeacherTable(spec=str(tmp_path / name), **GREY))
