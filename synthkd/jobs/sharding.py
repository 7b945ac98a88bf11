"""A synthetic data set in shards: made by any number of processes that share nothing but a folder.

    OUT/shards.json     how many there are, and of which recipe
    OUT/recipe.toml     the recipe of the whole
    OUT/shards/00003/   shard 3: a data set of its own while it is made, see data.store
    OUT/shards/00003.lock

Shard k of n has its share of the images and a seed of its own, from the run's and k: what is in it
depends on nothing else, so that no process waits for another. A process takes the first shard that
is not finished and that nobody works on; where one was killed, another goes on from its checkpoint.
Whoever finishes the last shard merges: the images of all shards, in their order, become one data
set in OUT, as if one process had written it.
"""

import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from synthkd import recipe as recipes
from synthkd.cards.data import data_card
from synthkd.checks.student import OF_COUNTS, check_dataset, verdict
from synthkd.core import files
from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import as_data
from synthkd.core.promise import PROMISES
from synthkd.core.seeds import derived
from synthkd.data.store import MANIFEST, Store, link_shards, open_store
from synthkd.engine.reporter import Reporter
from synthkd.jobs.generation import RECIPE, SHARDS, DataSet, Generation
from synthkd.proof import hashes
from synthkd.proof.levels import LEVELS
from synthkd.recipe import Recipe
from synthkd.teachers.protocol import Teacher

MOST_SHARDS = 10_000
WAIT = 1.0  # seconds between two looks at the shards of others
FOLDER = "shards"
Job = Callable[[Recipe, Path], DataSet]  # makes a shard's data set in a directory, or goes on


def shard_recipe(recipe: Recipe, shard: int, shards: int) -> Recipe:
    """The recipe of shard `shard` of `shards`: its share of the images, and its seed. Class folders
    are written once, at the end."""
    count = recipe.dataset.count
    share = count // shards + (shard < count % shards)
    dataset = recipe.dataset.model_copy(update={"count": share, "folders": False})
    run = recipe.run.model_copy(
        update={"seed": derived(recipe.run.seed, "shard", shard) % 2**31, "out": ""}
    )
    return recipe.model_copy(update={"dataset": dataset, "run": run})


def begin(out: Path, recipe: Recipe, shards: int) -> None:
    """Makes the folder, or finds that another process has made the same one, or even finished it.
    Raises InputError."""
    if not 2 <= shards <= min(MOST_SHARDS, recipe.dataset.count):
        raise InputError(
            f"--shards {shards}: from 2 to {MOST_SHARDS:,}, and no more than images (--count "
            f"{recipe.dataset.count:,})"
        )
    text = recipes.to_toml(_without_place(recipe))
    out.mkdir(parents=True, exist_ok=True)
    for _ in range(100):  # another process may be making the folder now
        if is_sharded(out) or is_merged(out):
            break
        with files.locked(out) as held:
            if held is not None and not is_sharded(out) and not is_merged(out):
                files.claim(out)
                (out / FOLDER).mkdir()
                files.write_atomic(out / RECIPE, text)
                files.write_json(out / SHARDS, {"shards": shards})
        time.sleep(0.1)
    if _begun_in(out) != shards or (out / RECIPE).read_text("utf-8") != text:
        raise InputError(
            f"--out {quoted(out)}: another data set is being made there; choose another folder, or "
            f"synthkd generate --resume {out}"
        )


def _without_place(recipe: Recipe) -> Recipe:
    """A recipe without the folder, which processes may name differently."""
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"out": ""})})


def is_sharded(out: Path) -> bool:
    """Whether a data set in shards was begun here."""
    return files.is_plain(out / SHARDS)


def _begun_in(out: Path) -> int:
    """How many shards a data set has, or had; 0 of one that was made otherwise."""
    if is_sharded(out):
        return read_shards(out)
    return len(files.read_table(out / MANIFEST, quoted(out)).get("made_in") or ())


def is_merged(out: Path) -> bool:
    """Whether a data set in shards is finished."""
    return files.is_plain(out / MANIFEST) and files.is_plain(out / RECIPE) and not is_sharded(out)


