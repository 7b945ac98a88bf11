"""Files of weights and graphs, folders of other libraries, code of the user's."""

# ruff: noqa: E501, S301, B008
# a case, a line

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from bases import CONTRACT, NET, SHORT
from harness import Case, Place

WEIGHTS = ("inspect", "resnet8-w4", "--teacher-weights", "bad.pt", *CONTRACT)
RAN = "open('ran', 'w').close()"


class Payload:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *given: Any) -> None:
        self.given = (function, given)

    def __reduce__(self) -> Any:
        return self.given


PAYLOADS: dict[str, Callable[[], object]] = {
    "exec": lambda: Payload(exec, RAN),
    "eval": lambda: Payload(eval, RAN),
    "os.system": lambda: Payload(os.system, "touch ran"),
    "open": lambda: Payload(open, "ran", "w"),
    "getattr": lambda: Payload(getattr, Payload(__import__, "os"), "getcwd"),
    "inside weights": lambda: {"conv1.weight": torch.zeros(1), "x": Payload(exec, RAN)},
    "in a state_dict": lambda: {"state_dict": {"a": Payload(exec, RAN)}},
    "as a key": lambda: {("a", Payload(exec, RAN)): 1},
}


def tensors(tensor: Any) -> Callable[[Place], object]:
    """Good weights of which one is changed."""

    def make(place: Place) -> None:
        state = torch.load(place.bases / "weights.pt", weights_only=True)
        key = next(iter(state))
        state[key] = tensor(state[key]) if callable(tensor) else tensor
        torch.save(state, place.cwd / "bad.pt")

    return make


