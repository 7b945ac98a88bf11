"""A term of a sum that is minimised, of a student's or of a synthesis objective."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from synthkd.core.errors import InputError, quoted, suggest


@dataclass(frozen=True)
class Term:
    """A function of a batch's view, what it needs of whoever makes the view, and what it means.

    A term with weights of its own (an adapter, a projection head, a bank) has `module` instead of
    `fn`: called once with what is known before the run, it returns an `nn.Module` of the same
    signature, which is optimised and saved with the student, and does not ship with it.
    """

    meaning: str
    fn: Callable[[Any], Tensor] | None = None
    needs: frozenset[str] = frozenset()
    module: Callable[[Any], nn.Module] | None = None
    # terms that take its place where a need cannot be met, with their share of its weight
    instead: Mapping[str, float] = field(default_factory=dict)
    follows_difficulty: bool = False  # its weight is multiplied by the run's difficulty

    def __call__(self, view: Any) -> Tensor:
        """The term of a view, where it is a function."""
        assert self.fn is not None
        return self.fn(view)

    def __post_init__(self) -> None:
        if (self.fn is None) == (self.module is None):
            raise ValueError("a term is a function or makes a module: give fn or module")


def check_needs(where: str, term: Term, known: Iterable[str]) -> None:
    """Refuses a term with a need that is not among those that can be met: it would find nothing."""
    names = sorted(known)
    for need in sorted(term.needs.difference(names)):
        raise InputError(f"{where}: unknown need {quoted(need)}{suggest(need, names)}")
