"""Tokens of a command line before they are parsed: names of settings, flags of stages, empty
values."""

from collections.abc import Sequence
from typing import Any

from synthkd import recipe
from synthkd.core.errors import InputError, plain, quoted
from synthkd.recipe.earlier import REMOVED, RENAMED

StageFlags = dict[str, dict[str, Any]]  # changes by the name of the stage


def take_stage_flags(tokens: Sequence[str]) -> tuple[list[str], StageFlags]:
    """The tokens without `--stage.NAME.KEY VALUE`, and what those say: the names of stages are the
    user's, so no parser can know them. Dotted names of daily settings become their short flags.

    >>> take_stage_flags(["distill", "--stage.study.share", "0.5", "--run.seed=3"])
    (['distill', '--seed=3'], {'study': {'share': '0.5'}})
    """
    short = {f"--{s.key}": s.flag for s in recipe.settings() if s.flag and s.table}
    stages: StageFlags = {}
    rest: list[str] = []
    waiting = iter(tokens)
    for token in waiting:
        name, equals, value = token.partition("=")
        if "." in name and name.startswith("--"):
            name = "--" + name[2:].replace("-", "_") if not name.startswith("--stage.") else name
            _check_known(name)
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
        place = stages.setdefault(stage, {})
        for key in keys[:-1]:
            place = place.setdefault(key.replace("-", "_"), {})
            if not isinstance(place, dict):
                raise InputError(
                    f"{quoted(name)}: --stage.{stage}.{key} was given as a whole already"
                )
        place[keys[-1].replace("-", "_")] = value
    return rest, stages


def _check_known(name: str) -> None:
    """Refuses the flag of a setting that has another name now, or is gone."""
    if name[2:] in RENAMED:
        raise InputError(f"{name} is now called --{RENAMED[name[2:]]}")
    if name[2:] in REMOVED:
        raise InputError(f"{name}: this setting is gone, and every run has {REMOVED[name[2:]]}")


def check_empty(tokens: Sequence[str]) -> None:
    """Refuses empty arguments: an unset variable of a shell leaves them, and they would count as
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
