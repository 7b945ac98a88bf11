"""The short help of a command: its daily flags, a line each, and where the rest stands."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from synthkd.cli.commands import CONFIG, Command

STAGE_EXAMPLE = "--stage.study.share 0.5 --stage.refine.terms.statistics 5"
_WIDTH = 80
_COLUMN = 32


def wants_short_help(tokens: Sequence[str], commands: Mapping[str, Command]) -> bool:
    """Whether a command line asks for the short help of one of the commands."""
    return bool(tokens) and tokens[0] in commands and not {"--help", "-h"}.isdisjoint(tokens)


def short_help(name: str, command: Command) -> str:
    """What `synthkd NAME --help` prints: at most 40 lines of 80 characters."""
    places = [f"{p.name.upper()}{'...' if p.several else ''}" for p in command.positionals]
    lines = [
        " ".join(["Usage: synthkd", name, *places, "[OPTIONS]"]),
        command.help,
        "",
        *(f"  {place:{_COLUMN - 2}}{p.help}"
          for place, p in zip(places, command.positionals, strict=True)),
        *(f"  {flags:{_COLUMN - 2}}{words}" for flags, words in _rows(command)),
        "",
        *textwrap.wrap(where_the_rest_stands(name, command), _WIDTH),
    ]  # fmt: skip
    return "\n".join(lines).rstrip()


def where_the_rest_stands(name: str, command: Command, *, everything: bool = False) -> str:
    """How the settings that have no daily flag are given; `everything`: for the help that shows
    them all."""
    sentences = []
    if command.tables and not everything:
        sentences.append(f"All settings: `synthkd {name} --help-all`, docs/settings.md.")
    if CONFIG in command.switches:
        sentences.append(
            "They can also stand in a TOML file, --config FILE.toml; flags go over it."
        )
    if "" in command.tables and command.pipeline:
        sentences.append(
            f"Stages are changed by their names in the pipeline: {STAGE_EXAMPLE} "
            "(docs/settings.md has the keys)."
        )
    return " ".join(sentences)


def _rows(command: Command) -> Iterator[tuple[str, str]]:
    """Flags and what they are for, settings first. A setting without words of its own shares the
    line of the one before."""
    flags: list[str] = []
    words = ""
    for setting in command.settings():
        if not setting.flag:
            continue
        if not setting.brief and flags:
            flags.append(setting.flag)
            continue
        if flags:
            yield _joined(flags), words
        value = "" if setting.boolean else f" {setting.kind}"
        flags, words = [f"{setting.flag}{value}"], setting.brief
    if flags:
        yield _joined(flags), words
    flags = []
    for switch in command.switches:
        if flags and not switch.beside:
            yield _joined(flags), words
            flags = []
        kind = "" if switch.kind is bool else " TEXT"
        flags.append(switch.flag + kind)
        words = words if switch.beside else switch.brief or switch.help
    if flags:
        yield _joined(flags), words


def _joined(flags: Sequence[str]) -> str:
    return ", ".join(flag.split(" ")[0] for flag in flags) if len(flags) > 1 else flags[0]
