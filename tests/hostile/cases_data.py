"""Folders to go on with, data sets, pictures, arrays, benches, what is exported and predicted."""

# ruff: noqa: E501
# a case, a line

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import Case, Place
from PIL import Image

RESUME = ("distill", "--resume", "broken-run", "--quiet")
REPORT = ("bench", "--report", "--out", "bench", "--quiet")


def begun(name: str, *more: Callable[[Place], object]) -> Callable[[Place], object]:
    def make(place: Place) -> None:
        place.copy(name)
        for change in more:
            change(place)

    return make


def linked(path: str, to: str) -> Callable[[Place], object]:
    return lambda p: p.link(path, p.outside / to if to else p.outside)


def resumed() -> Iterator[Case]:
    generate = ("generate", "--resume", "broken-set", "--quiet")
    for folder, argv, paths in (
        ("broken-run", RESUME, ("checkpoints", "samples", "snapshots", "metrics.jsonl", "recipe.toml", "manifest.json", "summary.json", "student.safetensors",
                                "generator.safetensors", "snapshots.jsonl", "diffusion", "new/deep/link")),
        ("broken-set", generate, ("0", "3", "7", "shard-00000.images.npy", "shard-00001.logits.npy", "checkpoint.safetensors", "recipe.toml", "contact_sheet.png", "0/00000099.png", "generator.safetensors")),
        ("bench", ("bench", "--out", "bench", "--minutes", "0.01", "--pipelines", "gan", "--quiet"), ("runs", "lock", "replaced", "runs/gan-s0", "runs/gan-s0.log", "bench.json")),
    ):  # fmt: skip
        for path in paths:
            target = "notes.txt" if "." in Path(path).name or path == "lock" else ""
            words = (folder, path, "link")
            yield Case(
                f"link: {folder}/{path}",
                argv,
                words,
                make=begun(folder, linked(f"{folder}/{path}", target)),
            )
    yield Case(
        "link to nowhere: metrics.jsonl",
        RESUME,
        ("metrics.jsonl", "link"),
        make=begun("broken-run", linked("broken-run/metrics.jsonl", "new.jsonl")),
    )
    yield Case(
        "link to nowhere: snapshots",
        RESUME,
        ("snapshots", "link"),
        make=begun("broken-run", linked("broken-run/snapshots", "new")),
    )
    yield Case(
        "link inside a class folder",
        generate,
        ("link",),
        make=begun("broken-set", linked("broken-set/0/123.png", "99999999.png")),
    )
    for path in (
        "recipe.toml",
        "manifest.json",
        "metrics.jsonl",
        "checkpoints/000000009.safetensors",
        "samples/x.png",
    ):
        yield Case(
            f"pipe: {path}",
            RESUME,
            (path, "pipe"),
            make=begun("broken-run", lambda p, n=path: p.pipe(f"broken-run/{n}")),
        )
    for path in (
        "recipe.toml",
        "checkpoint.safetensors",
        "0/00000099.png",
        "shard-00000.images.npy",
    ):
        yield Case(
            f"pipe: set's {path}",
            generate,
            (path, "pipe"),
            make=begun("broken-set", lambda p, n=path: p.pipe(f"broken-set/{n}")),
        )

    def hard(place: Place) -> None:
        for name in ("metrics.jsonl", "snapshots.jsonl"):
            place.remove(f"broken-run/{name}")
            (place.cwd / "broken-run" / name).hardlink_to(place.outside / "notes.txt")

    yield Case("hard links", RESUME, make=begun("broken-run", hard), writes=("broken-run",))
    for name, text, words in (
        ("recipe.toml", "[[[", "TOML"), ("recipe.toml", b"\xff\xfe", "text"), ("recipe.toml", "[budget]\nimages = 5", "stage"),
        ("manifest.json", "[]", "damaged"), ("manifest.json", "{}", "another version"), ("manifest.json", b"{" * 10**6, "damaged"),
        ("manifest.json", b'{"a": "' + b"a" * (5 << 20) + b'"}', "damaged"), ("summary.json", "{}", "finished"),
    ):  # fmt: skip
        yield Case(
            f"damaged {name}: {text[:9]!r}",
            RESUME,
            ("broken-run", words) if name != "recipe.toml" or words != "stage" else (words,),
            make=begun("broken-run", lambda p, n=name, t=text: p.file(f"broken-run/{n}", t)),
            writes=("broken-run",),
        )
    for name, text in (
        ("no JSON", "a\nb"),
        ("not text", bytes(range(256))),
        ("NaN", '{"round": NaN}'),
        ("a list", "[1]"),
    ):
        yield Case(
            f"metrics.jsonl: {name}",
            RESUME,
            make=begun("broken-run", lambda p, t=text: p.file("broken-run/metrics.jsonl", t)),
            writes=("broken-run",),
        )
    for name, text in (
        ("empty", b""),
        ("zeros", bytes(100)),
        ("long header", struct.pack("<Q", 10**11)),
    ):

        def spoiled(place: Place, text: bytes = text) -> None:
            for path in (place.cwd / "broken-run" / "checkpoints").iterdir():
                path.write_bytes(text)

        yield Case(
            f"checkpoints: {name}",
            RESUME,
            make=begun("broken-run", spoiled),
            writes=("broken-run",),
        )
    yield Case(
        "names like ours beside ours",
        RESUME,
        make=begun(
            "broken-run",
            lambda p: [
                p.file(f"broken-run/checkpoints/{n}", "x")
                for n in ("1.safetensors", "20231101.safetensors", "a.safetensors")
            ],
        ),
        writes=("broken-run",),
    )
    for path in ("nosuch", "notes.txt", "/dev/null", "/"):
        yield Case(
            f"resume {path}",
            ("distill", "--resume", path),
            ("--resume", path),
            make=lambda p: p.file("notes.txt", "x"),
        )
        yield Case(
            f"resume set {path}",
            ("generate", "--resume", path),
            ("--resume", path),
            make=lambda p: p.file("notes.txt", "x"),
        )
    yield Case(
        "bench: something else lies there",
        ("bench", "--out", "mine", "--minutes", "1"),
        ("mine", "something else"),
        make=lambda p: p.file("mine/notes.txt", "x"),
    )


