"""Flags, environment, TOML files, terminals, disks."""

# ruff: noqa: E501
# a case, a line

import os
from collections.abc import Iterator

from bases import CONTRACT, SHORT
from harness import Case, Place

QUICK = ("distill", *SHORT[:-1])  # not quiet


def toml(text: str | bytes) -> object:
    return lambda place: place.file("wrong.toml", text)


def settings() -> Iterator[Case]:
    # what an unset variable of a shell leaves
    for flag, words in (
        ("--teacher", "distill"), ("--teacher-weights", "distill"), ("--student", "distill"),
        ("--student-weights", "distill"), ("--real-data", "distill"), ("--val-data", "distill"),
        ("--synthetic", "distill"), ("--out", "distill"), ("--generator-from", "distill"),
        ("--pipeline", "distill"), ("--teacher.features", "distill"), ("--images", "evaluate"),
        ("--reference", "evaluate"), ("--extractor", "evaluate"), ("--generator-from", "generate"),
        ("--config", "distill"), ("--resume", "distill"), ("--resume", "generate"),
        ("--save-generator", "generate"), ("--teacher-mean", "distill"),
        ("--teacher-args", "distill"), ("--run.stages", "distill"), ("--out", "bench"),
        ("--pipelines", "bench"), ("--seeds", "bench"), ("--also", "bench"), ("--seed", "distill"),
        ("--minutes", "distill"), ("--run.device", "distill"),
    ):  # fmt: skip
        more = ("--minutes", "1") if words == "bench" else ()
        yield Case(f"empty {flag} of {words}", (words, flag, "", *more), (flag, "empty"))
    yield Case("empty name of a run to export", ("export", ""), ("export", "empty"))
    yield Case("empty SPEC to inspect", ("inspect", ""), ("empty",))
    yield Case(
        "empty name of an image", ("predict", "run", ""), ("empty",), make=lambda p: p.copy("run")
    )
    yield Case("blank SPEC", ("distill", "--teacher", "  "), ("--teacher", "empty"))
    for text in ('[teacher]\nweights = ""', '[data]\nreal = ""', '[run]\nout = " "'):
        key = text.split("\n")[1].split()[0]
        yield Case(
            f"empty {key} in TOML", ("distill", "--config", "wrong.toml"),
            ("wrong.toml", key, "empty"), make=toml(text),
        )  # fmt: skip
    # numbers beyond all bounds
    for flag, value, word in (
        ("--images-seen", str(2**70), "budget.images"), ("--images-seen", "1e400", "budget.images"),
        ("--images-seen", "9" * 5000, "budget.images"), ("--minutes", "inf", "budget.minutes"),
        ("--minutes", "nan", "budget.minutes"), ("--minutes", "1e300", "budget.minutes"),
        ("--memory.capacity", str(2**70), "memory.capacity"),
        ("--training.batch", str(2**40), "training.batch"), ("--seed", str(2**70), "seed"),
        ("--run.threads", "1000000000", "threads"), ("--run.snapshots", str(2**70), "snapshots"),
        ("--stage.joint.fresh", str(2**70), "fresh"),
        ("--stage.joint.synthesis_steps", str(2**70), "synthesis_steps"),
        ("--stage.joint.synthesis_batch", str(2**70), "synthesis_batch"),
        ("--stage.joint.student_steps", str(2**70), "student_steps"),
        ("--stage.joint.terms.balance", "nan", "balance"), ("--generator.restart", str(2**70), "restart"),
        ("--diffusion.batch", str(2**70), "batch"),
        ("--image-size", "1000000000", "image_size"), ("--classes", "1000000000", "classes"),
        ("--training.learning_rate", "inf", "learning_rate"), ("--teacher-mean", "nan", "mean"),
        ("--teacher-std", "inf", "std"), ("--channels", "-1", "channels"),
        ("--run.checkpoint_seconds", "nan", "checkpoint_seconds"),
        ("--run.device", "cuda:" + "9" * 5000, "device"), ("--max-params", str(2**70), "max_params"),
        ("--mix-ratio", "1e-400x", "mix_ratio"), ("--memory.shares", "gan=nan", "shares"),
    ):  # fmt: skip
        yield Case(f"{flag} {value[:12]}", ("distill", "--pipeline", "gan", flag, value), (word,))
    yield Case("count 2**70", ("generate", "--count", str(2**70)), ("dataset.count", "less than"))
    yield Case(
        "shard 2**70", ("generate", "--dataset.shard", str(2**70)), ("dataset.shard", "less than")
    )
    yield Case(
        "batch 2**70",
        ("evaluate", "--evaluation.batch", str(2**70)),
        ("evaluation.batch", "less than"),
    )
    yield Case(
        "top 2**70",
        ("predict", "run", "x.png", "--top", "-1"),
        ("--top",),
        make=lambda p: p.copy("run"),
    )
    yield Case(
        "seeds of 5,000 digits",
        ("bench", "--out", "out", "--minutes", "1", "--seeds", "9" * 5000),
        ("--seeds",),
    )
    # names
    for text in ("\x1b[31mred\x1b[0m", "a\nb", "\u202eevil", "\x9b31m", "a\rb", "\udcff", "\x07"):
        for argv in (
            ("distill", "--teacher"),
            ("inspect",),
            ("distill", "--val-data"),
            ("distill", "--config"),
            ("export",),
        ):
            yield Case(f"{' '.join(argv)} {text!r}", (*argv, text), ("error",))
    yield Case(
        "a name of 10,000 letters", ("distill", "--val-data", "a" * 10_000), ("aaa", "too long")
    )
    yield Case(
        "a directory of 300 letters", (*QUICK, "--out", "a" * 300), ("--out", "name too long")
    )
    yield Case(
        "a network that is no name", ("predict", "my-run", "x.png"), ("my-run", "there is no")
    )
    yield Case("a run that is not there", ("inspect", "my-run"), ("my-run", "there is no"))
    yield Case("a student that is not there", ("evaluate", "--student", "nosuch"), ("nosuch", "no"))


