"""A data set in shards: by one process, by several, by several of which some are killed."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
from short_runs import main, status

import synthkd
from synthkd.core import files
from synthkd.data.store import open_store
from synthkd.jobs import sharding
from synthkd.jobs.sharding import shard_recipe
from synthkd.proof import hashes
from synthkd.recipe import DatasetTable, Recipe

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
COUNT = 60
FLAGS = shlex.split(
    f"generate --count {COUNT} --images-seen 256 --run.threads 1 --quiet --run.precision float32 "
    "--stage.refine.synthesis-steps 2 --stage.refine.synthesis-batch 32 --stage.refine.fresh 32 "
    "--stage.draw.fresh 256 --seed 5"
)


def contents(folder: Path) -> dict[str, bytes]:
    """Everything of a data set but its manifest, which has times in it, and what tells of it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "hashes.json", "README.md")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "set"
    main([*FLAGS, "--shards", "3", "--out", str(out)])
    return out


def test_shards_become_one_data_set(whole: Path) -> None:
    store = open_store(whole, verify=True)
    assert len(store) == COUNT and store.labels.bincount().tolist() == [6] * 10
    assert not (whole / "shards").exists() and not (whole / "shards.json").exists()
    pictures = sorted(int(path.stem) for path in whole.glob("*/*.png"))
    assert pictures == list(range(COUNT))
    told = json.loads((whole / "manifest.json").read_text())
    assert len(told["made_in"]) == 3 and told["classes_not_filled"] == {}
    assert len({one["seed"] for one in told["made_in"]}) == 3
    parts = [{one.numpy().tobytes() for one in part} for part in store.pixels.split(COUNT // 3)]
    assert not parts[0] & parts[1] and not parts[1] & parts[2]  # no shard repeats another


def start(out: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "synthkd", *FLAGS, "--shards", "3", "--out", str(out)],
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_two_processes_of_which_one_is_killed_make_the_same(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    first, second = start(out), start(out)
    time.sleep(6)
    first.send_signal(signal.SIGKILL)
    first.wait()
    _, said = second.communicate(timeout=100)
    assert second.returncode == 0, said
    if not (out / "manifest.json").exists():  # the shard of the first was still its own then
        main(["generate", "--resume", str(out), "--quiet"])
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_each_shard_alone_and_then_all(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    for shard in (2, 0, 1):
        assert not (out / "manifest.json").exists()
        main([*FLAGS, "--shards", "3", "--shard", str(shard), "--out", str(out)])
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_the_library_makes_the_same_and_gives_it_again(whole: Path, tmp_path: Path) -> None:
    settings = {
        "run.threads": 1, "run.precision": "float32", "stage.refine.synthesis_steps": 2,
        "stage.refine.synthesis_batch": 32, "stage.refine.fresh": 32, "stage.draw.fresh": 256,
    }  # fmt: skip
    made, again = (
        synthkd.generate(
            count=COUNT, images=256, seed=5, shards=3, out=tmp_path / "set", settings=settings
        )
        for _ in range(2)
    )  # fmt: skip
    assert contents(made.path) == contents(whole)
    assert (made.count, made.digest, made.manifest) == (again.count, again.digest, again.manifest)
    with pytest.raises(synthkd.InputError, match="another data set"):
        synthkd.generate(
            count=COUNT, images=256, seed=5, shards=4, out=tmp_path / "set", settings=settings
        )
    with pytest.raises(synthkd.InputError, match="out="):
        synthkd.generate(count=COUNT, shards=3)


def test_who_comes_late_finds_it_finished(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    shutil.copytree(whole, out)
    before = contents(out)
    assert status(*FLAGS, "--shards", "3", "--out", str(out)) == 0
    assert contents(out) == before
    assert status(*FLAGS, "--shards", "4", "--out", str(out)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("act", ["shutil.rmtree", "hashes.write"])
def test_a_merge_that_was_killed_is_finished(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    out = tmp_path / "set"
    write = hashes.write

    def killed(place: Path, *given: Any) -> str:
        if place.parent.name == "shards":  # a shard is finished
            return write(place, *given)
        raise RuntimeError("killed")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="killed"):
        patched.setattr(f"synthkd.jobs.sharding.{act}", killed)
        main([*FLAGS, "--shards", "3", "--out", str(out)])
    assert (out / "manifest.json").exists() and (out / "shards.json").exists()
    main(["generate", "--resume", str(out), "--quiet"])
    assert contents(out) == contents(whole)
    assert hashes.check(out).findings == () and not hashes.check(out).later


def test_whoever_works_makes_the_shard_of_a_process_that_ended(tmp_path: Path) -> None:
    """Shard 0 is another process's, which ends while shard 1 is made."""
    out, recipe, order = tmp_path / "set", Recipe(dataset=DatasetTable(count=10)), []
    sharding.begin(out, recipe, 3)
    lock = out / "shards" / "00000.lock"
    lock.touch()
    with ExitStack() as other:
        other.enter_context(files.locked(lock))

        def make(_: Recipe, place: Path) -> None:
            other.close()
            place.mkdir()
            (place / "manifest.json").touch()
            order.append(place.name)

        sharding.work(out, make, make, recipe)
    assert order == ["00001", "00000", "00002"]


@pytest.mark.slow
def test_shards_are_merged_when_nobody_works_in_one_any_more(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    for shard in (0, 1):
        main([*FLAGS, "--shards", "3", "--shard", str(shard), "--out", str(out)])
    with files.locked(out / "shards" / "00001.lock"):  # its process still writes its hashes
        main([*FLAGS, "--shards", "3", "--shard", "2", "--out", str(out)])
        assert sharding.finished(out) == [0, 1, 2] and not (out / "manifest.json").exists()
    with ExitStack() as other:
        other.enter_context(files.locked(out))  # one that looks whether it can merge
        Timer(0.3, other.close).start()
        made = sharding.merge(out)
    assert made is not None and made.count == COUNT
    assert contents(out) == contents(whole)
    assert sharding.merge(out) is None  # whoever comes later


@pytest.mark.parametrize("flags", ["--shards 1", f"--shards {COUNT + 1}", "--shards 3 --shard 3",
                                   "--shard 0", "--shards 3 --save-generator x"])  # fmt: skip
def test_what_cannot_be_is_one_line(tmp_path: Path, flags: str, capsys) -> None:
    assert status(*FLAGS, *flags.split(), "--out", str(tmp_path / "set")) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path, capsys) -> None:
    out = tmp_path / "set"
    main([*FLAGS, "--shards", "3", "--shard", "0", "--out", str(out)])
    assert status(*FLAGS, "--shards", "4", "--out", str(out)) == 2
    assert status(*FLAGS[:-1], "6", "--shards", "3", "--out", str(out)) == 2


@pytest.mark.slow
def test_a_shard_that_was_changed_is_not_merged(tmp_path: Path, capsys) -> None:
    out = tmp_path / "set"
    for shard in (0, 1):
        main([*FLAGS, "--shards", "3", "--shard", str(shard), "--out", str(out)])
    victim = out / "shards" / "00000" / "shard-00000.images.npy"
    pixels = np.load(victim)
    pixels[0, 0, 0, 0] ^= 1
    np.save(victim, pixels)
    assert status(*FLAGS, "--shards", "3", "--shard", "2", "--out", str(out)) == 2
    assert "SHA-256" in capsys.readouterr().err


def test_shares_and_seeds_of_shards() -> None:
    recipe = Recipe(dataset=DatasetTable(count=10))
    parts = [shard_recipe(recipe, k, 4) for k in range(4)]
    assert [part.dataset.count for part in parts] == [3, 3, 2, 2]
    assert len({part.run.seed for part in parts}) == 4


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    with files.locked(tmp_path) as one, files.locked(tmp_path) as other:
        assert one is not None and other is None
    with files.locked(tmp_path) as again:
        assert again is not None