def sets() -> Iterator[Case]:
    score = ("evaluate", "--images", "set", "--quiet")

    def changed(change: Callable[[Any], Any]) -> Callable[[Place], object]:
        return begun("set", lambda p: p.json("set/manifest.json", change))

    for name, change in (
        ("count 2**70", lambda m: m.update(count=2**70)), ("NaN mean", lambda m: m["spec"].update(mean=[float("nan")])), ("no shards", lambda m: m.update(shards=[])),
        ("a shard of 10^12", lambda m: (m["shards"][0].update(count=10**12), m.update(count=10**12))[0]), ("10^9 classes", lambda m: m.update(classes=10**9)),
        ("version 99", lambda m: m.update(version=99)), ("a list", lambda m: [1]), ("names as a number", lambda m: m.update(names=5)),
        ("spec as a list", lambda m: m.update(spec=[1])), ("width 2**40", lambda m: m["spec"].update(width=2**40)), ("a text for a count", lambda m: m.update(count="40")),
        ("other classes", lambda m: m["per_class"].append(m["per_class"].pop() + 1)), ("another hash", lambda m: m["shards"][0].update(images="0" * 64)),
    ):  # fmt: skip
        yield Case(f"set: {name}", score, ("set",), make=changed(change))
    for name, content in (
        ("empty", b""), ("cut", b"\x93NUMPY\x01\x00"), ("objects", npy("|O", (4,), b"\x80\x04.")), ("a huge shape", npy("|u1", (2**40,))),
        ("an expression", b"\x93NUMPY\x01\x00\x40\x00" + b"__import__('os').system('touch ran')".ljust(64)),
    ):  # fmt: skip
        yield Case(
            f"set, shard: {name}",
            score,
            ("shard-00000.images.npy",),
            make=begun("set", lambda p, c=content: p.file("set/shard-00000.images.npy", c)),
        )
    yield Case(
        "set: a pipe for its manifest",
        score,
        ("set",),
        make=begun("set", lambda p: p.pipe("set/manifest.json")),
    )
    yield Case(
        "set: a pipe for a shard",
        score,
        ("shard-00000.images.npy",),
        make=begun("set", lambda p: p.pipe("set/shard-00000.images.npy")),
    )
    yield Case(
        "set: no JSON",
        score,
        ("set",),
        make=begun("set", lambda p: p.file("set/manifest.json", "[" * 10**5)),
    )


