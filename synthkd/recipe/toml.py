"""Recipes as TOML: read, laid over each other, checked, written."""

import json
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from synthkd.core import files, resources
from synthkd.core.errors import InputError, quoted, suggest
from synthkd.recipe.earlier import of_today
from synthkd.recipe.tables import Recipe, Stage, parted
from synthkd.recipe.trust import NAMES_CODE, refuse_code

TOML_BYTES = 100_000  # our longest pipeline has about 5,000
LENGTHS = ("minutes", "images")  # of a run: alternatives
PROMPT = "diffusion.prompt"  # the one text that may be empty
TOML_DOTS = 200  # tomllib's time grows with the square of the dots in a key


def plain_toml(path: Path) -> dict[str, Any]:
    """A TOML file of any kind as plain data; every way it can be unreadable is one line that names
    the file."""
    where = quoted(path)
    try:
        text = files.read_bytes(path, TOML_BYTES, pipes=True).decode("utf-8-sig")  # a mark is of
        # editors on Windows
    except FileNotFoundError:
        raise InputError(f"{where}: there is no such file") from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{where}: cannot be read as text: {quoted(error)}") from None
    if any(line.count(".") > TOML_DOTS for line in text.split("\n")):
        raise InputError(f"{where}: a line with more than {TOML_DOTS} dots is refused")
    try:
        data = tomllib.loads(text)
        json.dumps(data, default=str)
    except RecursionError:
        raise InputError(f"{where}: not a recipe: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{where}: not valid TOML: {quoted(error)}") from None
    return data


def read_toml(path: Path) -> dict[str, Any]:
    """A recipe as plain data; every way it can be wrong is one line that names the file."""
    data, where = plain_toml(path), quoted(path)
    try:
        data = of_today(data)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    _check_keys(json.dumps(data, default=str), where)
    _check_texts(data, where)
    if data.get("run", {}).get("trust_code"):
        raise InputError(
            f"{where}: run.trust_code: only --trust-code on the command line can say so"
        )
    return data


def _check_texts(data: Mapping[str, Any], where: str) -> None:
    """Refuses empty texts, as an unset variable leaves them, and those that no file is called by.
    A whole recipe, as we write it, tells also of what was not given."""
    whole = {"teacher", "student", "data", "run", "memory", "training"} <= data.keys()
    for table, values in (("", data), *data.items()):
        for key, value in values.items() if isinstance(values, Mapping) else ():
            name = f"{table}.{key}".lstrip(".")
            if isinstance(value, str) and "\0" in value:
                raise InputError(f"{where}: {name}: a text with the character NUL")
            if isinstance(value, str) and not value.strip() and not whole and name != PROMPT:
                raise InputError(f"{where}: {name} is empty: omit it, or give it a value")


def _check_keys(plain: str, where: str) -> None:
    """Refuses unknown keys with a suggestion, and wrong types, before anything is merged."""
    try:
        Recipe.model_validate_json(plain, strict=True)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            if problem["type"] == "value_error" and len(problem["loc"]) < 2:
                continue  # relations between settings are judged after merging
            raise InputError(f"{where}: {explain(problem)}") from None


def explain(problem: Any) -> str:
    """One line for one pydantic error."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "json_invalid":  # was TOML already, so the reason is its depth
        return "not a recipe: nested too deeply"
    if problem["type"] == "extra_forbidden":
        model: Any = Recipe
        for part in problem["loc"][:-1]:
            if isinstance(part, int):
                continue
            annotation = model.model_fields[part].annotation
            model = Stage if part == "stage" else annotation
        known = getattr(model, "model_fields", {})
        return f"unknown key {quoted(key)}{suggest(str(problem['loc'][-1]), known)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    message = message[0].lower() + message[1:]
    return f"{key}: {message}; got {quoted(problem['input'])}"


def over(
    low: Mapping[str, Any], flags: Mapping[str, Any], *, trust_code: bool = False
) -> dict[str, Any]:
    """Flags laid over what files say, unless those choose code without anybody's trust."""
    of_files: dict[str, dict[str, Any]] = {}
    for table, key in NAMES_CODE:
        if key not in flags.get(table, {}):
            of_files.setdefault(table, {})[key] = low.get(table, {}).get(key, "")
    trusted = trust_code or bool(flags.get("run", {}).get("trust_code"))
    refuse_code(of_files, trust_code=trusted)
    return merge(low, flags)


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`high` laid over `low`, table by table. Stages are replaced as a list.

    The two budgets are alternatives: setting one of them unsets the other of a lower layer.

    >>> merge({"budget": {"images": 5}, "run": {"seed": 1}}, {"budget": {"minutes": 2}})
    {'budget': {'minutes': 2}, 'run': {'seed': 1}}
    """
    result = dict(low)
    for key, value in high.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            below = dict(result[key])
            if key == "budget" and not value.keys().isdisjoint(LENGTHS):
                below = {name: kept for name, kept in below.items() if name not in LENGTHS}
            result[key] = merge(below, value)
        else:
            result[key] = value
    return result


def load_recipe(
    config: Path | Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
    stage_flags: Mapping[str, Mapping[str, Any]] | None = None,
) -> Recipe:
    """The recipe of a run: the pipeline, the config file laid over it, the flags over both.

    `config` is a file, or what `read_toml` read of it: a pipe is read but once.
    `flags` is nested like the TOML; values may be text, as a command line gives them.
    `stage_flags` maps a stage's name to the settings to change in it.
    """
    high = read_toml(config) if isinstance(config, Path) else dict(config or {})
    flags = dict(flags or {})
    name = str(flags.get("pipeline", high.get("pipeline", Recipe.model_fields["pipeline"].default)))
    low = read_toml(pipeline_path(name))
    low.setdefault("training", {}).setdefault("terms", {"soft_targets": 1.0})
    data = over(merge(low, high), _beside(flags))
    data["pipeline"] = name
    return _with_stages(data, stage_flags or {})


def _beside(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags of which a term that is added stands beside those that are there."""
    training = flags.get("training", {})
    if not isinstance(terms := training.get("terms"), str):
        return dict(flags)
    return {**flags, "training": {**training, "terms": parted(terms)}}


