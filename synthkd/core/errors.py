"""The one exception that a user is meant to see, and the one formatter for untrusted strings."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Something given to us is wrong: one line that says what, where and how to mend it.

    The command line prints it after `error:` and exits with 2; a library caller can catch it.
    """


class DiskError(InputError):
    """A file that cannot be written: the line names it. What was written before is whole."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that there was no memory left: torch has an exception of its own for a GPU
    alone.

    >>> is_out_of_memory(RuntimeError("[enforce fail] can't allocate memory: 9 bytes"))
    True
    >>> is_out_of_memory(RuntimeError("shapes differ"))
    False
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def plain(text: str) -> str:
    """A text without control characters: those of escape codes and line breaks are shown.

    >>> plain("a\\x1b[31m")
    'a\\\\x1b[31m'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def quoted(text: object, limit: int = 120) -> str:
    """A foreign string made safe for a terminal: escapes and newlines shown, cut at `limit`
    characters.

    >>> quoted("a\\x1b[31m\\nb")
    "'a\\\\x1b[31m\\\\nb'"
    >>> quoted("x" * 200, limit=5)
    "'xxxxx…'"
    """
    whole = str(text)
    return repr(whole if len(whole) <= limit else whole[:limit] + "…")


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'share'?` for a misspelt word, else what is known.

    >>> suggest("shair", ["share", "name"])
    "; did you mean 'share'?"
    >>> suggest("zzz", ["share", "name"])
    '; known: name, share'
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"