def safetensors(header: object, data: bytes = b"\0" * 64, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def bomb(place: Place) -> None:
    """A .pt whose one entry inflates to 3 GiB."""
    with (
        zipfile.ZipFile(
            place.cwd / "bad.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1
        ) as archive,
        zipfile.ZipFile(place.bases / "weights.pt") as good,
    ):
        for name in good.namelist():
            if not name.endswith("/data/0"):
                archive.writestr(name, good.read(name))
            else:
                with archive.open(name, "w", force_zip64=True) as file:
                    for _ in range(3 * 64):
                        file.write(bytes(16 << 20))


def weights() -> Iterator[Case]:
    for name, payload in PAYLOADS.items():
        for form in ("torch", "pickle"):

            def make(place: Place, payload: Any = payload, form: str = form) -> None:
                if form == "torch":
                    torch.save(payload(), place.cwd / "bad.pt")
                else:
                    place.file("bad.pt", pickle.dumps(payload()))

            def fire(place: Place, form: str = form) -> None:
                path = place.cwd / "bad.pt"
                torch.load(path, weights_only=False) if form == "torch" else pickle.loads(
                    path.read_bytes()
                )

            yield Case(
                f"pickle, {form}: {name}",
                WEIGHTS,
                ("bad.pt", "not"),
                make=make,
                armed=fire if name != "getattr" else None,
            )
    for name, content, words in (
        ("empty", b"", "empty"), ("web page", b"<html>", "text"), ("pointer", b"version https://git-lfs.github.com/spec/v1\n", "text"),
        ("zip of nothing", b"PK\x03\x04" + b"\0" * 100, "not"), ("half a pickle", b"\x80\x02}q\x00(", "not"),
        ("deep pickle", b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b".", "not"),
        ("tar", b"\0" * 257 + b"ustar" + b"\0" * 300, "not"),
    ):  # fmt: skip
        yield Case(
            f"weights: {name}",
            WEIGHTS,
            ("bad.pt", words),
            make=lambda p, c=content: p.file("bad.pt", c),
        )
    for name, tensor, words in (
        ("complex", lambda t: t.to(torch.complex64), "complex"), ("NaN", lambda t: t * float("nan"), "NaN"),
        ("infinite", lambda t: t + float("inf"), "infinity"), ("one number repeated", torch.zeros(1).expand(10**6, 10**6), "plain"),
        ("sparse", lambda t: t.flatten(1).to_sparse(), "plain"), ("another shape", torch.zeros(3), "shape"),
        ("quantised", torch.quantize_per_tensor(torch.zeros(4, 1, 3, 3), 1, 0, torch.qint8), "plain"),
        ("no tensor", "text", "missing"), ("complex double", lambda t: t.to(torch.complex128), "complex"),
    ):  # fmt: skip
        yield Case(f"weights: {name}", WEIGHTS, ("bad.pt", words), make=tensors(tensor))
    yield Case("weights: bomb", WEIGHTS, ("bad.pt",), make=bomb)
    yield Case("weights: a pipe", WEIGHTS, ("bad.pt",), make=lambda p: p.pipe("bad.pt"))
    yield Case("weights: a folder", WEIGHTS, ("bad.pt",), make=lambda p: (p.cwd / "bad.pt").mkdir())
    yield Case("weights: a device", (*WEIGHTS[:3], "/dev/zero", *CONTRACT), ("/dev/zero",))
    yield Case(
        "weights: a link to itself", WEIGHTS, ("bad.pt",), make=lambda p: p.link("bad.pt", "bad.pt")
    )
    yield Case(
        "weights: escape codes in a key",
        WEIGHTS,
        ("bad.pt", "unknown"),
        make=lambda p: torch.save({"\x1b[31m": torch.zeros(1)}, p.cwd / "bad.pt"),
    )
    yield Case(
        "weights: for no width", ("inspect", "resnet8-w" + "9" * 5000, *CONTRACT), ("resnet8-w",)
    )
    one = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    for name, content in (
        ("header of 100 GB", safetensors({"a": one}, length=10**11)), ("cut", safetensors({"a": one})[:20]),
        ("not JSON", safetensors(b"{a")), ("overlapping", safetensors({"a": one, "b": one})),
        ("beyond the end", safetensors({"a": {**one, "shape": [2**40], "data_offsets": [0, 2**42]}})),
        ("negative", safetensors({"a": {**one, "shape": [-4]}})), ("deep", safetensors(b"[" * 100_000)),
        ("a dtype of nobody", safetensors({"a": {**one, "dtype": "F7"}})), ("a list", safetensors([1])),
        ("overflow", safetensors({"a": {**one, "shape": [2**62, 4]}})),
    ):  # fmt: skip
        argv = ("inspect", "resnet8-w4", "--teacher-weights", "bad.safetensors", *CONTRACT)
        yield Case(
            f"safetensors: {name}",
            argv,
            ("bad.safetensors",),
            make=lambda p, c=content: p.file("bad.safetensors", c),
        )
        yield Case(
            f"safetensors of a run: {name}",
            ("inspect", "bad"),
            ("bad", "not a network saved"),
            make=lambda p, c=content: p.file("bad/student.safetensors", c),
        )


def card(change: Callable[[dict[str, Any]], Any]) -> Callable[[Place], object]:
    """A run whose student's card is changed."""

    def make(place: Place) -> None:
        path = place.copy("run") / "student.safetensors"
        whole = path.read_bytes()
        size = struct.unpack("<Q", whole[:8])[0]
        header = json.loads(whole[8 : 8 + size])
        told = json.loads(header["__metadata__"]["synthkd"])
        result = change(told)
        text = result if isinstance(result, str) else json.dumps(told)
        header["__metadata__"]["synthkd"] = text
        path.write_bytes(safetensors(header, whole[8 + size :]))

    return make


def cards() -> Iterator[Case]:
    for name, change in (
        ("NaN in the mean", lambda c: c.update(mean=[float("nan")])), ("infinite mean", lambda c: c.update(mean=[float("inf")])),
        ("deviation 0", lambda c: c.update(std=[0.0])), ("negative deviation", lambda c: c.update(std=[-1.0])),
        ("10^9 classes", lambda c: c.update(classes=10**9, names=[])), ("2 million classes", lambda c: c.update(classes=2_000_000, names=[])),
        ("a text for a number", lambda c: c.update(height="16")), ("2**70 pixels", lambda c: c.update(height=2**70)),
        ("a mean of text", lambda c: c.update(mean=["\x1b[31m"])), ("names that are none", lambda c: c.update(names=5)),
        ("a network that is none", lambda c: c.update(network=["a"])), ("more entries", lambda c: c.update(evil=1)),
        ("fewer entries", lambda c: c.pop("classes") and None), ("no JSON", lambda c: "{"), ("a list", lambda c: "[]"),
        ("deep", lambda c: "[" * 100_000), ("a number", lambda c: "1e999"), ("1.5 classes", lambda c: c.update(classes=1.5)),
        ("args as a list", lambda c: c.update(args=[1])),
    ):  # fmt: skip
        yield Case(
            f"card: {name}", ("inspect", "run"), ("run", "not a network saved"), make=card(change)
        )
    for network, words in (
        ("timm:vit_giant_patch14_224", ("run",)), ("torchvision:vit_h_14", ("run",)), ("os:system", ("run", "code")),
        ("subprocess:run", ("run", "code")), ("evil.py:make", ("run", "code")), ("resnet8-w512", ("run",)),
        ("../../outside/x.pt2", ("run",)), ("hf:../outside", ("config.json", "missing")), ("onnx:/etc/passwd", ("run", "code")),
        ("\x1b[31m", ("run", "code")), ("demo", ("run",)), ("run", ("run",)), ("nosuch", ("nosuch",)), ("", ("run",)),
    ):  # fmt: skip

        def make(place: Place, network: str = network) -> None:
            place.file("evil.py", RAN)
            card(lambda c: c.update(network=network))(place)

        for argv in (
            ("inspect", "run"),
            ("evaluate", "--student", "run"),
            ("predict", "run", "x.png"),
        ):
            if argv[0] == "inspect" or network in (
                "os:system",
                "evil.py:make",
                "timm:vit_giant_patch14_224",
            ):
                yield Case(f"card: network {network!r} for {argv[0]}", argv, words, make=make)


def folders() -> Iterator[Case]:
    hf, timm = ("inspect", "hf:hf"), ("inspect", "hf:timm")

    def changed(folder: str, name: str, change: Callable[[Any], Any]) -> Callable[[Place], object]:
        def make(place: Place) -> None:
            place.copy(folder)
            place.json(f"{folder}/{name}", change)

        return make

    for name, change in (
        ("10^9 layers", lambda c: c.update(depths=[10**9, 1])), ("a huge width", lambda c: c.update(hidden_sizes=[10**6, 10**6])),
        ("code of its own", lambda c: c.update(auto_map={"AutoModel": "evil.X"})), ("another type", lambda c: c.update(model_type="evil")),
        ("a list", lambda c: [1]), ("a negative width", lambda c: c.update(embedding_size=-1)), ("no widths", lambda c: c.update(hidden_sizes=None)),
        ("a text for widths", lambda c: c.update(hidden_sizes="\x1b[31m")), ("deep lists", lambda c: c.update(hidden_sizes=[[[[1]]]])),
        ("10^6 widths", lambda c: c.update(hidden_sizes=[8] * 100_000, depths=[1] * 100_000)), ("10^12 channels", lambda c: c.update(num_channels=10**12)),
    ):  # fmt: skip
        yield Case(f"hf: {name}", hf, ("hf",), make=changed("hf", "config.json", change))
    for name, change in (
        ("NaN", lambda c: c.update(image_mean=[float("nan")] * 3)), ("a huge size", lambda c: c.update(size={"height": 10**9, "width": 10**9})),
        ("a text", lambda c: c.update(size="\x1b[31m")), ("a list", lambda c: [1]), ("deviation 0", lambda c: c.update(image_std=[0.0] * 3)),
        ("another scale", lambda c: c.update(rescale_factor=1.0)),
    ):  # fmt: skip
        yield Case(
            f"hf preprocessor: {name}",
            hf,
            ("hf",),
            make=changed("hf", "preprocessor_config.json", change),
        )
    for folder, argv in (("hf", hf), ("timm", timm)):
        for path in (
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
            "generation_config.json",
        ):
            if folder == "hf" or path in ("config.json", "model.safetensors"):
                yield Case(
                    f"{folder}: a pipe as {path}",
                    argv,
                    (folder,),
                    make=lambda p, f=folder, n=path: (p.copy(f), p.pipe(f"{f}/{n}")),
                )
        yield Case(
            f"{folder}: config of 10 MB",
            argv,
            (folder, "too large"),
            make=lambda p, f=folder: (
                p.copy(f),
                p.file(f"{f}/config.json", b'{"a": "' + b"a" * 10**7 + b'"}'),
            ),
        )
        yield Case(
            f"{folder}: no JSON",
            argv,
            (folder, "JSON"),
            make=lambda p, f=folder: (p.copy(f), p.file(f"{f}/config.json", b"[" * 10**5)),
        )
        yield Case(f"{folder}: no folder", (argv[0], f"hf:{folder}"), (folder, "missing"))
    yield Case(
        "hf: code in it",
        hf,
        ("hf", "code"),
        make=lambda p: (p.copy("hf"), p.file("hf/modeling.py", RAN)),
    )
    yield Case(
        "hf: pickles",
        hf,
        ("hf", ".safetensors"),
        make=lambda p: (
            p.copy("hf"),
            p.remove("hf/model.safetensors"),
            torch.save(Payload(exec, RAN), p.cwd / "hf" / "pytorch_model.bin"),
        ),
    )

    def outside(place: Place) -> None:
        place.copy("hf")
        (place.cwd / "hf" / "model.safetensors").rename(place.outside / "m.safetensors")
        from safetensors import safe_open

        with safe_open(str(place.outside / "m.safetensors"), framework="pt") as file:
            keys = list(file.keys())
        (place.cwd / "hf" / "decoy.safetensors").write_bytes(
            (place.outside / "m.safetensors").read_bytes()
        )
        index = {"metadata": {}, "weight_map": dict.fromkeys(keys, "../../outside/m.safetensors")}
        place.file("hf/model.safetensors.index.json", json.dumps(index))

    yield Case("hf: an index that leads outside", hf, ("hf", "index"), make=outside)
    for name, change in (
        ("10^9 layers", lambda c: c["model_args"].update(depth=10**9)), ("a huge width", lambda c: c["model_args"].update(embed_dim=10**6)),
        ("a checkpoint elsewhere", lambda c: c["model_args"].update(checkpoint_path="/etc/passwd")), ("a hub", lambda c: c.update(architecture="hf-hub:a/b")),
        ("no such network", lambda c: c.update(architecture="\x1b[31m")), ("arguments as a list", lambda c: c.update(model_args=[1])),
        ("10^12 classes", lambda c: c.update(num_classes=10**12)), ("a negative size", lambda c: c["pretrained_cfg"].update(input_size=[3, -1, -1])),
        ("a NaN mean", lambda c: c["pretrained_cfg"].update(mean=[float("nan")] * 3)), ("a size of text", lambda c: c["pretrained_cfg"].update(input_size="abc")),
        ("settings as a list", lambda c: c.update(pretrained_cfg=[1])), ("fetching", lambda c: c["model_args"].update(pretrained=True)),
        ("an unknown argument", lambda c: c["model_args"].update(evil=1)), ("a patch of 0", lambda c: c["model_args"].update(patch_size=0)),
        ("the biggest of all", lambda c: c.update(architecture="vit_gigantic_patch14_224", model_args={})),
    ):  # fmt: skip
        yield Case(f"timm: {name}", timm, ("timm",), make=changed("timm", "config.json", change))
    borrow = (
        "generate",
        "--generator-from",
        "diffusers",
        "--pipeline",
        "diffusion",
        "--count",
        "4",
    )
    for name, path, change in (
        ("10^9 layers", "unet/config.json", lambda c: c.update(layers_per_block=10**9)), ("a huge width", "unet/config.json", lambda c: c.update(block_out_channels=[2**20, 2**20])),
        ("a huge size", "unet/config.json", lambda c: c.update(sample_size=10**9)), ("a size of text", "unet/config.json", lambda c: c.update(sample_size="a")),
        ("code of its own", "model_index.json", lambda c: c.update(unet=["evil", "Net"])), ("a pipeline of its own", "model_index.json", lambda c: c.update(_class_name=["evil", "X"])),
        ("an unknown pipeline", "model_index.json", lambda c: c.update(_class_name="\x1b[31m")), ("NaN betas", "scheduler/scheduler_config.json", lambda c: c.update(beta_start=float("nan"))),
        ("an infinite beta", "scheduler/scheduler_config.json", lambda c: c.update(beta_end=float("inf"))), ("a trillion steps", "scheduler/scheduler_config.json", lambda c: c.update(num_train_timesteps=2**40)),
        ("betas of text", "scheduler/scheduler_config.json", lambda c: c.update(beta_start="a")), ("no betas", "scheduler/scheduler_config.json", lambda c: c.pop("beta_schedule") and None),
        ("another aim", "scheduler/scheduler_config.json", lambda c: c.update(prediction_type="evil")), ("NaN in betas given", "scheduler/scheduler_config.json", lambda c: c.update(trained_betas=[float("nan")] * 1000)),
        ("beta above 1", "scheduler/scheduler_config.json", lambda c: c.update(beta_end=2.0)), ("no steps", "scheduler/scheduler_config.json", lambda c: c.update(num_train_timesteps=0)),
        ("a number of betas", "scheduler/scheduler_config.json", lambda c: c.update(trained_betas=5)), ("one beta", "scheduler/scheduler_config.json", lambda c: c.update(trained_betas=0.5)),
        ("betas by name", "scheduler/scheduler_config.json", lambda c: c.update(trained_betas={"a": 0.5})),
    ):  # fmt: skip
        yield Case(
            f"diffusers: {name}", borrow, ("diffusers",), make=changed("diffusers", path, change)
        )
    for path in (
        "model_index.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ):
        yield Case(
            f"diffusers: a pipe as {path}",
            borrow,
            ("diffusers",),
            make=lambda p, n=path: (p.copy("diffusers"), p.pipe(f"diffusers/{n}")),
        )
    yield Case(
        "diffusers: pickles",
        borrow,
        ("diffusers", "pickle"),
        make=lambda p: (
            p.copy("diffusers"),
            p.remove("diffusers/unet/diffusion_pytorch_model.safetensors"),
            torch.save(Payload(exec, RAN), p.cwd / "diffusers/unet/diffusion_pytorch_model.bin"),
        ),
    )


def graphs() -> Iterator[Case]:
    import onnx
    from onnx import TensorProto, helper

    def changed(change: Callable[[Any], Any]) -> Callable[[Place], object]:
        def make(place: Place) -> None:
            model = onnx.load(place.bases / "graph.onnx")
            change(model)
            place.file("bad.onnx", model.SerializeToString())

        return make

    def external(location: str) -> Callable[[Any], None]:
        def change(model: Any) -> None:
            tensor = model.graph.initializer[0]
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", "0"), ("length", "10240")):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value

        return change

    def loop(model: Any) -> None:
        body = helper.make_graph(
            [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["s"], ["t"])], "body",
            [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("s", TensorProto.FLOAT, None)],
            [helper.make_tensor_value_info("d", TensorProto.BOOL, []), helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
        )  # fmt: skip
        model.graph.initializer.append(helper.make_tensor("m", TensorProto.INT64, [], [2**62]))
        model.graph.initializer.append(helper.make_tensor("b", TensorProto.BOOL, [], [True]))
        model.graph.node[-1].output[0] = "before"
        model.graph.node.append(
            helper.make_node("Loop", ["m", "b", "before"], ["logits"], body=body)
        )

    def dims(*sizes: int) -> Callable[[Any], None]:
        def change(model: Any) -> None:
            del model.graph.initializer[0].dims[:]
            model.graph.initializer[0].dims.extend(sizes)

        return change

    for name, change in (
        ("weights of /etc/passwd", external("/etc/passwd")), ("weights outside", external("../outside/notes.txt")), ("weights of a name", external("a/../../outside/notes.txt")),
        ("a loop without end", loop), ("negative dimensions", dims(-256, -10)), ("huge dimensions", dims(2**40, 2**40)), ("other dimensions", dims(256, 11)),
        ("an operator of nobody", lambda m: setattr(m.graph.node[1], "op_type", "Evil\x1b[31m")), ("another domain", lambda m: setattr(m.graph.node[1], "domain", "evil.corp")),
        ("no nodes", lambda m: m.graph.ClearField("node")), ("no input", lambda m: m.graph.ClearField("input")), ("no output", lambda m: m.graph.ClearField("output")),
        ("text for numbers", lambda m: setattr(m.graph.initializer[0], "data_type", TensorProto.STRING)), ("no opset", lambda m: m.ClearField("opset_import")),
        ("a cycle", lambda m: m.graph.node[0].input.__setitem__(0, "logits")),
    ):  # fmt: skip
        for access in ("full", "logits"):
            argv = ("inspect", "onnx:bad.onnx", "--teacher-access", access, *CONTRACT)
            yield Case(f"ONNX, {access}: {name}", argv, ("bad.onnx",), make=changed(change))
    for name, content in (("empty", b""), ("text", b"abc"), ("zeros", bytes(1000))):
        yield Case(
            f"ONNX: {name}",
            ("inspect", "onnx:bad.onnx", *CONTRACT),
            ("bad.onnx",),
            make=lambda p, c=content: p.file("bad.onnx", c),
        )
    yield Case(
        "ONNX: a pipe",
        ("inspect", "onnx:bad.onnx", *CONTRACT),
        ("bad.onnx",),
        make=lambda p: p.pipe("bad.onnx"),
    )
    yield Case(
        "ONNX: a folder",
        ("inspect", "onnx:bad.onnx", *CONTRACT),
        ("bad.onnx",),
        make=lambda p: (p.cwd / "bad.onnx").mkdir(),
    )
    link = ("inspect", "onnx:bad.onnx", *CONTRACT)
    yield Case(
        "ONNX: weights through a link",
        link,
        ("bad.onnx",),
        make=lambda p: (changed(external("x.bin"))(p), p.link("x.bin", "/etc/passwd")),
    )


ACTS = {
    "os._exit": "import os; os._exit(0)",
    "posix._exit": "import os, posix; (getattr(os, '_exit'))(0)",
    "os.execv": "import os; os.execv('/bin/true', ['true'])",
    "os.abort": "import os; os.abort()",
    "sys.exit": "import sys; sys.exit(0)",
    "SystemExit text": "raise SystemExit('bye')",
    "BaseException": "raise BaseException('\\x1b[31m')",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "lines": "raise RuntimeError('one\\ntwo\\x1b[31m')",
    "recursion": "f = lambda: f(); f()",
    "an exception whose text fails": "class E(Exception):\n    def __str__(self): raise ValueError\nraise E",
    "GeneratorExit": "raise GeneratorExit",
    "StopIteration": "raise StopIteration",
    "StopAsyncIteration": "raise StopAsyncIteration",
    "a group": "raise BaseExceptionGroup('a', [KeyboardInterrupt()])",
}
# what a process has to itself, changed by code that then answers well
QUIET = {
    "gradients off": "torch.set_grad_enabled(False)",
    "double precision": "torch.set_default_dtype(torch.float64)",
    "threads": "torch.set_num_threads(3)",
    "another folder": "import os; os.chdir('/')",
    "stdout closed": "import sys; sys.stdout.close()",
    "handle closed": "import os; os.close(1)",
    "stdout replaced": "import io, sys; sys.stdout = io.StringIO()",
    "deterministic": "torch.use_deterministic_algorithms(True)",
    "seed": "torch.manual_seed(5)",
    "anomalies": "torch.autograd.set_detect_anomaly(True)",
    "recursion limit": "import sys; sys.setrecursionlimit(200)",
    "interrupts ignored": "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "stderr closed": "import sys; sys.stderr.close()",
    "autocast": "torch.set_autocast_enabled('cpu', True)",
    "meta": "torch.set_default_device('meta')",
}


def code() -> Iterator[Case]:
    teacher = (
        "distill",
        *SHORT,
        "--out",
        "out",
        "--anyway",
        "--teacher",
        "net.py:make",
        "--trust-code",
        *CONTRACT,
    )
    indent = "\n        "
    for name, act in ACTS.items():
        lines = act.split("\n")
        inside = indent.join(lines)
        at_import = f"{NET}\n{act}\n"
        built = f"{NET}\ndef make():\n    " + "\n    ".join(lines) + "\n"
        first = NET.replace(
            "        return self.linear", f"        {inside}\n        return self.linear"
        )
        later = NET.replace(
            "        return self.linear",
            "        self.asked = getattr(self, 'asked', 0) + 1\n        if self.asked > 60:\n            "
            + "\n            ".join(lines)
            + "\n        return self.linear",
        )
        for moment, text in (
            ("import", at_import),
            ("build", built),
            ("first call", first),
            ("later", later),
        ):
            yield Case(
                f"code, {moment}: {name}",
                teacher,
                ("net.py",),
                make=lambda p, t=text: p.file("net.py", t),
            )
        yield Case(
            f"code, data: {name}",
            ("evaluate", "--student", "demo", "--val-data", "data.py:make", "--trust-code"),
            ("data.py",),
            make=lambda p, t=built.replace(NET, ""): p.file("data.py", t),
        )
        yield Case(
            f"code, function: {name}",
            teacher,
            ("net.py",),
            make=lambda p, ls=lines: p.file(
                "net.py",
                "def make():\n    return ask\ndef ask(x):\n    " + "\n    ".join(ls) + "\n",
            ),
        )
    for name, act in QUIET.items():
        text = f"{NET}\n{act}\n"
        yield Case(
            f"code, import, goes on: {name}",
            teacher,
            make=lambda p, t=text: p.file("net.py", t),
            streams={"capture": False},
        )
        inside = NET.replace(
            "        return self.linear", f"        {act}\n        return self.linear"
        )
        if name not in ("meta", "double precision", "gradients off", "handle closed"):
            yield Case(
                f"code, call, goes on: {name}",
                teacher,
                make=lambda p, t=inside: p.file("net.py", t),
            )
    for name, answer, words in (
        ("NaN later", "answer * float('nan')", "NaN"), ("infinity later", "answer / 0", "infinity"), ("fewer classes later", "answer[:, :7]", "classes"),
        ("more classes later", "torch.cat([answer, answer], 1)", "classes"), ("fewer images later", "answer[:-1]", ""), ("text later", "'text'", ""),
        ("nothing later", "None", ""), ("complex later", "answer.float() * 1j", ""),
    ):  # fmt: skip
        text = NET.replace(
            "        return self.linear(x.flatten(1))",
            f"        answer = self.linear(x.flatten(1))\n        self.asked = getattr(self, 'asked', 0) + 1\n        return {answer} if self.asked > 60 else answer",
        )
        yield Case(
            f"code: {name}", teacher, ("net.py", words), make=lambda p, t=text: p.file("net.py", t)
        )
    for name, text, words in (
        ("NaN", NET.replace("return self.linear(x.flatten(1))", "return self.linear(x.flatten(1)) * float('nan')"), "NaN"),
        ("no module", "def make(): return 5", "int"), ("no callable", "make = 5", "no callable"), ("a syntax error", "x = (", "SyntaxError"),
        ("2 million classes", NET.replace("return self.linear(x.flatten(1))", "return torch.zeros(len(x), 2_000_000)"), "scores"),
        ("inference mode", f"{NET}\nkept = torch.inference_mode(); kept.__enter__()\n", "inference_mode"), ("no file", None, "no file"),
    ):  # fmt: skip
        yield Case(
            f"code: {name}",
            teacher,
            ("net.py", words),
            make=lambda p, t=text: p.file("net.py", t) if t is not None else None,
        )
    for argv in (("inspect", "evil.py:make"), ("distill", "--teacher", "evil.py:make"), ("distill", "--student", "evil.py:make"), ("generate", "--teacher", "evil.py:make"),
                 ("evaluate", "--student", "evil.py:make"), ("distill", "--val-data", "evil.py:make"), ("evaluate", "--images", "evil.py:make"),
                 ("evaluate", "--images", "demo:seen", "--extractor", "evil.py:make"), ("generate", "--real-data", "evil.py:make"),
                 ("bench", "--teacher", "evil.py:make", "--val-data", "x", "--minutes", "1", "--out", "out")):  # fmt: skip
        yield Case(
            f"code that is not trusted: {' '.join(argv[:3])}",
            argv,
            ("evil.py", "--trust-code"),
            make=lambda p: p.file("evil.py", RAN),
            armed=lambda p: exec((p.cwd / "evil.py").read_text()),
        )

    def script(place: Place) -> None:
        module = torch.jit.trace(torch.nn.Flatten(), torch.zeros(1, 1, 16, 16))
        buffer = io.BytesIO()
        torch.jit.save(module, buffer)
        place.file("net.pt", buffer.getvalue())

    yield Case(
        "TorchScript that is not trusted",
        ("inspect", "net.pt", *CONTRACT),
        ("net.pt", "--trust-code"),
        make=script,
    )
    yield Case(
        "TorchScript as weights",
        ("inspect", "resnet8-w4", "--teacher-weights", "net.pt", *CONTRACT),
        ("net.pt",),
        make=script,
    )
    yield Case(
        "a .pt2 that is not trusted",
        ("inspect", "net.pt2", *CONTRACT),
        ("net.pt2", "--trust-code"),
        make=lambda p: p.file("net.pt2", b"PK"),
    )


def CASES() -> Iterator[Case]:
    yield from weights()
    yield from cards()
    yield from folders()
    yield from graphs()
    yield from code()