def read_shards(out: Path) -> int:
    """How many shards there are to be. Raises InputError."""
    shards = files.read_table(out / SHARDS, quoted(out)).get("shards")
    if type(shards) is not int or not 2 <= shards <= MOST_SHARDS:
        raise InputError(f"{quoted(out)}: {SHARDS} is damaged")
    return shards


def work(out: Path, make: Job, go_on: Job, recipe: Recipe, only: int | None = None) -> None:
    """Makes shards until none is left that nobody works on: with `only`, this one alone. After each
    it looks from the first one on, since a process may have been killed meanwhile."""
    if is_merged(out):
        return
    shards = read_shards(out)
    if only is not None and not 0 <= only < shards:
        raise InputError(f"--shard {only}: there are shards 0 to {shards - 1}")

    def made(shard: int) -> bool:
        """Makes a shard, or goes on with it; false where there was nothing to do."""
        place = _place(out, shard)
        if _is_made(out, shard):
            return False
        with ExitStack() as stack:
            try:
                _lock(place).touch()
                held = stack.enter_context(files.locked(_lock(place)))
            except FileNotFoundError:  # another process has merged them
                return False
            if _is_made(out, shard):
                return False
            if held is None:
                if only is not None:
                    raise InputError(f"--shard {only}: another process is making it")
                return False
            own = shard_recipe(recipe, shard, shards)
            begun = (place / RECIPE).is_file()
            (go_on if begun else make)(own, place)
        return True

    while any(made(shard) for shard in (range(shards) if only is None else (only,))):
        continue


def _place(out: Path, shard: int) -> Path:
    """Where a shard is made."""
    return out / FOLDER / f"{shard:05d}"


def _lock(place: Path) -> Path:
    """What the process that makes a shard holds."""
    return place.with_suffix(".lock")


def _is_made(out: Path, shard: int) -> bool:
    """Whether a shard is finished. Its folder goes only when the manifest of the whole is there."""
    return (_place(out, shard) / MANIFEST).exists() or (out / MANIFEST).exists()


def make(
    out: Path, recipe: Recipe, report: Reporter, only: int | None = None, *,
    given: Collection[str] = (),
    teacher: Teacher | nn.Module | Callable[..., Any] | None = None,
) -> DataSet | None:  # fmt: skip
    """Makes shards as `work` does, and merges them if they are all there: None where other
    processes still make some, or will. `given` are the keys that the user set."""

    def job(own: Recipe, place: Path) -> Generation:
        report.say(f"shard {int(place.name)}: {own.dataset.count:,} images")
        run = own.run.model_copy(update={"out": str(place)})
        own = own.model_copy(update={"run": run})
        return Generation(
            own, teacher=teacher, whole=out, report=report, given=given, by_force=True
        )

    work(
        out, lambda own, place: job(own, place).start(),
        lambda own, place: job(own, place).resume(place), recipe, only,
    )  # fmt: skip
    return merge(out)


def make_all(
    out: Path, recipe: Recipe, report: Reporter, *, given: Collection[str] = (),
    teacher: Teacher | nn.Module | Callable[..., Any] | None = None,
) -> DataSet:  # fmt: skip
    """Makes shards beside other processes until the data set is whole, whoever merges it: what one
    that is killed leaves, another takes up."""
    while not is_merged(out):
        made = make(out, recipe, report, given=given, teacher=teacher)
        if made is not None:
            return made
        time.sleep(WAIT)
    return read_merged(out)


def read_merged(out: Path) -> DataSet:
    """A data set that is finished. Raises InputError."""
    store = open_store(out)
    count = recipes.validated(recipes.read_toml(out / RECIPE)).dataset.count
    findings = check_dataset(store.manifest["per_class"], count, store.names)
    digest = files.sha256_of(out / hashes.NAME)
    return DataSet(out, dict(store.manifest), tuple(findings), len(store), digest)


def finished(out: Path) -> list[int]:
    """The shards that are finished."""
    return [k for k in range(read_shards(out)) if (_place(out, k) / MANIFEST).is_file()]


