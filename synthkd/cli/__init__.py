"""The command line: commands, flags, help and exit codes. The flags are the settings of `Recipe`;
torch is imported only when a command runs."""

import errno
import sys
from collections.abc import Sequence

from cyclopts import CycloptsError, UnusedCliTokensError
from pydantic import ValidationError

from synthkd import recipe
from synthkd.cli.commands import COMMANDS, Command, Positional, Switch
from synthkd.cli.flags import check_empty, take_stage_flags
from synthkd.cli.help import short_help, wants_short_help
from synthkd.cli.output import fail, prepare_output, say, silence
from synthkd.cli.parser import parser
from synthkd.core.errors import InputError, is_out_of_memory, quoted

__all__ = ["COMMANDS", "Command", "Positional", "Switch", "main"]


def main(tokens: Sequence[str] | None = None) -> None:
    """Runs one command line and exits: 0 done, 1 a run of a bench failed, or what was verified
    differs, 2 bad input, 3 done with a result that is of no use, 130 and 143 interrupted."""
    given = list(sys.argv[1:] if tokens is None else tokens)
    prepare_output()
    try:
        if wants_short_help(given, COMMANDS):
            print(short_help(given[0], COMMANDS[given[0]]))
        else:
            _run(given)
        sys.stdout.flush()  # what cannot be written is said now, not by Python after the end
    except CycloptsError as error:
        fail(_left_over(given, error) or " ".join(str(error).split()))
    except InputError as error:
        fail(str(error))
    except ValidationError as error:
        fail(recipe.explain(error.errors(include_url=False)[0]))
    except KeyboardInterrupt:  # before a run has begun, or while it is being scored
        say("interrupted")
        raise SystemExit(130) from None
    except (MemoryError, OverflowError) as error:
        fail(f"too large for this machine: {quoted(error)}")
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fail(f"too large for this machine: {quoted(' '.join(str(error).split()), 120)}")
    except BrokenPipeError:
        # whoever read our output has gone: nothing to say, and nobody to say it to
        silence(sys.stdout)
        raise SystemExit(1) from None
    except OSError as error:
        said = error.strerror or quoted(error)
        if error.filename:
            fail(f"{quoted(error.filename)}: {said}")
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EBADF):
            fail(said)
        silence(sys.stdout)  # files have names: this was what is printed
        fail(f"the standard output cannot be written: {said}")


def _left_over(given: Sequence[str], error: CycloptsError) -> str:
    """What is said of words that belong to no flag; empty of another error."""
    words = list(error.unused_tokens or ()) if isinstance(error, UnusedCliTokensError) else []
    if not words:
        return ""
    flag = given[given.index(words[0]) - 1] if words[0] in given[1:] else ""
    switch = flag.startswith("--") and "=" not in flag
    why = f"{flag} takes no value" if switch else "give values after their flag"
    command = f"synthkd {given[0]}" if given[0] in COMMANDS else "synthkd"
    several = "belong" if len(words) > 1 else "belongs"
    shown = ", ".join(map(quoted, words[:5])) + (" and more" if len(words) > 5 else "")
    return f"{shown} {several} to no flag: {why} ({command} --help)"


def _run(tokens: Sequence[str]) -> None:
    check_empty(tokens)
    rest, stages = take_stage_flags(tokens)
    rest = ["--help" if token == "--help-all" else token for token in rest]
    app = parser(COMMANDS, stages, tokens)
    function, bound, _ = app.parse_args(rest, exit_on_error=False, print_error=False)
    function(*bound.args, **bound.kwargs)
