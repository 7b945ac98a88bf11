"""Several teachers from one file: the SPEC `ensemble:FILE.toml`.

rule = "average"          # or entropy, agreement, selected

[[teacher]]               # the settings of [teacher], of each
spec = "resnet20"
weights = "a.safetensors"
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from synthkd.core.errors import InputError, quoted, suggest
from synthkd.recipe import TeacherTable
from synthkd.recipe.toml import plain_toml
from synthkd.recipe.trust import refuse_code
from synthkd.teachers.ensemble import EnsembleTeacher
from synthkd.teachers.protocol import Teacher

PREFIX = "ensemble:"
MOST = 16  # teachers


def is_ensemble(spec: str) -> bool:
    """Whether a SPEC names a file of several teachers.

    >>> is_ensemble("ensemble:both.toml"), is_ensemble("resnet20")
    (True, False)
    """
    return spec.startswith(PREFIX)


def ensemble_tables(
    table: TeacherTable, *, trust_code: bool = False
) -> tuple[str, tuple[TeacherTable, ...]]:
    """The rule, and the teachers, that the file of a SPEC names; what is wrong with it is one
    InputError that names the file, and so is code that it names without anybody's trust."""
    path = Path(table.spec.removeprefix(PREFIX))
    where = quoted(path)
    given = sorted(table.model_fields_set - {"spec"})
    given = [key for key in given if getattr(table, key) != TeacherTable.model_fields[key].default]
    if given:
        raise InputError(f"teacher.{given[0]}: teachers of {where} bring their own: write it there")
    data: dict[str, Any] = plain_toml(path)
    if unknown := sorted(set(data) - {"rule", "teacher"}):
        hint = suggest(unknown[0], ["rule", "teacher"])
        raise InputError(f"{where}: unknown key {quoted(unknown[0])}{hint}")
    listed, rule = data.get("teacher"), data.get("rule", "average")
    if not isinstance(listed, list) or not 1 < len(listed) <= MOST:
        raise InputError(f"{where}: several teachers are 2 to {MOST} tables [[teacher]]")
    if not isinstance(rule, str):
        raise InputError(f"{where}: rule: a text")
    tables = []
    for number, each in enumerate(listed, start=1):
        try:
            tables.append(TeacherTable.model_validate(each))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{where}: teacher {number}: {key}: {first['msg']}") from None
        if is_ensemble(tables[-1].spec):
            raise InputError(f"{where}: teacher {number}: a file of teachers names no other file")
        if tables[-1].only or tables[-1].none_of_these:
            raise InputError(f"{where}: teacher {number}: only: several teachers teach all classes")
        refuse_code({"teacher": {"spec": tables[-1].spec}}, trust_code=trust_code)
    return rule, tuple(tables)


def load_ensemble(
    table: TeacherTable, load: Callable[[TeacherTable], Teacher], *, trust_code: bool = False
) -> EnsembleTeacher:
    """The teachers of a file as one, each by `load`."""
    rule, tables = ensemble_tables(table, trust_code=trust_code)
    try:
        return EnsembleTeacher([load(each) for each in tables], rule)
    except InputError as error:
        raise InputError(f"{quoted(table.spec.removeprefix(PREFIX))}: {error}") from None