def _with_stages(data: dict[str, Any], changed: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """A recipe of plain data, some stages of which are changed."""
    stages = [dict(s) for s in data.get("stage", ())]
    known = [s.get("name") for s in stages]
    for stage, changes in changed.items():
        if stage not in known:
            raise InputError(
                f"--stage.{stage}: no such stage{suggest(stage, [str(k) for k in known])}"
            )
        target = stages[known.index(stage)]
        stages[known.index(stage)] = merge(target, changes)
    data["stage"] = stages
    return validated(data)


def from_settings(settings: Mapping[str, Any], base: Recipe | None = None) -> Recipe:
    """A recipe from settings by dotted name, laid over `base` or over a pipeline.

    "stage.NAME.KEY" changes the stage of this name.

    >>> from_settings({"pipeline": "gan", "training.batch": 32}).training.batch
    32
    """
    flags: dict[str, Any] = {}
    stages: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        first, *rest = key.split(".")
        if first == "stage" and len(rest) < 2:
            raise InputError(f"{key}: a stage's settings are named stage.NAME.KEY")
        if first == "stage":
            place: dict[str, Any] = stages.setdefault(rest[0], {})
            tables, leaf = rest[1:-1], rest[-1]
        else:
            place, tables, leaf = flags, [first, *rest][:-1], [first, *rest][-1]
        for table in tables:
            place = place.setdefault(table, {})
        place[leaf] = value
    if base is None:
        return load_recipe(None, flags, stages)
    if "pipeline" in flags:
        raise InputError("a recipe has its pipeline already: give a pipeline or a recipe")
    # what nobody set is left to whoever decides it, as with a pipeline
    low = base.model_dump(exclude_unset=True)
    low.setdefault("training", {}).setdefault("terms", dict(base.training.terms))
    data = over(low, _beside(flags), trust_code=base.run.trust_code)
    return _with_stages(data, stages)


def validated(data: Mapping[str, Any]) -> Recipe:
    """Plain data as a checked recipe; the first problem as one line."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise InputError(explain(error.errors(include_url=False)[0])) from None


def pipeline_path(name: str) -> Path:
    """Where the pipeline `name` lies: a shipped one, or a file when it has a slash or a suffix."""
    if "/" in name or "\\" in name or name.endswith(".toml"):
        return Path(name)
    folder = resources.shipped("pipelines")
    shipped = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    if name not in shipped:
        raise InputError(f"--pipeline: no pipeline {quoted(name)}{suggest(name, shipped)}")
    return shipped[name]


def to_toml(recipe: Recipe) -> str:
    """The whole recipe as TOML text; reading it back gives an equal recipe."""

    def name(key: object) -> str:
        text = str(key)
        return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else literal(text)

    def literal(value: Any) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float) and math.isfinite(value):
            return repr(value)
        if isinstance(value, Mapping):
            return (
                "{ " + ", ".join(f"{name(k)} = {literal(v)}" for k, v in value.items()) + " }"
                if value
                else "{}"
            )
        if isinstance(value, list | tuple):
            return "[" + ", ".join(literal(v) for v in value) + "]"
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

    data = recipe.model_dump(exclude_none=True)
    del data["run"]["trust_code"]  # a file must not be able to ask for trust
    lines = [f"pipeline = {literal(data.pop('pipeline'))}"]
    stages = data.pop("stage")
    for table, values in data.items():
        if values:
            lines += ["", f"[{table}]"]
            lines += [f"{key} = {literal(value)}" for key, value in values.items()]
    for stage in stages:
        lines += ["", "[[stage]]"]
        lines += [f"{key} = {literal(value)}" for key, value in stage.items()]
    return "\n".join(lines) + "\n"
