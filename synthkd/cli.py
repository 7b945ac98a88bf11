"""Words and flags. The flags are the fields of `Recipe`; torch is imported only when a word
runs."""

import codecs
import errno
import importlib
import inspect
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter
from pydantic import ValidationError

from synthkd import __version__, recipe
from synthkd.core.errors import InputError, plain, quoted
from synthkd.core.findings import EXIT_USELESS
from synthkd.recipe.unused import given_keys

WORDS: dict[str, str] = {
    "generate": "Make a synthetic data set that a teacher agrees with.",
    "distill": "Train a small student from a teacher, without its training data.",
    "evaluate": "Score a student against its teacher, or a set of images.",
    "bench": "Compare pipelines: the same teacher, student and time for each.",
    "inspect": "Show what a network is, wants and costs, and what would be done with it.",
    "export": "Turn the student of a run into files for production, each compared with it.",
    "predict": "Name the classes of images by the student of a run.",
}

# which tables of the recipe each word uses, and so which flags it has
_TABLES: dict[str, tuple[str, ...]] = {
    "generate": (
        "", "teacher", "dataset", "data", "budget", "run", "generator", "procedural", "pixels",
        "diffusion", "discriminator", "memory", "difficulty", "augment",
    ),
    "distill": (
        "", "teacher", "student", "data", "budget", "run", "generator", "procedural", "pixels",
        "diffusion", "discriminator", "memory", "difficulty", "augment", "training",
    ),
    "evaluate": ("teacher", "student", "data", "run", "evaluation"),
    "bench": ("teacher", "student", "data", "budget", "run", "augment"),
    "inspect": ("", "teacher", "run"),
    "export": (),
    "predict": (),
}  # fmt: skip
_NOT_FOR: dict[str, tuple[str, ...]] = {
    "generate": (
        "data.mix_ratio", "data.val", "data.synthetic", "data.class_order", "run.snapshots",
        "diffusion.accept",
    ),
    "evaluate": (
        "data.mix_ratio", "data.real", "data.synthetic", "student.start", "student.max_params",
        "student.max_flops", "student.max_latency_ms", "run.precision",
        "run.seed", "run.stages", "run.checkpoint_seconds", "run.snapshots",
    ),
    "bench": (
        "data.mix_ratio", "data.synthetic", "budget.images", "run.seed", "run.stages",
        "run.snapshots",
    ),
    "inspect": (
        "teacher.spec", "run.out", "run.seed", "run.stages", "run.checkpoint_seconds",
        "run.snapshots",
    ),
}  # fmt: skip
# what stands without a flag: name, type, meaning; a last one with dots takes all that follow
_POSITIONAL: dict[str, tuple[tuple[str, Any, str], ...]] = {
    "inspect": (("spec", str, "SPEC of the network"),),
    "export": (("path", Path, "run directory"),),
    "predict": (
        ("path", Path, "run directory"),
        ("images...", Path, "image files, or folders of them"),
    ),
}
_EPILOGUE = (
    "Every setting can also stand in a TOML file: --config FILE.toml; flags go over it. "
    "Stages are changed by name, as the pipeline calls them: --stage.study.share 0.5, "
    "--stage.refine.terms.statistics 5; docs/settings.md has their keys (stage.NAME.…)."
)