def files() -> Iterator[Case]:
    for name, text, words in (
        ("not TOML", "[[[", ("not valid TOML",)),
        ("binary", bytes(range(256)), ("cannot be read as text",)),
        ("UTF-16", "[run]\nseed = 1".encode("utf-16"), ("cannot be read as text",)),
        ("NUL", "[run]\nout = \"a\0b\"", ("not valid TOML",)),
        ("NUL escaped, out", '[run]\nout = "a\\u0000b"', ("run.out", "NUL")),
        ("NUL escaped, spec", '[teacher]\nspec = "a\\u0000b"', ("teacher.spec", "NUL")),
        ("NUL escaped, weights", '[teacher]\nweights = "a\\u0000b"', ("teacher.weights", "NUL")),
        ("NUL escaped, data", '[data]\nval = "a\\u0000b"', ("data.val", "NUL")),
        ("NUL escaped, pipeline", 'pipeline = "a\\u0000b.toml"', ("pipeline", "NUL")),
        ("100,000 brackets", "a = " + "[" * 50_000 + "]" * 49_000, ("wrong.toml",)),
        ("3,000 brackets", "a = " + "[" * 3_000 + "]" * 3_000, ("nested too deeply",)),
        ("20,000 dots", "a" + ".a" * 20_000 + " = 1", ("dots",)),
        ("5,000 digits", "[run]\nseed = " + "9" * 5_000, ("wrong.toml",)),
        ("200 kB", "# " + "a" * 200_000, ("too large",)),
        ("a date", "[budget]\nminutes = 1979-05-27", ("budget.minutes",)),
        ("inf", "[budget]\nminutes = inf", ("budget.minutes", "finite")),
        ("nan", "[training]\nlearning_rate = nan", ("training.learning_rate", "finite")),
        ("2**70", f"[budget]\nimages = {2**70}", ("budget.images",)),
        ("trust", "[run]\ntrust_code = true", ("trust_code", "only you")),
        ("trust as text", '[run]\ntrust_code = "yes"', ("trust_code",)),
        ("code", '[teacher]\nspec = "subprocess:run"\nargs = { args = "touch ran", shell = "true" }',
         ("'subprocess:run'", "would be called")),
        ("code as a student", '[student]\nspec = "os:system"', ("'os:system'", "would be called")),
        ("code as an extractor", '[evaluation]\nextractor = "os:system"', ("'os:system'", "would be called")),
        ("a list for a table", "teacher = [1]", ("teacher",)),
        ("a number for a table", "teacher = 1", ("teacher",)),
        ("a table for a number", "[run.seed]\na = 1", ("run.seed",)),
        ("a table for stages", "[stage]\nname = 'a'", ("stage",)),
        ("stages of one name", "[[stage]]\nname = 'a'\n[[stage]]\nname = 'a'", ("stage names",)),
        ("a stage's name", "[[stage]]\nname = '../../a'", ("stage.0.name",)),
        ("an unknown key", "[run]\nsead = 1", ("sead", "did you mean 'seed'?")),
        ("an escape code in a key", '[run]\n"\\u001b[31m" = 1', ("unknown key",)),
        ("a million in a list", "[training]\nmilestones = [" + "0.1," * 20_000 + "]\nx = 1", ("wrong.toml",)),
        ("a bool for a number", "[run]\nseed = true", ("run.seed",)),
        ("a float for a count", "[budget]\nimages = 1.5", ("budget.images",)),
        ("pipeline as a list", "pipeline = ['a']", ("pipeline",)),
        ("pipeline elsewhere", "pipeline = '/etc/passwd.toml'", ("/etc/passwd.toml",)),
    ):  # fmt: skip
        yield Case(f"TOML: {name}", ("distill", "--config", "wrong.toml"), words, make=toml(text))
    yield Case(
        "TOML: a pipe",
        ("distill", "--config", "wrong.toml"),
        ("wrong.toml", "pipe"),
        make=lambda p: p.pipe("wrong.toml"),
    )
    yield Case(
        "TOML: a folder",
        ("distill", "--config", "wrong.toml"),
        ("wrong.toml", "folder"),
        make=lambda p: (p.cwd / "wrong.toml").mkdir(),
    )
    yield Case("TOML: endless", ("distill", "--config", "/dev/zero"), ("/dev/zero", "too large"))
    yield Case(
        "TOML: a link to itself",
        ("distill", "--config", "wrong.toml"),
        ("wrong.toml",),
        make=lambda p: p.link("wrong.toml", "wrong.toml"),
    )
    yield Case(
        "TOML: a pipeline that is a pipe",
        ("distill", "--pipeline", "./wrong.toml"),
        ("wrong.toml", "pipe"),
        make=lambda p: p.pipe("wrong.toml"),
    )
    yield Case(
        "TOML: a bench's",
        ("bench", "--config", "wrong.toml", "--out", "out", "--minutes", "1"),
        ("wrong.toml", "data", "object"),
        make=toml("data = 5"),
    )


