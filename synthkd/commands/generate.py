"""`synthkd generate`: a synthetic data set that a teacher agrees with."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from synthkd import recipe as recipes
from synthkd.commands.display import Display
from synthkd.core.errors import InputError
from synthkd.jobs import sharding
from synthkd.jobs.evidence import Sealed
from synthkd.jobs.generation import DataSet, Generation, begun, used
from synthkd.recipe import Recipe
from synthkd.synthesis.diffusion.diffusers_io import offline


def run(
    recipe: Recipe, *, save_generator: Path | None = None, shards: int = 0,
    shard: int | None = None, dry_run: bool = False, quiet: bool = False, as_json: bool = False,
    given: Collection[str] = (), sealed: Sealed | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Makes images for a teacher and writes them as a data set. Returns its manifest, and with
    `as_json` prints it and nothing else. `given` are the keys that the user set, `sealed` the
    record of the seal of this process. In `shards` it is made together with other processes, see
    jobs.sharding; with `shard`, this one alone is made."""
    display = Display(quiet=quiet or as_json)
    recipe = used(recipe, given)
    if (shards or shard is not None) and not dry_run:
        if save_generator is not None or not shards or not recipe.run.out:
            raise InputError(
                "--shards N wants the folder that all processes share, --out DIR, and no "
                "--save-generator; --shard K is one of them"
            )
        if sealed is not None:
            raise InputError("--shards has no seal: seal each process by other means")
        sharding.begin(Path(recipe.run.out), recipe, shards)
        return _sharded(Path(recipe.run.out), recipe, display, shard, given=given, as_json=as_json)
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
    save_generator: Path | None = None, shards: int = 0, shard: int | None = None,
    dry_run: bool = False, quiet: bool = False, as_json: bool = False,
    sealed: Sealed | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Goes on with a data set that was interrupted, in training or in writing."""
    display = Display(quiet=quiet or as_json)
    recipe = recipes.trusted(begun(path), trust_code=trust_code, anyway=anyway)
    if sharding.is_sharded(path) and not dry_run:
        return _sharded(path, recipe, display, shard, as_json=as_json)
    with offline(dry_run):
        job = Generation(recipe, keep=save_generator, report=display, by_force=True, sealed=sealed)
    if dry_run:
        print(recipes.to_toml(job.recipe), end="")
        return {}
    return _shown(job.resume(path), display, as_json=as_json)


def _sharded(
    out: Path,
    recipe: Recipe,
    display: Display,
    only: int | None,
    *,
    given: Collection[str] = (),
    as_json: bool,
) -> dict[str, Any]:
    """Makes shards until there is none to make, and merges them if they are all there."""
    made = sharding.make(out, recipe, display, only, given=given)
    if made is not None:
        return _shown(made, display, as_json=as_json)
    if sharding.is_merged(out):
        return _shown(sharding.read_merged(out), display, as_json=as_json)
    display.say(
        f"{len(sharding.finished(out))} of {sharding.read_shards(out)} shards are finished; "
        f"whoever finishes the last one merges them (or: synthkd generate --resume {out})"
    )
    return {}


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