def _switches(word: str) -> list[inspect.Parameter]:
    """Flags that belong to one sitting, not to the recipe."""
    daily = Group("Daily", sort_key=0)
    common: list[tuple[str, Any, Any, list[str], str]] = [
        ("config", Path | None, None, ["--config"], "TOML file of settings"),
        ("dry_run", bool, False, ["--dry-run"], "print the resolved plan and stop"),
        ("quiet", bool, False, ["--quiet"], "print nothing but errors"),
    ]
    as_json = ("as_json", bool, False, ["--json"], "print JSON instead of tables")
    trust = ("trust_code", bool, False, ["--trust-code"], "allow a student that is code")
    special: dict[str, list[tuple[str, Any, Any, list[str], str]]] = {
        "generate": [
            ("resume", Path | None, None, ["--resume"], "data set to go on with"),
            ("save_generator", Path | None, None, ["--save-generator"], "directory to leave a "
             "trained diffusion model in, as diffusers reads it"),
            as_json,
        ],
        "distill": [
            ("resume", Path | None, None, ["--resume"], "run directory to go on with"), as_json,
        ],
        "evaluate": [as_json],
        "inspect": [as_json],
        "export": [
            ("formats", str, "onnx", ["--format"], "safetensors, onnx, pt2, executorch; several "
             "with commas"),
            ("int8", bool, False, ["--int8"], "also an ONNX file of 8-bit integers"),
            ("uint8_input", bool, False, ["--uint8-input"], "graphs that take bytes 0..255 "
             "(uint8, NCHW) instead of numbers in 0..1"),
            ("softmax", bool, False, ["--softmax"], "graphs that answer in probabilities instead "
             "of logits"),
            ("val_data", str, "", ["--val-data"], "labelled images to score the 8-bit file on"),
            ("out", Path | None, None, ["--out"], "directory to write (default: RUN/export)"),
            trust, as_json,
            ("quiet", bool, False, ["--quiet"], "print nothing but errors"),
        ],
        "predict": [
            ("top", int, 3, ["--top"], "classes to name per image"),
            ("data_range", str | None, None, ["--data.range"], "BLACK,WHITE: values that are black "
             "and white in images of more than 8 bits"),
            ("data_background", str | None, None, ["--data.background"], "auto, white or black: "
             "ground under transparent images"),
            ("data_resize", str | None, None, ["--data.resize"], "stretch, crop or pad: images of "
             "another proportion"),
            ("csv_file", str, "", ["--csv"], "file for a line an image: image, class, name, "
             "probability, those of the next class, …; - is the screen"),
            trust, as_json,
        ],
        "bench": [
            ("pipelines", str, "all", ["--pipelines"], "names or .toml files, with commas; all: "
             "every shipped one (those of real images only with --real-data)"),
            ("seeds", str, "0", ["--seeds"], "seeds, with commas"),
            ("also", list[str] | None, None, ["--also"], "NAME=PATH: labelled images to score the "
             "students on too (can be repeated)"),
            ("report", bool, False, ["--report"], "run nothing: only write tables and plot anew "
             "from what lies in --out"),
            as_json,
        ],
    }  # fmt: skip
    if word == "evaluate":
        common = [common[0], common[2]]
    if word in _POSITIONAL:
        common = [common[0]] if word == "inspect" else []
    return [
        _parameter(
            name,
            kind,
            default,
            Parameter(
                name=names,
                help=text,
                group=daily,
                negative=(),
                allow_leading_hyphen=name == "csv_file",
            ),
        )
        for name, kind, default, names, text in [*special.get(word, []), *common]
    ]


def _parameter(name: str, kind: Any, default: Any, parameter: Parameter) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, parameter]
    )


def _flags(word: str) -> list[inspect.Parameter]:
    """One flag per setting; values stay text here, the recipe checks them."""
    flags = []
    for setting in recipe.settings():
        if setting.table not in _TABLES[word] or setting.key in _NOT_FOR.get(word, ()):
            continue
        short = setting.boolean and setting.flag is not None
        default = "" if setting.default in (None, "", ()) else f" (default {setting.default})"
        span = f" [{setting.range}]" if setting.range else ""
        dotted = [f"--{setting.key}"] if setting.table else []
        flags.append(
            _parameter(
                setting.key.replace(".", "__"),
                (bool if short else str) | None,
                None,
                Parameter(
                    name=[setting.flag, *dotted] if setting.flag else dotted,
                    help=f"{setting.meaning}{span}{default}",
                    group=Group("Daily", sort_key=0)
                    if setting.flag
                    else Group(setting.table, sort_key=1),
                    negative=(),
                    show_default=False,
                    metavar=setting.kind,
                    allow_leading_hyphen=not short,
                ),
            )
        )
    return flags


def _places(word: str) -> list[inspect.Parameter]:
    """What stands without a flag."""
    return [
        inspect.Parameter(
            name.removesuffix("..."),
            inspect.Parameter.VAR_POSITIONAL
            if name.endswith("...")
            else inspect.Parameter.POSITIONAL_ONLY,
            annotation=Annotated[kind, Parameter(help=meaning)],
        )
        for name, kind, meaning in _POSITIONAL.get(word, ())
    ]


