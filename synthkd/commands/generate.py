"""`synthkd generate`: a synthetic data set that a teacher agrees with."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from synthkd import recipe as recipes
from synthkd.commands.display import Display
from synthkd.jobs.evidence import Sealed
from synthkd.jobs.generation import DataSet, Generation, begun, used
from synthkd.recipe import Recipe
from synthkd.synthesis.diffusion.diffusers_io import offline


def run(
    recipe: Recipe, *, save_generator: Path | None = None, dry_run: bool = False,
    quiet: bool = False, as_json: bool = False, given: Collection[str] = (),
    sealed: Sealed | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Makes images for a teacher and writes them as a data set. Returns its manifest, and with
    `as_json` prints it and nothing else. `given` are the keys that the user set, `sealed` the
    record of the seal of this process."""
    display = Display(quiet=quiet or as_json)
    recipe = used(recipe, given)
    with offline(dry_run):
        job = Generation(
            recipe, keep=save_generator, report=display, given=given, by_force=True, sealed=sealed
        )
    if not display.quiet:
        job.expect()
    if dry_run:
        print(recipes.to_toml(job.recipe), end="")
        return {}
    return _shown(job.start(), display, as_json=as_json)


def resume(
    path: Path, *, trust_code: bool = False, anyway: bool = False,
    save_generator: Path | None = None, dry_run: bool = False, quiet: bool = False,
    as_json: bool = False, sealed: Sealed | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Goes on with a data set that was interrupted, in training or in writing."""
    display = Display(quiet=quiet or as_json)
    recipe = recipes.trusted(begun(path), trust_code=trust_code, anyway=anyway)
    with offline(dry_run):
        job = Generation(recipe, keep=save_generator, report=display, by_force=True, sealed=sealed)
    if dry_run:
        print(recipes.to_toml(job.recipe), end="")
        return {}
    return _shown(job.resume(path), display, as_json=as_json)


def _shown(made: DataSet, display: Display, *, as_json: bool) -> dict[str, Any]:
    display.findings(made.findings)
    _show(made, display)
    if as_json:
        print(json.dumps(made.manifest, indent=2, ensure_ascii=False))
    return made.manifest


def _show(made: DataSet, display: Display) -> None:
    manifest, count, out = made.manifest, made.count, made.path
    level, missed = manifest["promise_level"], manifest["classes_not_filled"]
    rows = [
        ("images", f"{count:,} in {out}"),
        ("agreed", f"{manifest['agreed_share']:.1%} of {manifest['drawn']:,} drawn: "
                   "the teacher agrees"),
        ("seconds", f"{manifest['wall_seconds']:.0f}: "
                    f"training {manifest['training']['seconds']:.0f}, "
                    f"drawing and writing {manifest['seconds_writing']:.0f}"),
        ("real images read", f"{manifest['real_images_read']:,} "
                             f"(level {level}, {manifest['promise']})"),
        ("proof of it", f"level {manifest['proof_level']}, {manifest['proof']}"),
        ("contact sheet", str(out / "contact_sheet.png")),
        ("digest of the set", made.digest),
    ]  # fmt: skip
    if missed:
        rows.insert(
            1, ("too few of", ", ".join(f"class {k}: {n} missing" for k, n in missed.items()))
        )
    display.table("result", ("what", "value"), rows)