def npy(kind: str, shape: tuple[int, ...], data: bytes = b"") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


def png(
    width: int, height: int, kind: int = 0, rows: bytes = b"", *more: tuple[bytes, bytes]
) -> bytes:
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
        *more,
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    whole = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        whole += (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )
    return whole


def pictures() -> Iterator[Case]:
    score = ("evaluate", "--images", "pictures", "--quiet")
    predict = ("predict", "run", "x.png")
    for name, content in (
        ("empty", b""), ("text", b"<svg onload='alert(1)'>"), ("no pixels", png(0, 0)), ("10^10 pixels", png(100_000, 100_000)), ("a row lacking", png(16, 16, 0, b"\0" * 20)),
        ("half", png(16, 16, 0, b"\0" * 272)[:45]), ("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) (w) file\n"),
        ("2**31 wide", png(2**31 - 1, 1)), ("a bomb of text", png(0, 16, 0, b"", (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26))))),
        ("a bomb of pixels", png(40_000, 40_000, 2, bytes(1 << 24))), ("a kind of nobody", png(16, 16, 5)), ("a pickle", b"\x80\x04c__builtin__\nexec\n."),
        ("GIF of no size", b"GIF89a\0\0\0\0\0\0\0;"), ("BMP of 2**31", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0)),
        ("JPEG cut", b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"), ("TIFF without end", b"II*\0\x08\0\0\0" + b"\xff" * 20),
        ("WebP of lies", b"RIFF\xff\xff\xff\x7fWEBPVP8X" + b"\xff" * 20), ("DICOM of lies", bytes(128) + b"DICM" + b"\xff" * 40),
    ):  # fmt: skip
        yield Case(
            f"picture: {name}",
            score,
            ("3.png",),
            make=begun("pictures", lambda p, c=content: p.file("pictures/3/3.png", c)),
        )
        yield Case(
            f"predict: {name}",
            predict,
            ("x.png",),
            make=begun("run", lambda p, c=content: p.file("x.png", c)),
        )
    yield Case(
        "picture: a pipe",
        score,
        ("3.png",),
        make=begun("pictures", lambda p: p.pipe("pictures/3/3.png")),
    )
    yield Case(
        "picture: a link to a device",
        score,
        ("3.png",),
        make=begun("pictures", lambda p: p.link("pictures/3/3.png", "/dev/zero")),
    )
    yield Case(
        "picture: a link to text",
        score,
        ("3.png",),
        make=begun("pictures", lambda p: p.link("pictures/3/3.png", "/etc/passwd")),
    )
    yield Case(
        "picture: a link to nowhere",
        score,
        ("3.png",),
        make=begun("pictures", lambda p: p.link("pictures/3/3.png", p.outside / "none")),
    )
    yield Case(
        "picture: a folder that is a link to itself",
        score,
        make=begun("pictures", lambda p: p.link("pictures/3/3", "../3")),
    )
    yield Case(
        "picture: an escape code in its name",
        score,
        ("error",),
        make=begun("pictures", lambda p: p.file("pictures/3/\x1b[31m\n.png", "x")),
    )
    yield Case(
        "picture: a name that is no text",
        score,
        ("error",),
        make=begun(
            "pictures",
            lambda p: Path(os.fsdecode(os.fsencode(p.cwd) + b"/pictures/3/\xff.png")).write_text(
                "x"
            ),
        ),
    )
    yield Case("predict: a pipe", predict, ("x.png",), make=begun("run", lambda p: p.pipe("x.png")))
    yield Case(
        "predict: a device", ("predict", "run", "/dev/zero"), ("/dev/zero",), make=begun("run")
    )
    yield Case("predict: not there", predict, ("x.png",), make=begun("run"))
    yield Case(
        "predict: no run",
        predict,
        ("'run'",),
        make=lambda p: Image.new("L", (16, 16)).save(p.cwd / "x.png"),
    )
    yield Case(
        "predict: a run without a student",
        predict,
        ("'run'", "student.safetensors"),
        make=begun("run", lambda p: p.remove("run/student.safetensors")),
    )
    yield Case(
        "predict: a student that is a pipe",
        predict,
        ("'run'", "student.safetensors"),
        make=begun("run", lambda p: p.pipe("run/student.safetensors")),
    )
    yield Case(
        "an empty folder", score, ("pictures", "no "), make=lambda p: (p.cwd / "pictures").mkdir()
    )


