"""What a job can show of what it read: begun with the job, told in its manifest."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from synthkd.core.findings import Finding, as_data
from synthkd.proof.accounting import Account, account_teachers
from synthkd.proof.declared import Place, declared, living, needs_network
from synthkd.proof.levels import LEVELS, level_of
from synthkd.proof.opened import Recording, judged, mapped
from synthkd.recipe import Recipe, TeacherTable
from synthkd.specs.ensembles import ensemble_tables, is_ensemble
from synthkd.synthesis import GENERATORS
from synthkd.teachers.ensemble import EnsembleTeacher
from synthkd.teachers.frozen import FrozenTeacher

Sealed = Mapping[str, Any]


class Evidence:
    """The record of one sitting: what was opened since it was made, and the seal, if there is one.

    `sealed` is the record of `proof.sealing.take_up`. `earlier` sittings are taken over by
    `go_on`.
    """

    def __init__(
        self, recipe: Recipe, sealed: Sealed | None = None, *, student: bool = True
    ) -> None:
        named = {recipe.generator.kind, *(stage.generator for stage in recipe.stage)}
        for name, generator in GENERATORS.items():
            if name in named or recipe.generator.start:  # which says by its files whose it is
                generator.prepare()
        self.recording = Recording()
        self.recipe, self.sealed, self.student = recipe, sealed, student
        self._opened: list[Any] = []  # of earlier sittings
        self._sealed: list[Any] = []
        self.findings: list[Finding] = []

    @property
    def out(self) -> Path | None:
        """The directory that is open to a sealed run."""
        return Path(self.sealed["out"]) if self.sealed and self.sealed["out"] else None

    def chosen(self) -> None:
        """The student is chosen and saved: what is opened from now on cannot have shaped it."""
        self.recording.chosen()

    def go_on(self, before: Mapping[str, Any], sittings: int) -> None:
        """Takes over what earlier sittings told, of which there were so many; None stands for what
        was lost with a process."""

        def padded(key: str) -> list[Any]:
            found = before.get(key)
            kept = list(found) if isinstance(found, list) else []
            return (kept + [None] * sittings)[:sittings]

        self._opened, self._sealed = padded("opened"), padded("sealed")

    def begun(self) -> dict[str, Any]:
        """For the manifest of a run that begins or goes on."""
        return {"opened": list(self._opened), "sealed": [*self._sealed, self.sealed]}

    def told(self, own: Iterable[Path]) -> dict[str, Any]:
        """For a manifest, what was opened until now outside the `own` folders of the job."""
        recipe = self.recipe
        temporary = [Path(tempfile.gettempdir())] if self.sealed else []
        found = judged(
            self.recording, self._places(), own, sealed=bool(self.sealed), living=living(recipe),
            online=bool(needs_network(recipe)), loaded=mapped(), scratch=temporary,
        )  # fmt: skip
        self.findings = found.findings
        row = found.data | {"findings": as_data(found.findings)}
        return {"opened": [*self._opened, row], "sealed": [*self._sealed, self.sealed]}

    def finished(self, teacher: Any, own: Iterable[Path]) -> dict[str, Any]:
        """For the manifest of a run that is finished: what was opened, the account of the teacher's
        files where the run is sealed, and the level of proof. Ends the recording."""
        data = self.told(own)
        self.stop()
        if self.sealed:
            account = self._account(teacher)
            data["accounting"] = account.as_data()
            self.findings += account.findings
        data["sittings"] = len(data["sealed"])
        level, reasons = level_of(data)
        return data | {
            "proof_level": level, "proof": LEVELS[level], "proof_not_higher": list(reasons),
        }  # fmt: skip

    def stop(self) -> None:
        """Ends the recording."""
        self.recording.stop()

    def _places(self) -> list[Place]:
        places = declared(self.recipe, student=self.student)
        for entry in self.sealed["read"] if self.sealed else ():
            if entry["role"] == "recipe":  # the file of --config, which a recipe does not keep
                places.append(Place(Path(entry["path"]), "recipe"))
        return places

    def _account(self, teacher: Any) -> Account:
        """The account of the files of a teacher, or of several."""
        table = self.recipe.teacher
        members: list[tuple[Any, TeacherTable]] = [(teacher, table)]
        if isinstance(teacher, EnsembleTeacher) and is_ensemble(table.spec):
            tables = ensemble_tables(table, trust_code=self.recipe.run.trust_code)[1]
            members = list(zip(teacher.teachers, tables, strict=True))
        networks = [(t, m.classifier if isinstance(m, FrozenTeacher) else None) for m, t in members]
        return account_teachers(networks, self._places())
