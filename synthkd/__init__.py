"""synthkd: a small student from a trained teacher, without the teacher's training data.

The library is `distill`, `generate`, `evaluate`, `estimate`, `inspect`, `report`, `load_student`,
`build` and `Recipe`; errors of input are `InputError`. Importing this is cheap: torch is imported
on first use.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from synthkd.api import (
        UselessResult,
        build,
        distill,
        estimate,
        evaluate,
        generate,
        inspect,
        load_student,
        report,
    )  # fmt: skip
    from synthkd.core.errors import InputError
    from synthkd.jobs.distillation import Result
    from synthkd.jobs.generation import DataSet
    from synthkd.recipe import Recipe

__all__ = [
    "DataSet", "InputError", "Recipe", "Result", "UselessResult", "__version__", "build", "distill",
    "estimate", "evaluate", "generate", "inspect", "load_student", "report",
]  # fmt: skip
_PLACES = {
    "DataSet": "synthkd.jobs.generation",
    "InputError": "synthkd.core.errors",
    "Recipe": "synthkd.recipe",
    "Result": "synthkd.jobs.distillation",
}


def __getattr__(name: str) -> Any:
    """What the library offers, imported when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'synthkd' has no attribute {name!r}")
    import importlib

    found = getattr(importlib.import_module(_PLACES.get(name, "synthkd.api")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