def terminals() -> Iterator[Case]:
    for encoding in ("ascii", "latin-1", "cp1252", "cp437", "koi8-r"):
        for argv in (QUICK, ("evaluate", "--student", "demo"), ("inspect", "demo"),
                     ("generate", *SHORT[:2], "--images-seen", "32", "--count", "20", "--run.stages", "pregenerate",
                      "--stage.pregenerate.fresh", "32", "--memory.capacity", "200")):  # fmt: skip
            if argv[0] == "generate" and encoding != "ascii":
                continue
            yield Case(
                f"{argv[0]} on {encoding}",
                argv,
                streams={"encoding": encoding},
                make=lambda p: p.copy("run"),
            )
        yield Case(
            f"an error on {encoding}",
            ("distill", "--val-data", "Prüfung…‖"),
            ("no such",),
            streams={"encoding": encoding},
        )
    for argv in (
        ("inspect", "demo"),
        ("evaluate", "--student", "demo"),
        ("inspect", "demo", "--json"),
    ):
        yield Case(f"{argv} without stdout", argv, streams={"stdout": "closed"})
        yield Case(
            f"{argv}, stdout full",
            argv,
            ("standard output", "No space left"),
            streams={"stdout": "full"},
        )
        yield Case(f"{argv}, nobody reads", argv, streams={"stdout": "broken"}, codes=(1,))
    yield Case("no stderr", ("distill", "--seed", "x"), streams={"stderr": "closed"}, codes=(2,))
    yield Case("stderr full", ("distill", "--seed", "x"), streams={"stderr": "full"}, codes=(2,))
    yield Case(
        "nobody reads stderr", ("distill", "--seed", "x"), streams={"stderr": "broken"}, codes=(2,)
    )
    yield Case("no stdout in a run", QUICK, streams={"stdout": "closed"})
    for name, environment in (
        ("COLUMNS", {"COLUMNS": "0", "LINES": "-1"}), ("wide", {"COLUMNS": "99999999"}),
        ("colour", {"FORCE_COLOR": "1", "TERM": "xterm-256color"}), ("TERM", {"TERM": "\x1b[31m"}),
        ("no number", {"COLUMNS": "x"}),
    ):  # fmt: skip
        yield Case(f"environment: {name}", ("inspect", "demo"), streams={"env": environment})