def _command(word: str) -> Callable[..., Any]:
    """The function behind a word: nested settings that were given, then
    `synthkd.commands.WORD.run`."""
    switches, flags = _switches(word), _flags(word)
    placed = [name for name, _, _ in _POSITIONAL.get(word, ())]

    def command(*values: Any, **given: Any) -> None:
        began = time.perf_counter()  # before torch is imported: minutes are the user's minutes
        chosen = {s.name: given.get(s.name, s.default) for s in switches}
        if word in ("export", "predict"):
            if _stage_flags:
                raise InputError("stages belong to a pipeline: this word has none")
            one, *more = values
            rest = (more,) if placed[-1].endswith("...") else ()
            importlib.import_module(f"synthkd.commands.{word}").run(one, *rest, **chosen)
            return
        nested: dict[str, Any] = {}
        for flag in flags:
            value = given.get(flag.name)
            if value is not None:
                *tables, leaf = flag.name.split("__")
                place = nested
                for table in tables:
                    place = place.setdefault(table, {})
                place[leaf] = value
        if word == "inspect":
            nested.setdefault("teacher", {})["spec"] = values[0]
        config = chosen.pop("config")
        resume = chosen.pop("resume", None)
        trusted, anyway = (
            bool(nested.get("run", {}).get(name)) for name in ("trust_code", "anyway")
        )
        if resume is not None:
            for name in ("trust_code", "anyway"):
                nested.get("run", {}).pop(name, None)
            if any(nested.values()) or config or _stage_flags:
                raise InputError(
                    "--resume goes on with the recipe of the run: give no other settings"
                )
        # what is wrong with a setting is said at once, not after seconds of importing torch
        if word == "bench":  # no pipeline below: what was given is laid over each of them
            if _stage_flags:
                raise InputError("stages belong to a pipeline: change them in its TOML file")
            low = recipe.read_toml(config) if config else {}
            checked: recipe.Recipe | None = recipe.validated(recipe.over(low, nested))
        else:
            checked = None if resume is not None else recipe.build(config, nested, _stage_flags)
            if word in ("distill", "generate") and checked is not None:
                chosen["given"] = given_keys(recipe.read_toml(config) if config else {}, nested)
        if word == "distill":
            chosen["started"] = began
        module = importlib.import_module(f"synthkd.commands.{word}")
        if checked is None:
            result = module.resume(resume, trust_code=trusted, anyway=anyway, **chosen)
        else:
            result = module.run(checked, **chosen)
        if isinstance(result, dict) and result.get("verdict") == "useless":
            raise SystemExit(EXIT_USELESS)

    parameters = [*_places(word), *flags, *switches]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = f"{WORDS[word]}\n\n{_EPILOGUE}"
    command.__name__ = word
    return command


_stage_flags: dict[str, dict[str, Any]] = {}  # --stage.NAME.KEY of this call


def _take_stage_flags(tokens: Sequence[str]) -> list[str]:
    """Takes `--stage.NAME.KEY VALUE` out of the tokens, because stage names are the user's."""
    _stage_flags.clear()
    short = {f"--{s.key}": s.flag for s in recipe.settings() if s.flag and s.table}
    rest: list[str] = []
    waiting = iter(tokens)
    for token in waiting:
        name, equals, value = token.partition("=")
        if "." in name and name.startswith("--"):
            name = "--" + name[2:].replace("-", "_") if not name.startswith("--stage.") else name
            # the parser takes `--teacher.spec` for a part of `--teacher`
            name = short.get(name, name)
            token = name + equals + value
        if not name.startswith("--stage."):
            rest.append(token)
            continue
        _, stage, *keys = name.split(".")
        if not stage or not keys or len(keys) > 2:
            raise InputError(f"{quoted(name)}: stages are changed by --stage.NAME.KEY VALUE")
        if not equals:
            value = next(waiting, "")
        place = _stage_flags.setdefault(stage, {})
        for key in keys[:-1]:
            place = place.setdefault(key.replace("-", "_"), {})
            if not isinstance(place, dict):
                raise InputError(
                    f"{quoted(name)}: --stage.{stage}.{key} was given as a whole already"
                )
        place[keys[-1].replace("-", "_")] = value
    return rest


