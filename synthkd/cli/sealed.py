"""`--sealed`: the command is started anew where the kernel lets it open nothing else, and waited
for. See proof/sealing.py; nothing here imports torch or runs code of a teacher's."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from synthkd import recipe as recipes
from synthkd.cli.output import fail
from synthkd.core import files
from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import EXIT_USELESS
from synthkd.core.launch import started
from synthkd.core.words import run_name
from synthkd.proof import seccomp
from synthkd.proof.declared import Place, declared, needs_network
from synthkd.proof.hashes import strange
from synthkd.proof.sealing import (
    check_possible,
    check_streams,
    confine,
    prepared,
    unchanged,
    without_confirmation,
)
from synthkd.recipe import Recipe

RECIPE, MANIFEST = "recipe.toml", "manifest.json"


@dataclass(frozen=True)
class Call:
    """A command line that asks to be sealed."""

    command: str  # distill or generate
    tokens: Sequence[str]  # the whole command line, without the program
    started: float  # by time.perf_counter, which all processes share
    config: Path | None = None
    resumed: Path | None = None
    dry_run: bool = False


def of_directory(path: Path) -> Recipe:
    """The recipe of a run or data set that is to be gone on with."""
    if not files.is_plain(path / RECIPE):
        raise InputError(f"--resume {quoted(path)}: there is no {RECIPE} in it to go on with")
    files.plain_tree(path, f"--resume {quoted(path)}")
    return recipes.validated(recipes.read_toml(path / RECIPE))


def usual_out(command: str, recipe: Recipe) -> Path:
    """The directory of a command that names none."""
    if command == "generate":
        return files.free_name(Path("synthetic"))
    name = run_name(recipe.teacher.spec, recipe.student.spec, recipe.run.seed)
    return files.free_name(Path("runs") / name)


def launch(call: Call, recipe: Recipe) -> NoReturn:
    """Runs the command line sealed, and ends with its exit code. Raises InputError where it cannot
    be sealed, or where what it leaves does not tell of its seal."""
    if (count := started()) > 1:
        raise InputError(
            f"--sealed refuses every socket, and {count} processes were started, which need them: "
            "start one, or leave --sealed out"
        )
    check_possible(needs_network(recipe))
    if call.config is not None and not call.config.is_file():
        raise InputError(f"--config {quoted(call.config)}: a sealed run reads it from a plain file")
    out, made = call.resumed, False
    if out is None and not call.dry_run:
        out = Path(recipe.run.out) if recipe.run.out else usual_out(call.command, recipe)
        made = not files.exists(out)
        files.claim(out, resumable=True, bare=True)
    if call.resumed is not None and (foreign := strange(call.resumed)):
        raise InputError(
            f"--sealed --resume {quoted(call.resumed)}: {quoted(foreign[0])} is no file of a run: "
            "a sealed run may read what lies there: take it away"
        )
    check_streams()
    places = declared(recipe, student=call.command == "distill")
    if call.config is not None:
        places.append(Place(call.config, "recipe"))
    try:
        with _scratch() as (temporary, canary):
            rules, record = prepared(places, out, temporary, canary)
            record |= {"started": call.started, "out": str(out) if out else ""}
            filter_ = seccomp.program(record["machine"])
            code = _run(call.tokens, record, lambda: confine(rules, filter_))
            rules.close()
    finally:
        if made and out is not None:
            with suppress(OSError):
                out.rmdir()  # nothing was begun in it
    if out is not None and code in (0, EXIT_USELESS):
        _check_told(out, record)
    raise SystemExit(code)


@contextmanager
def _scratch() -> Iterator[tuple[Path, Path]]:
    """A private folder for temporary files, and a file outside it."""
    temporary = Path(tempfile.mkdtemp(prefix="synthkd-")).resolve()
    handle, canary = tempfile.mkstemp(prefix="synthkd-outside-")
    os.close(handle)
    try:
        yield temporary, Path(canary).resolve()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        Path(canary).unlink(missing_ok=True)


def _run(tokens: Sequence[str], record: dict[str, Any], confine_: Any) -> int:
    """Starts the sealed process, hands it its record, passes signals on, and waits: its exit
    code."""
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        for child in children:
            child.send_signal(number)

    before = {s: signal.signal(s, pass_on) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "synthkd", *tokens], stdin=subprocess.PIPE,
            env=record["environment"], preexec_fn=confine_, process_group=0,
        ) as child:  # fmt: skip
            children.append(child)
            assert child.stdin is not None
            with suppress(BrokenPipeError):
                child.stdin.write(files.json_text(record).encode())
            with suppress(BrokenPipeError):
                child.stdin.close()
            code = child.wait()
    except subprocess.SubprocessError:
        raise InputError(
            "--sealed: the kernel refuses to seal a process here: run without --sealed"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _check_told(out: Path, record: dict[str, Any]) -> None:
    """Whether the manifest tells of the seal as it was, and the files that were allowed are still
    the same. Code of a teacher's runs where the manifest is written; here it does not."""
    told = files.read_table(out / MANIFEST, f"--sealed: {quoted(out)}").get("sealed")
    last = told[-1] if isinstance(told, list) and told else None
    if not isinstance(last, dict) or without_confirmation(last) != record:
        fail(
            f"--sealed: {quoted(out / MANIFEST)} does not tell of the seal as it was: code of the "
            "run has changed it; do not use this result"
        )
    if changed := unchanged(record):
        fail(f"--sealed: {quoted(changed[0])} was changed while the run went on: run it again")