def disks() -> Iterator[Case]:
    long = ("distill", *SHORT)
    for size in (500, 3_000, 20_000, 60_000, 200_000):
        yield Case(
            f"no file over {size} bytes: distill",
            (*long, "--out", "out"),
            ("out", "too large"),
            streams={"file_size": size},
        )
    for size in (500, 3_000, 10_000):
        yield Case(
            f"no file over {size} bytes: generate", ("generate", "--pipeline", "shaders", "--count", "40", "--quiet", "--out", "out"),
            ("out", "too large"), streams={"file_size": size},
        )  # fmt: skip
    yield Case(
        "no file over 300 bytes: evaluate",
        ("evaluate", "--student", "demo", "--out", "out", "--quiet"),
        ("'out'", "too large"),
        streams={"file_size": 300},
    )
    yield Case(
        "no file over 1000 bytes: export",
        ("export", "run", "--out", "out", "--format", "safetensors"),
        ("out", "too large"),
        streams={"file_size": 1000},
        make=lambda p: p.copy("run"),
    )
    yield Case(
        "no file over 300 bytes: resume",
        ("distill", "--resume", "broken-run", "--quiet"),
        ("broken-run", "too large"),
        streams={"file_size": 300},
        make=lambda p: p.copy("broken-run"),
        writes=("broken-run",),
    )
    yield Case(
        "no file over 300 bytes: report",
        ("bench", "--report", "--out", "bench", "--quiet"),
        ("bench", "too large"),
        streams={"file_size": 300},
        make=lambda p: p.copy("bench"),
        writes=("bench",),
    )
    yield Case(
        "out is a file",
        (*long, "--out", "notes"),
        ("--out", "a file of this name"),
        make=lambda p: p.file("notes", "x"),
    )
    yield Case(
        "out inside a file",
        (*long, "--out", "notes/run"),
        ("--out", "Not a directory"),
        make=lambda p: p.file("notes", "x"),
    )
    yield Case(
        "out is a link to nowhere",
        (*long, "--out", "gone"),
        ("--out", "gone"),
        make=lambda p: p.link("gone", p.outside / "nowhere"),
    )
    yield Case(
        "out is a pipe", (*long, "--out", "pipe"), ("--out", "pipe"), make=lambda p: p.pipe("pipe")
    )
    yield Case("out below /proc", (*long, "--out", "/proc/synthkd"), ("--out", "/proc/synthkd"))
    yield Case(
        "weights that cannot be read",
        ("distill", "--teacher", "resnet8-w4", "--teacher-weights", "/proc/self/mem", *CONTRACT),
        ("/proc/self/mem",),
    )
    if os.getuid() == 0:
        nobody = {"user": 65534}
        yield Case(
            "out where one may not write",
            (*long, "--out", "kept/run"),
            ("--out", "Permission denied"),
            make=lambda p: (p.cwd / "kept").mkdir(mode=0o755),
            streams=nobody,
            writes=("kept",),
        )
        yield Case(
            "a run that one may not read",
            ("distill", "--resume", "broken-run"),
            ("broken-run", "Permission denied"),
            make=locked,
            streams=nobody,
        )
        yield Case(
            "a run that one may not write",
            ("distill", "--resume", "broken-run"),
            ("broken-run", "Permission denied"),
            make=lambda p: p.copy("broken-run"),
            streams=nobody,
        )
        yield Case(
            "weights that one may not read",
            ("distill", "--teacher", "resnet8-w4", "--teacher-weights", "weights.pt", *CONTRACT),
            ("weights.pt", "Permission denied"),
            make=lambda p: p.copy("weights.pt").chmod(0),
            streams=nobody,
        )
        yield Case(
            "a TOML that one may not read",
            ("distill", "--config", "kept.toml"),
            ("kept.toml", "Permission denied"),
            make=lambda p: p.file("kept.toml").chmod(0),
            streams=nobody,
        )
        yield Case(
            "images that one may not read",
            ("evaluate", "--images", "pictures", "--teacher", "demo"),
            ("pictures", "Permission denied"),
            make=lambda p: (p.copy("pictures") / "3" / "3.png").chmod(0),
            streams=nobody,
        )


def locked(place: Place) -> None:
    place.copy("broken-run")
    (place.cwd / "broken-run" / "checkpoints").chmod(0)


def CASES() -> Iterator[Case]:
    yield from settings()
    yield from files()
    yield from terminals()
    yield from disks()