def _check_empty(tokens: Sequence[str]) -> None:
    """Refuses empty words: they are what an unset variable of a shell leaves, and would count as
    not given."""
    before = ""
    for token in tokens:
        flag, equals, value = token.partition("=") if token.startswith("--") else ("", "", token)
        if not equals and flag:
            before = flag
            continue
        name = flag or before
        if not value.strip() and name != f"--{recipe.PROMPT}":
            what = plain(name) if name else f"{plain(tokens[0]) or 'synthkd'}: an argument"
            raise InputError(f"{what} is empty (is a shell variable unset?)")
        before = ""


def _app() -> App:
    app = App(
        name="synthkd",
        help="A small student from a trained image classifier, without its training data.",
        version=__version__,
        version_flags=["--version"],
    )
    for word in WORDS:
        app.command(_command(word), name=word)
    return app


def main(tokens: Sequence[str] | None = None) -> None:
    """Runs one command line and exits: 0 done, 2 bad input, 3 done with a result that is of no use,
    130 and 143 interrupted."""
    given = list(sys.argv[1:] if tokens is None else tokens)
    _prepare_output()
    try:
        app = _app()
        _check_empty(given)
        rest = _take_stage_flags(given)
        function, bound, _ = app.parse_args(rest, exit_on_error=False, print_error=False)
        function(*bound.args, **bound.kwargs)
        sys.stdout.flush()  # what cannot be written is said now, not by Python after the end
    except CycloptsError as error:
        _fail(" ".join(str(error).split()))
    except InputError as error:
        _fail(str(error))
    except ValidationError as error:
        _fail(recipe.explain(error.errors(include_url=False)[0]))
    except KeyboardInterrupt:  # before a run has begun, or while it is being scored
        _say("interrupted")
        raise SystemExit(130) from None
    except (MemoryError, OverflowError) as error:
        _fail(f"too large for this machine: {quoted(error)}")
    except RuntimeError as error:  # of torch, which has no MemoryError
        if not any(words in str(error) for words in ("out of memory", "can't allocate memory")):
            raise
        _fail(f"too large for this machine: {quoted(' '.join(str(error).split()), 120)}")
    except BrokenPipeError:
        # whoever read our output has gone: nothing to say, and nobody to say it to
        _silence(sys.stdout)
        raise SystemExit(1) from None
    except OSError as error:
        said = error.strerror or quoted(error)
        if error.filename:
            _fail(f"{quoted(error.filename)}: {said}")
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EBADF):
            _fail(said)
        _silence(sys.stdout)  # files have names: this was what is printed
        _fail(f"the standard output cannot be written: {said}")


def _prepare_output() -> None:
    """Makes the standard output and errors fit for whatever is printed: where they are closed it
    goes nowhere, where their encoding lacks a character something like it is shown."""
    # a file that is opened while 0, 1 or 2 is free would get what is printed by others
    while (handle := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(handle)
    codecs.register_error("synthkd", _shown)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="synthkd")


_ALIKE = str.maketrans({
    "…": "...", "‖": "||", "±": "+-", "→": "->", "×": "x", "–": "-", "—": "-", "█": "#", "░": ".",
    "•": "*", "’": "'", "≤": "<=", "≥": ">=", "²": "^2", "·": "*",
})  # fmt: skip


def _shown(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for characters that a terminal does not have: ASCII that looks alike, else the
    escape of JSON (and of Python)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_ALIKE)
    return "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text), error.end


def _silence(stream: Any) -> None:
    """Lets nothing more be written to a stream that cannot take it."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say(text: str) -> None:
    """A line on the standard error, if that can still be written."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _silence(sys.stderr)


def _fail(text: str) -> NoReturn:
    _say(f"error: {plain(text)}")
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        raise SystemExit(2)
    _silence(sys.stdout)
    raise SystemExit(2)