def merge(out: Path) -> DataSet | None:
    """Joins the shards in one data set, once all are there and nobody works in one any more, for
    whoever does will merge them. None before that, and where another process has merged them. Every
    file is compared with its SHA-256 first. What was left by a process that was killed while it
    merged is finished."""
    while True:
        with files.locked(out) as held:
            if held is not None:
                return _merge(out) if is_sharded(out) else None
        time.sleep(0.1)  # another process looks whether it can merge, or merges


def _merge(out: Path) -> DataSet | None:
    """The same, for the process that holds the lock of the whole."""
    shards = read_shards(out)
    if not (out / MANIFEST).exists():
        if len(finished(out)) < shards or not _are_left(out, shards):
            return None
        parts = [open_store(_place(out, k), verify=True) for k in range(shards)]
        recipe = recipes.validated(recipes.read_toml(out / RECIPE))
        manifest = _merged([part.manifest for part in parts], recipe, parts[0])
        link_shards(out, parts, manifest, folders=recipe.dataset.folders, card=data_card)
    if (out / FOLDER).exists():
        shutil.rmtree(out / FOLDER)
    hashes.write(out)
    (out / SHARDS).unlink()  # from here on it is finished
    return read_merged(out)


def _are_left(out: Path, shards: int) -> bool:
    """Whether nobody holds the lock of a shard: a finished one still gets its hashes."""
    for shard in range(shards):
        with files.locked(_lock(_place(out, shard))) as held:
            if held is None:
                return False
    return True


_SUMS = ("drawn", "wall_seconds", "seconds_writing", "real_images_read")
_OF_ALL = (
    "teacher",
    "teacher_sha256",
    "derived_from",
    "generator",
    "versions",
    "platform",
    "machine",
)
_OWN = (
    "seed",
    "opened",
    "sealed",
    "accounting",
    "command",
    "cpus",
    "threads",
    "peak_memory_mb",
    "training",
    "agreed_share",
)


def _merged(told: Sequence[Mapping[str, Any]], recipe: Recipe, first: Store) -> dict[str, Any]:
    """The manifest of the whole. Raises InputError where the shards are not of one teacher."""
    if len({one.get("teacher_sha256") for one in told}) > 1:
        raise InputError("the shards were made for different teachers: they cannot be merged")
    proof = min(int(one.get("proof_level", 0)) for one in told)
    level = max(int(one.get("promise_level", 3)) for one in told)
    drawn = sum(int(one.get("drawn", 0)) for one in told)
    agreed = sum(float(one.get("agreed_share", 0)) * int(one.get("drawn", 0)) for one in told)
    counts = np.sum([one["per_class"] for one in told], axis=0).tolist()
    asked = recipe.dataset.count
    classes = len(counts)
    wanted = [asked // classes + (k < asked % classes) for k in range(classes)]
    missing = {str(k): w - n for k, (w, n) in enumerate(zip(wanted, counts, strict=True)) if w > n}
    findings = check_dataset(counts, asked, first.names)
    return {
        **{key: told[0][key] for key in _OF_ALL if key in told[0]},
        **{key: sum(one.get(key, 0) for one in told) for key in _SUMS},
        "seed": recipe.run.seed, "promise_level": level, "promise": PROMISES[level],
        "proof_level": proof, "proof": LEVELS[proof],
        "recipe": recipes.to_toml(recipe), "plan": told[0].get("plan", []),
        "agreed_share": round(agreed / max(1, drawn), 6), "classes_not_filled": missing,
        "training": {"from": recipe.generator.start or None, "images": 0, "seconds": 0.0},
        "made_in": [{key: one.get(key) for key in _OWN} for one in told],
        "verdict": verdict(findings), "findings": [*as_data(findings), *_beside_counts(told)],
    }  # fmt: skip


def _beside_counts(told: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What was found in shards beside their counts, each once."""
    every = [found for one in told for found in one.get("findings", ())]
    kept = {(one["code"], one["seen"]): one for one in every if one["code"] not in OF_COUNTS}
    return list(kept.values())