def arrays() -> Iterator[Case]:
    score = ("evaluate", "--student", "demo", "--val-data", "bad.npz", "--quiet")
    x, y = np.zeros((20, 16, 16), np.uint8), np.arange(20) % 10

    def saved(**given: Any) -> Callable[[Place], object]:
        return lambda p: np.savez(p.cwd / "bad.npz", **given)

    def members(**given: bytes) -> Callable[[Place], object]:
        def make(place: Place) -> None:
            with zipfile.ZipFile(place.cwd / "bad.npz", "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in given.items():
                    archive.writestr(f"{name}.npy", content)

        return make

    def bomb(place: Place) -> None:
        with (
            zipfile.ZipFile(
                place.cwd / "bad.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1
            ) as archive,
            archive.open("x.npy", "w", force_zip64=True) as file,
        ):
            file.write(npy("|u1", (4 << 10, 1024, 1024)))
            for _ in range(256):
                file.write(bytes(16 << 20))

    whole = io.BytesIO()
    np.save(whole, y)
    for name, make in (
        ("bomb", bomb), ("no x", saved(z=x)), ("no y", saved(x=x)), ("complex", saved(x=x * 1j, y=y)), ("texts", saved(x=np.full((20, 16, 16), "a"), y=y)),
        ("NaN", saved(x=np.full((20, 16, 16), np.nan), y=y)), ("five dimensions", saved(x=x[None, None], y=y)), ("none", saved(x=x[:0], y=y[:0])),
        ("more labels", saved(x=x, y=np.arange(21) % 10)), ("negative labels", saved(x=x, y=y - 1)), ("labels 2**63", saved(x=x, y=np.full(20, 2**63, np.uint64))),
        ("NaN labels", saved(x=x, y=np.full(20, np.nan))), ("labels of text", saved(x=x, y=np.full(20, "a"))), ("dates", saved(x=x.astype("datetime64[s]"), y=y)),
        ("a structure", saved(x=np.zeros((20, 16, 16), "u1,u1"), y=y)), ("objects", saved(x=np.full((20,), {}), y=y)), ("one dimension", saved(x=np.zeros(20), y=y)),
        ("a huge shape", members(x=npy("|u1", (2**40, 16, 16)), y=whole.getvalue())), ("a negative shape", members(x=npy("|u1", (-20, 16, 16)), y=whole.getvalue())),
        ("an expression", members(x=b"\x93NUMPY\x01\x00\x40\x00" + b"__import__('os').system('touch ran')".ljust(64))), ("a deep header", members(x=b"\x93NUMPY\x02\x00" + struct.pack("<I", 100_000) + b"(" * 100_000)),
        ("no array", members(x=b"abc")), ("a header of 4 GB", members(x=b"\x93NUMPY\x02\x00\xff\xff\xff\xff")), ("no zip", lambda p: p.file("bad.npz", "abc")),
        ("empty", lambda p: p.file("bad.npz", "")), ("a pipe", lambda p: p.pipe("bad.npz")), ("a folder", lambda p: p.file("bad.npz/x", "")),
        ("too little", members(x=npy("|u1", (20, 16, 16), bytes(9)), y=whole.getvalue())),
    ):  # fmt: skip
        yield Case(f"npz: {name}", score, ("bad.npz",), make=make)


def benches() -> Iterator[Case]:
    for name, text in (
        ("no JSON", "{"),
        ("a list", "[]"),
        ("nothing", "{}"),
        ("NaN", '{"settings": NaN}'),
        ("deep", "[" * 10**5),
        ("not text", bytes(range(256))),
        ("settings", '{"settings": {"minutes": 1}}'),
    ):
        yield Case(
            f"bench.json: {name}",
            REPORT,
            ("bench.json", "damaged"),
            make=begun("bench", lambda p, t=text: p.file("bench/bench.json", t)),
        )
    for key, value in (
        ("minutes", "1"),
        ("minutes", None),
        ("threads", [1]),
        ("teacher", 5),
        ("val", None),
    ):
        yield Case(
            f"bench.json: {key} {value!r}",
            REPORT,
            ("bench.json", "damaged"),
            make=begun(
                "bench",
                lambda p, k=key, v=value: p.json(
                    "bench/bench.json", lambda b: b["settings"].update({k: v})
                ),
            ),
        )
    for key in (
        "pipeline",
        "seed",
        "state",
        "minutes",
        "probe",
        "load",
        "threads",
        "device",
        "code",
        "summary",
        "curve",
    ):
        yield Case(
            f"record without {key}",
            REPORT,
            ("gan-s0.json", "damaged"),
            make=begun(
                "bench",
                lambda p, k=key: p.json("bench/runs/gan-s0.json", lambda r: r.pop(k) and None),
            ),
        )
    for key, value in (
        ("others", [1]), ("others", {"a": "b"}), ("probe", {"float32": None}), ("curve", [1]), ("curve", [{"share": 2}]), ("curve", {}), ("seed", "0"), ("recipe", []), ("recipe", {"run": 5}),
        ("state", "evil"), ("summary", []), ("summary", {"student_accuracy": "0.5"}), ("load", "\x1b[31m"), ("minutes", 10**400), ("pipeline", ["a"]),
    ):  # fmt: skip
        yield Case(
            f"record: {key} {str(value)[:20]}",
            REPORT,
            ("gan-s0.json", "damaged"),
            make=begun(
                "bench",
                lambda p, k=key, v=value: p.json(
                    "bench/runs/gan-s0.json", lambda r: r.update({k: v})
                ),
            ),
        )
    for key in ("student_accuracy", "wall_seconds", "val_images", "teacher_parameters"):
        for value in (None, "a", float("nan"), -1):
            yield Case(
                f"record: summary.{key} {value}",
                REPORT,
                ("gan-s0.json", "damaged"),
                make=begun(
                    "bench",
                    lambda p, k=key, v=value: p.json(
                        "bench/runs/gan-s0.json", lambda r: r["summary"].update({k: v})
                    ),
                ),
            )
    yield Case(
        "record: no JSON",
        REPORT,
        ("gan-s0.json", "damaged"),
        make=begun("bench", lambda p: p.file("bench/runs/gan-s0.json", "{")),
    )
    yield Case(
        "record: a pipe",
        REPORT,
        ("gan-s0.json", "pipe"),
        make=begun("bench", lambda p: p.pipe("bench/runs/gan-s0.json")),
    )
    yield Case(
        "report of nothing", REPORT, ("bench", "no bench"), make=lambda p: (p.cwd / "bench").mkdir()
    )
    yield Case("report of no folder", REPORT, ("bench", "no bench"))
    yield Case("report: plain", REPORT, make=begun("bench"), writes=("bench",))


def exports() -> Iterator[Case]:
    export = ("export", "run", "--out", "out", "--format", "safetensors", "--quiet")
    for path in ("summary.json", "manifest.json"):
        for name, text in (
            ("missing", None),
            ("no JSON", "{"),
            ("a list", "[]"),
            ("nothing", "{}"),
            ("deep", "[" * 10**5),
            ("5 MB", b'{"a": "' + b"a" * (5 << 20) + b'"}'),
        ):
            yield Case(
                f"export, {path}: {name}",
                export,
                ("run", path),
                make=begun(
                    "run",
                    lambda p, n=path, t=text: (
                        p.file(f"run/{n}", t) if t is not None else p.remove(f"run/{n}")
                    ),
                ),
            )
        yield Case(
            f"export, {path}: a pipe",
            export,
            ("run", path),
            make=begun("run", lambda p, n=path: p.pipe(f"run/{n}")),
        )
    yield Case("export: no run", export, ("run",))
    yield Case(
        "export: an unknown format",
        ("export", "run", "--format", "\x1b[31m"),
        ("--format",),
        make=begun("run"),
    )
    yield Case(
        "export: into a full folder",
        (*export[:3], "mine"),
        ("mine",),
        make=begun("run", lambda p: p.file("mine/notes.txt", "x")),
    )
    yield Case(
        "export: into a link to nowhere",
        (*export[:3], "gone"),
        ("gone",),
        make=begun("run", lambda p: p.link("gone", p.outside / "new")),
    )
    yield Case(
        "export: another student",
        export,
        ("student.safetensors",),
        make=begun(
            "run", lambda p: p.json("run/summary.json", lambda s: s.update(student_sha256="0" * 64))
        ),
    )


def CASES() -> Iterator[Case]:
    yield from resumed()
    yield from sets()
    yield from pictures()
    yield from arrays()
    yield from benches()
    yield from exports()
