"""`synthkd bench`: pipelines against each other, with the same teacher, student and wall clock."""

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import synthkd
from synthkd import measures
from synthkd import recipe as recipes
from synthkd.commands.display import Display
from synthkd.core import files, resources
from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import EXIT_USELESS, Finding, as_data
from synthkd.core.images import portions, to_float
from synthkd.core.logits import paired
from synthkd.data.sources import Images
from synthkd.engine.build import checked, images_for
from synthkd.engine.machine import prepare
from synthkd.evaluation.compare import settled, votes_of
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, StudentTable
from synthkd.reports import bench as reports
from synthkd.runs.directory import Run, environment
from synthkd.specs import load_classifier, load_teacher
from synthkd.teachers.protocol import Teacher

SNAPSHOTS = 12  # points of a curve, beside its end
PROBE_SECONDS = 2.0
OVERHEAD = 20.0  # seconds of a run outside its minutes, until one has been measured

# what the bench says itself, or each pipeline does
_NOT_COMMON = (
    "pipeline", "stage", "budget.images", "data.mix_ratio", "data.synthetic", "run.seed",
    "run.stages", "run.snapshots",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One run of a bench: a pipeline with a seed."""

    pipeline: str
    seed: int
    recipe: Recipe
    flags: tuple[str, ...]  # of `synthkd distill`
    path: Path  # its run directory; the record and the log lie beside it

    @property
    def record(self) -> Path:
        """What the bench knows of the run."""
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.path.with_name(f"{self.path.name}.log")


@dataclass
class Bench:
    """Everything that the runs share."""

    folder: Path
    recipe: Recipe  # the settings laid over every pipeline, and nothing else
    device: torch.device
    teacher: Teacher
    val: Images
    also: dict[str, Images]
    settings: dict[str, Any]  # for tables
    display: Display
    findings: Sequence[Finding] = ()  # of the teacher


def run(
    recipe: Recipe,
    *,
    pipelines: str = "all",
    seeds: str = "0",
    also: Sequence[str] | None = None,
    report: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Runs every pipeline with every seed, one after the other, and writes tables and a plot; with
    `as_json` it prints results.json, and nothing else.

    `recipe` has no pipeline: its settings are laid over each. The same call again goes on where it
    was stopped. With `report` nothing is run. Exits with 1 if a run failed.
    """
    display = Display(quiet=quiet or as_json)
    if not recipe.run.out and not dry_run:
        raise InputError("bench needs a directory: give --out DIR")
    folder = Path(recipe.run.out or "bench")
    if report:
        if folder.is_dir():
            files.plain_tree(folder, f"--out {quoted(folder)}")
        reports.report(folder, strict=True)
        display.say(
            f"written again: {folder / 'table.md'}, results.csv, results.json, accuracy.png"
        )
        if as_json:
            print((folder / "results.json").read_text("utf-8"), end="")
        return
    recipe, device, _ = prepare(recipe)
    common = _common(recipe, device)
    chosen = _pipelines(pipelines, recipe, display)
    entries = [
        _entry(folder, common, name, spec, seed)
        for seed in _seeds(seeds)  # a first seed of all pipelines, then the next
        for name, spec in chosen.items()
    ]
    if dry_run:
        for entry in entries:
            print(f"{entry.path.name}: synthkd distill {shlex.join(entry.flags)}")
        return
    bench = _open(folder, recipe, device, _also(also or ()), display)
    with _alone(folder) as lock:
        _check_bench_settings(bench, common, list(chosen), sorted({e.seed for e in entries}))
        try:
            with _terminated():
                failed = _walk(bench, entries, lock)
        except (KeyboardInterrupt, SystemExit):
            display.say("stopped: run the same command again to continue")
            raise
    if as_json:
        print((folder / "results.json").read_text("utf-8"), end="")
    if failed:
        display.say(f"failed: {', '.join(failed)}; see the .log beside each run directory")
        raise SystemExit(1)


# What is asked for


def _common(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """The settings laid over every pipeline, nested as in TOML."""
    data = recipe.model_dump(exclude_unset=True)
    data["run"]["device"] = str(device)
    data["run"].pop("out", None)
    for key in _flat(data):
        if key in _NOT_COMMON:
            raise InputError(
                f"{key}: each pipeline has its own, or the bench sets it: leave it out of --config"
            )
        if key.startswith(("dataset.", "evaluation.")):
            raise InputError(f"{key}: the runs of a bench have no such setting")
    for key in ("teacher", "student"):
        for name, value in data.get(key, {}).get("args", {}).items():
            if "," in value:
                raise InputError(f"{key}.args.{name}: bench cannot pass on a comma")
    if recipe.budget.minutes is None:
        raise InputError("bench compares at equal time: give --minutes M")
    if recipes.val_of(recipe) == "none":
        raise InputError("bench scores its students: give --val-data PATH, labelled images")
    return data


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted names: a recipe is values and tables of values.

    >>> _flat({"stage": (), "run": {"seed": 3}, "teacher": {"args": {"depth": "8"}}})
    {'stage': (), 'run.seed': 3, 'teacher.args': {'depth': '8'}}
    """
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def _seeds(text: str) -> list[int]:
    """`0,1,2` as numbers."""
    if not re.fullmatch(r"\s*\d{1,9}\s*(,\s*\d{1,9}\s*)*", text):
        raise InputError(f"--seeds {quoted(text)}: comma-separated whole numbers, as in 0,1,2")
    return list(dict.fromkeys(int(seed) for seed in text.split(",")))


def _pipelines(text: str, recipe: Recipe, display: Display) -> dict[str, str]:
    """The pipelines asked for: name in tables, and what `--pipeline` takes.

    `all` leaves out those that need real images where there are none.
    """
    shipped = sorted(p.stem for p in resources.shipped("pipelines").glob("*.toml"))
    chosen: dict[str, str] = {}
    for word in (part.strip() for part in text.split(",") if part.strip()):
        for spec in shipped if word == "all" else [word]:
            path = recipes.pipeline_path(spec)
            mixes = recipes.sources_of(recipes.load_recipe(flags={"pipeline": spec})).real
            if word == "all" and mixes and not recipe.data.real:
                display.say(f"{spec} is left out: it needs --real-data")
            elif chosen.setdefault(path.stem, spec) != spec:
                raise InputError(f"--pipelines: two of them are called {quoted(path.stem)}")
    if not chosen:
        raise InputError("--pipelines: there is none")
    return chosen


def _also(given: Sequence[str]) -> dict[str, str]:
    """`NAME=PATH` of further data sets, by name."""
    paths: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not path or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
            raise InputError(f"--also {quoted(text)}: give NAME=PATH, as in jpeg=test_jpeg.npz")
        if name in paths:
            raise InputError(f"--also {quoted(text)}: this name was given already")
        paths[name] = path
    return paths


def _entry(folder: Path, common: Mapping[str, Any], name: str, spec: str, seed: int) -> Entry:
    """One run; what is wrong with its settings is said before any run begins."""
    path = folder / "runs" / f"{name}-s{seed}"
    own = {"pipeline": spec, "run": {"out": str(path), "seed": seed, "snapshots": SNAPSHOTS}}
    data = recipes.merge(common, own)
    try:
        built = recipes.load_recipe(flags=data)
        if built.data.real and not recipes.sources_of(built).real:
            # a data-free run is not even told where real images are
            data["data"] = {k: v for k, v in data["data"].items() if k != "real"}
            built = recipes.load_recipe(flags=data)
        recipes.check_sources(built)
    except InputError as error:
        raise InputError(f"pipeline {name}: {error}") from None
    return Entry(name, seed, built, tuple(_flags(data)), path)


def _flags(data: Mapping[str, Any]) -> Iterator[str]:
    """Settings as flags of `synthkd distill`.

    >>> teacher = {"mean": (0.5, 0.4), "args": {"depth": 8}}
    >>> list(_flags({"run": {"seed": 3, "trust_code": True}, "teacher": teacher}))
    ['--seed=3', '--trust-code', '--teacher-mean=0.5,0.4', '--teacher-args=depth=8']
    """
    short = {setting.key: setting.flag for setting in recipes.settings() if setting.flag}
    for key, value in _flat(data).items():
        if key in ("run.trust_code", "run.anyway"):
            if value:
                yield short[key]
            continue
        if isinstance(value, bool):
            value = str(value).lower()
        elif value in ("", (), {}):  # not given
            continue
        elif isinstance(value, tuple):
            value = ",".join(map(str, value))
        elif isinstance(value, Mapping):
            value = ",".join(f"{k}={v}" for k, v in value.items())
        yield f"{short.get(key, f'--{key}')}={value}"


# What the runs share


def _open(
    folder: Path, recipe: Recipe, device: torch.device, also: Mapping[str, str], display: Display
) -> Bench:
    """Opens the teacher and the images that students are scored on, before anything runs."""
    trust = recipe.run.trust_code
    teacher = load_teacher(recipe.teacher, trust_code=trust).to(device)

    def labelled(path: str) -> Images:
        return images_for(recipe, path, teacher, labelled=True)

    def judged(path: str, images: Images) -> Images:
        votes = votes_of(teacher, images)
        images, check = settled(images, votes, teacher.classes, teacher.names)
        if images.order:
            display.say(f"{quoted(path)}: {images.order}")
        display.findings(images.notes)
        if any(finding.serious for finding in check.findings) and not recipe.run.anyway:
            raise InputError(
                f"{quoted(path)}: {check.findings[0]}; every score would be of no use (--anyway "
                "compares them nevertheless)"
            )
        display.findings(check.findings)
        return images

    paths = {"": recipes.val_of(recipe), **also}
    opened = {name: labelled(path) for name, path in paths.items()}
    findings = checked(teacher, recipe, display)  # of whose answers labels are judged
    others = {name: judged(paths[name], images) for name, images in opened.items()}
    val = others.pop("")
    settings = {
        "teacher": Path(recipe.teacher.spec).name,
        "student": Path(recipe.student.spec).name,
        "val": Path(recipes.val_of(recipe)).name,
        "minutes": recipe.budget.minutes,
        "threads": recipe.run.threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": recipe.run.precision,
    }
    return Bench(folder, recipe, device, teacher, val, others, settings, display, findings)


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Holds the folder's lock, and gives the handle to hand on to runs: while one of them lives,
    even alone, nobody else starts another."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "lock").is_file():
        raise InputError(f"--out {quoted(folder)}: this directory holds something else")
    if folder.is_dir():
        files.plain_tree(folder, f"--out {quoted(folder)}")
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    (folder / "lock").touch()
    complaint = f"--out {quoted(folder)}: another bench, or a run that it left behind, is at work"
    with files.alone(folder / "lock", complaint) as handle:
        yield handle


def _check_bench_settings(
    bench: Bench, common: Mapping[str, Any], pipelines: list[str], seeds: list[int]
) -> None:
    """Writes bench.json, or compares with what it says: only pipelines and seeds may be added."""
    fixed = {key: list(v) if isinstance(v, tuple) else v for key, v in _flat(common).items()}
    for key in ("run.trust_code", "run.anyway"):  # permissions, which change no result
        fixed.pop(key, None)
    fixed["sha256 of the teacher"] = bench.teacher.digest
    fixed["sha256 of --val-data"] = bench.val.digest
    fixed |= {f"sha256 of --also {name}": images.digest for name, images in bench.also.items()}
    data: dict[str, Any] = {
        "settings": bench.settings, "teacher_findings": as_data(bench.findings), "fixed": fixed,
        "pipelines": pipelines, "seeds": seeds,
        **environment(bench.device),
    }  # fmt: skip
    if (bench.folder / "bench.json").exists():
        before = reports.read_settings(bench.folder)
        old = before["fixed"]
        for key in sorted({*old, *fixed}):
            if old.get(key) != fixed.get(key):
                raise InputError(
                    f"--out {quoted(bench.folder)}: this bench was begun with {key} "
                    f"{_said(old.get(key))}, not {_said(fixed.get(key))}; choose another directory"
                )
        data["pipelines"] = list(dict.fromkeys([*before["pipelines"], *pipelines]))
        data["seeds"] = sorted({*before["seeds"], *seeds})
    files.write_json(bench.folder / "bench.json", data)


def _said(value: object) -> str:
    return "left out" if value is None else quoted(value)


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM ends the bench as Ctrl-C does: the run that is at work is ended too."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# The runs


def _walk(bench: Bench, entries: Sequence[Entry], lock: int) -> list[str]:
    """Runs what is not done yet, one after the other. Returns the names of those that failed."""
    say = bench.display.say
    waiting = [entry for entry in entries if not _done(entry)]
    if done := len(entries) - len(waiting):
        say(f"{done} of {len(entries)} runs are done already")
    if len(waiting) < len(entries):
        reports.report(bench.folder)
    started, failed = time.monotonic(), []
    minutes = bench.settings["minutes"]
    for number, entry in enumerate(waiting):
        passed = time.monotonic() - started
        each = passed / number if number else 60 * minutes + OVERHEAD
        left = timedelta(seconds=round(each * (len(waiting) - number)))
        name = f"{done + number + 1}/{len(entries)} {entry.path.name}"
        say(f"{name}: {minutes:g} minutes; {left} left for all")
        record = _run(bench, entry, lock)
        files.write_json(entry.record, record)
        if record["state"] == "failed":
            failed.append(entry.path.name)
            say(f"{name}: failed: {record['error']}")
        else:
            Run(entry.path).tidy()
            summary, probe = record["summary"], record["probe"]
            speeds = ", ".join(f"{kind} {speed:,.0f}" for kind, speed in probe.items())
            say(
                f"{name}: {summary['student_accuracy']:.2%} after {summary['wall_seconds']:.0f} s, "
                f"{summary['images_seen']:,} images seen; GFLOP/s before it: {speeds}"
            )
            for finding in summary.get("findings", ()):
                say(f"{name}: {'serious' if finding['serious'] else 'warning'}: {finding['seen']}")
        reports.report(bench.folder)
    say(f"results: {bench.folder / 'table.md'}, results.csv, results.json, accuracy.png")
    return failed


def _done(entry: Entry) -> bool:
    """Whether a run has finished with this very recipe."""
    record = reports.read_record(entry.record)
    return record is not None and record["state"] == "finished" and _same(record, entry)


def _same(record: Mapping[str, Any], entry: Entry) -> bool:
    """Whether a record is of the same recipe; settings that are newer than it count as default."""
    try:
        return _nameless(recipes.validated(record["recipe"])) == _nameless(entry.recipe)
    except (InputError, KeyError):
        return False


def _nameless(recipe: Recipe) -> Recipe:
    """A recipe without what changes no result: how its file and its directory are spelt, trust."""
    table = recipe.run.model_copy(update={"out": "", "trust_code": False, "anyway": False})
    return recipe.model_copy(update={"pipeline": "", "run": table})


def _run(bench: Bench, entry: Entry, lock: int) -> dict[str, Any]:
    """One run from probe to score. Returns its record."""
    record = reports.read_record(entry.record)
    if not (record and record["state"] == "running" and _same(record, entry) and _ended(entry)):
        _clear(bench, entry)
        record = {
            "pipeline": entry.pipeline,
            "seed": entry.seed,
            "state": "running",
            "minutes": bench.settings["minutes"],
            "threads": bench.settings["threads"],
            "device": bench.settings["device"],
            "load": round(os.getloadavg()[0], 2),
            "probe": probe(bench.device),
            "code": _code(),
            "recipe": entry.recipe.model_dump(mode="json"),
        }
        files.write_json(entry.record, record)
        started = time.perf_counter()
        code = _distil(entry, lock)
        record["process_seconds"] = round(time.perf_counter() - started, 2)
        if code not in (0, EXIT_USELESS) or not _ended(entry):
            return record | {"state": "failed", "error": _last_words(entry.log, code)}
    try:
        return record | _scored(bench, entry) | {"state": "finished"}
    except InputError as error:
        return record | {"state": "failed", "error": str(error)}


def _code() -> str:
    """A digest of the package's sources: rows of one bench should not differ in it."""
    root = Path(synthkd.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _ended(entry: Entry) -> bool:
    return (entry.path / "summary.json").is_file()


def _clear(bench: Bench, entry: Entry) -> None:
    """Makes room for a run. One with a result is kept aside; others are thrown away: since time is
    what is compared, an interrupted run cannot go on."""
    if _ended(entry):
        (bench.folder / "replaced").mkdir(exist_ok=True)
        aside = files.free_name(bench.folder / "replaced" / entry.path.name)
        entry.path.rename(aside)
        bench.display.say(f"{entry.path.name}: done again; the old run is now {aside}")
    elif entry.path.exists():
        shutil.rmtree(entry.path)
        bench.display.say(f"{entry.path.name}: it was not finished and is done again")
    entry.record.unlink(missing_ok=True)


def _distil(entry: Entry, lock: int) -> int:
    """`synthkd distill` in a process of its own, that finds the same modules. Returns its exit
    code."""
    command = [sys.executable, "-P", "-m", "synthkd", "distill", *entry.flags, "--no-report"]
    path = os.pathsep.join(str(Path(folder).resolve()) for folder in sys.path)
    with entry.log.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path}, pass_fds=(lock,),
        )  # fmt: skip
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _last_words(log: Path, code: int) -> str:
    """Why a run failed: its error line, or the last that it said."""
    lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors or (lines and code > 0):
        return (errors or lines)[-1]
    return f"ended by signal {-code}" if code < 0 else "it left no summary"


# The scores


def _scored(bench: Bench, entry: Entry) -> dict[str, Any]:
    """The student on the other sets, and its snapshots on the validation data."""
    summary = files.read_table(entry.path / "summary.json", quoted(entry.path))
    if summary.get("student_accuracy") is None:
        raise InputError("it was not scored on the validation data")
    student = load_classifier(
        StudentTable(spec=str(entry.path)), bench.recipe.teacher,
        trust_code=bench.recipe.run.trust_code,
    )[0].to(bench.device)  # fmt: skip
    others = {name: _accuracy(student, images, bench.device) for name, images in bench.also.items()}
    curve = []
    for line in Run(entry.path).snapshots():
        path = entry.path / "snapshots" / line["file"]
        try:
            student.load_state_dict(load_file(path, device=str(bench.device)))
            kept = {key: line[key] for key in ("share", "seconds", "images_seen")}
        except (SafetensorError, OSError, RuntimeError, KeyError):
            raise InputError(f"{quoted(path)} is damaged or incomplete") from None
        curve.append(kept | {"accuracy": _accuracy(student, bench.val, bench.device)})
    read = Run(entry.path).manifest.get("data", {}).get("real", {}).get("digest")
    return {"summary": summary, "others": others, "curve": curve, "real_sha256": read}


@torch.no_grad()
def _accuracy(student: Classifier, images: Images, device: torch.device) -> float:
    """Accuracy in float32."""
    assert images.labels is not None
    student.eval()
    parts = portions(images.pixels)
    logits = torch.cat([student(to_float(part.to(device))).cpu() for part in parts])
    if images.labels.dim() > 1:  # a yes or no for each class
        return measures.accuracy(paired(logits), images.labels.flatten())
    return measures.accuracy(logits, images.labels)


def probe(device: torch.device) -> dict[str, float]:
    """What the machine can do just now: GFLOP/s of a loop of one matrix product and one
    convolution, in float32 and bfloat16, half of PROBE_SECONDS each."""
    n, batch = (4096, 512) if device.type == "cuda" else (512, 32)
    work = 2.0 * n**3 + 2.0 * batch * 64 * 64 * 9 * 16 * 16
    rng = torch.Generator().manual_seed(0)
    found = {}
    for kind in (torch.float32, torch.bfloat16):
        a, images, kernel = (
            torch.randn(shape, generator=rng).to(device, kind)
            for shape in ((n, n), (batch, 64, 16, 16), (64, 64, 3, 3))
        )
        images = images.contiguous(memory_format=torch.channels_last)
        found[str(kind).removeprefix("torch.")] = round(
            _speed(_step(a, images, kernel), work, device), 1
        )
    return found


def _step(a: Tensor, images: Tensor, kernel: Tensor) -> Callable[[], object]:
    def step() -> object:
        return torch.mm(a, a), torch.nn.functional.conv2d(images, kernel, padding=1)

    return step


def _speed(step: Callable[[], object], work: float, device: torch.device) -> float:
    """GFLOP/s of a step of `work` operations; the first one does not count."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    step()
    wait()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < PROBE_SECONDS / 2:
        step()
        wait()
        steps += 1
    return steps * work / (time.perf_counter() - started) / 1e9
