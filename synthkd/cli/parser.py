"""The parser: a function per command whose parameters are its flags."""

import importlib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from cyclopts import App, Group, Parameter

from synthkd import __version__, recipe
from synthkd.cli import sealed
from synthkd.cli.commands import RESUME, SEALED, Command, Positional, Switch
from synthkd.cli.flags import StageFlags
from synthkd.cli.help import where_the_rest_stands
from synthkd.core import launch
from synthkd.core.errors import InputError
from synthkd.core.findings import EXIT_USELESS
from synthkd.proof import sealing
from synthkd.recipe import Setting
from synthkd.recipe.unused import given_keys

_DAILY = Group("Daily", sort_key=0)


def parser(commands: Mapping[str, Command], stages: StageFlags, tokens: Sequence[str] = ()) -> App:
    """A parser of all `commands`; each runs with the changes to `stages`. With `tokens`, the whole
    command line, a sealed one is started anew."""
    app = App(
        name="synthkd",
        help="A small student from a trained image classifier, without its training data.",
        version=__version__,
        version_flags=["--version"],
    )
    for name, command in commands.items():
        app.command(_function(name, command, stages, tokens), name=name)
    return app


def _function(
    name: str, command: Command, stages: StageFlags, tokens: Sequence[str]
) -> Callable[..., Any]:
    """What the parser calls: it runs `synthkd.commands.NAME`."""

    def function(*values: Any, **given: Any) -> None:
        started = time.perf_counter()  # before torch is imported: minutes are the user's minutes
        if not command.several and (count := launch.started()) > 1:
            raise InputError(
                f"synthkd {name} works in one process, and {count} were started (WORLD_SIZE): "
                "start it without torchrun or accelerate"
                + (", as often as you like with --shards N" if name == "generate" else "")
            )
        switches = {s.name: given.pop(s.name, s.default) for s in command.switches}
        if stages and not (command.tables and command.pipeline):
            raise InputError("stages belong to a pipeline: change them in its TOML file")
        result = (
            _run_with_recipe(name, command, values, given, switches, stages, started, tokens)
            if command.tables
            else _module(name).run(*_placed(command, values), **switches)
        )
        if isinstance(result, dict) and result.get("verdict") == "useless":
            raise SystemExit(EXIT_USELESS)

    parameters = [
        *(_positional(p) for p in command.positionals),
        *(_flag(setting) for setting in command.settings()),
        *(_switch(switch) for switch in command.switches),
    ]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    function.__doc__ = f"{command.help}\n\n{where_the_rest_stands(name, command, everything=True)}"
    function.__name__ = name
    return function


def _run_with_recipe(
    name: str,
    command: Command,
    values: Sequence[Any],
    given: Mapping[str, Any],
    switches: dict[str, Any],
    stages: StageFlags,
    started: float,
    tokens: Sequence[str],
) -> Any:
    flags: dict[str, Any] = {}
    placed = {
        p.setting: value for p, value in zip(command.positionals, values, strict=False) if p.setting
    }
    for key, value in {**{k.replace("__", "."): v for k, v in given.items()}, **placed}.items():
        if value is not None:
            *tables, leaf = key.split(".")
            place = flags
            for table in tables:
                place = place.setdefault(table, {})
            place[leaf] = value
    if command.positionals and command.positionals[-1].several:
        last = len(command.positionals) - 1
        switches[command.positionals[last].name] = tuple(values[last:])
    config = switches.pop("config", None)
    resumed = switches.pop(RESUME.name, None)
    asked = sealed.Call(
        name, tokens, started, config, resumed, bool(switches.get("dry_run"))
    ) if switches.pop(SEALED.name, False) else None  # fmt: skip
    if SEALED in command.switches:
        switches[SEALED.name] = None
        if asked and sealing.is_within():
            switches[SEALED.name] = sealing.take_up()
            started, asked = switches[SEALED.name]["started"], None
    context: dict[str, Any] = {"started": started} if "started" in command.context else {}
    if resumed is not None:
        run = flags.get("run", {})
        trust = {key: bool(run.pop(key, False)) for key in ("trust_code", "anyway")}
        if any(flags.values()) or config or stages:
            raise InputError("--resume goes on with the recipe of the run: give no other settings")
        if asked:
            sealed.launch(asked, sealed.of_directory(resumed))
        return _module(name).resume(resumed, **trust, **context, **switches)
    # a wrong setting is reported at once, not after seconds of importing torch
    of_file = recipe.read_toml(config) if config else {}
    if command.pipeline:
        checked = recipe.load_recipe(of_file, flags, stages)
        recipe.check_sources(checked)
        if asked:
            if switches.get("save_generator") is not None:
                raise InputError("--save-generator: a sealed run writes in --out alone: omit it")
            sealed.launch(asked, checked)
    else:
        checked = recipe.validated(recipe.over(of_file, flags))
    if "given" in command.context:
        context["given"] = given_keys(of_file, flags, {"stage": stages})
    return _module(name).run(checked, **context, **switches)


def _module(name: str) -> Any:
    return importlib.import_module(f"synthkd.commands.{name}")


def _placed(command: Command, values: Sequence[Any]) -> list[Any]:
    """The positional arguments of `run`."""
    if command.positionals and command.positionals[-1].several:
        fixed = len(command.positionals) - 1
        return [*values[:fixed], values[fixed:]]
    return list(values)


def _positional(place: Positional) -> inspect.Parameter:
    kind = inspect.Parameter.VAR_POSITIONAL if place.several else inspect.Parameter.POSITIONAL_ONLY
    return inspect.Parameter(
        place.name, kind, annotation=Annotated[place.kind, Parameter(help=place.help)]
    )


def _switch(switch: Switch) -> inspect.Parameter:
    parameter = Parameter(
        name=[switch.flag],
        help=switch.help,
        group=_DAILY,
        negative=(),
        allow_leading_hyphen=switch.hyphen,
    )
    return _keyword(switch.name, switch.kind, switch.default, parameter)


def _flag(setting: Setting) -> inspect.Parameter:
    """The flag of a setting; its value stays text here, the recipe checks it."""
    alone = setting.boolean and setting.flag is not None
    default = "" if setting.default in (None, "", (), {}) else f" (default {setting.default})"
    span = f" [{setting.range}]" if setting.range else ""
    dotted = [f"--{setting.key}"] if setting.table else []
    parameter = Parameter(
        name=[setting.flag, *dotted] if setting.flag else dotted,
        help=f"{setting.meaning}{span}{default}",
        group=_DAILY if setting.flag else Group(setting.table, sort_key=1),
        negative=(),
        show_default=False,
        metavar=setting.kind,
        allow_leading_hyphen=not alone,
    )
    name = setting.key.replace(".", "__")
    return _keyword(name, (bool if alone else str) | None, None, parameter)


def _keyword(name: str, kind: Any, default: Any, parameter: Parameter) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, parameter]
    )
