"""Run directories: what is refused, what survives a crash, what is thrown away."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from synthkd.core.errors import InputError
from synthkd.core.files import claim, free_name
from synthkd.core.states import save_state
from synthkd.engine.loop import Round
from synthkd.engine.progress import Progress
from synthkd.recipe import load_recipe
from synthkd.runs.checkpoints import FORMAT
from synthkd.runs.directory import Run, environment


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", load_recipe(flags={"run": {"out": "x"}}), {"seed": 7})


def state(round_: int) -> dict[str, Any]:
    return {"progress": {"round": round_}, "weights": torch.full((3,), float(round_))}


def done(number: int) -> Round:
    return Round(Progress(round=number), "joint", 0.5, {"loss": 1.0 / number}, None, None)


def checkpoints(run: Run) -> list[str]:
    return sorted(path.name for path in (run.path / "checkpoints").iterdir())


def recorded(run: Run) -> list[int]:
    return [json.loads(line)["round"] for line in (run.path / "metrics.jsonl").open()]


def test_a_new_run_has_its_recipe_and_manifest_and_is_running(run: Run) -> None:
    assert load_recipe(run.path / "recipe.toml") == load_recipe(flags={"run": {"out": "x"}})
    assert run.manifest == {"seed": 7, "state": "running", "format": FORMAT}


def test_a_directory_with_anything_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        Run.create(tmp_path, load_recipe(), {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_empty_directory_is_taken_and_a_file_is_not(tmp_path: Path) -> None:
    claim(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="this is a file, not a directory"):
        claim(tmp_path / "file")
    with pytest.raises(InputError, match="Not a directory"):
        claim(tmp_path / "file" / "below")


def test_free_names_are_numbered_from_two(tmp_path: Path) -> None:
    base = tmp_path / "demo.v1"
    names = []
    for _ in range(3):
        path = free_name(base)
        names.append(path.name)
        path.mkdir()
    assert names == ["demo.v1", "demo.v1-2", "demo.v1-3"]


def test_the_newest_two_checkpoints_are_kept(run: Run) -> None:
    for round_ in (1, 5, 9, 12):
        run.checkpoint(state(round_), round_)
    assert checkpoints(run) == ["000000009.safetensors", "000000012.safetensors"]
    newest = run.newest()
    assert newest is not None
    assert newest["progress"]["round"] == 12
    assert newest["weights"].tolist() == [12.0] * 3


def test_a_damaged_newest_checkpoint_is_skipped(run: Run) -> None:
    for round_ in (4, 8):
        run.checkpoint(state(round_), round_)
    newest = run.path / "checkpoints" / "000000008.safetensors"
    whole = newest.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    cut = whole[:-1], whole[: len(whole) // 2], whole[:4], b""
    for damaged in (*cut, b"\0" * len(whole), flipped):
        newest.write_bytes(damaged)
        found = run.newest()
        assert found is not None and found["progress"]["round"] == 4


@pytest.mark.parametrize("content", [[], 3, {"format": FORMAT}, {"format": "new"}])
def test_a_checkpoint_that_is_something_else_is_skipped(run: Run, content: Any) -> None:
    run.checkpoint(state(4), 4)
    save_state(content, run.path / "checkpoints" / "000000008.safetensors", "checkpoint")
    found = run.newest()
    assert found is not None and found["progress"]["round"] == 4


@pytest.mark.parametrize(
    ("content", "told"), [(state(8), "of format 1,"), ({"format": FORMAT + 1}, f"{FORMAT + 1},")]
)
def test_a_checkpoint_of_another_format_is_named(run: Run, content: Any, told: str) -> None:
    run.checkpoint(state(4), 4)
    save_state(content, run.path / "checkpoints" / "000000008.safetensors", "checkpoint")
    with pytest.raises(InputError, match=rf"000000008.*{told} and synthkd .* reads format"):
        run.newest()


def test_a_torn_last_line_of_the_snapshots_is_dropped(run: Run) -> None:
    for number in (1, 2):
        run.snapshot(number, {"weight": torch.zeros(1)}, done(number), 1.0)
    whole = run.snapshots()
    assert [line["file"] for line in whole] == ["00001.safetensors", "00002.safetensors"]
    with (run.path / "snapshots.jsonl").open("a") as file:
        file.write('{"file": "00003.safe')
    assert run.snapshots() == whole
    run.newest()  # as the run goes on
    run.snapshot(3, {"weight": torch.zeros(1)}, done(3), 1.0)
    assert [line["file"][:5] for line in run.snapshots()] == ["00001", "00002", "00003"]


def test_damage_before_the_last_line_of_the_snapshots_is_told(run: Run) -> None:
    (run.path / "snapshots.jsonl").write_text('{"file": "00001.safe\n{"file": "x", "share": 1}\n')
    with pytest.raises(InputError, match="is damaged"):
        run.snapshots()


@pytest.mark.parametrize("versions", [{"synthkd": "0.1.0"}, {}, None, 3])
def test_a_run_of_a_version_with_other_checkpoints_is_named(run: Run, versions: Any) -> None:
    (run.path / "manifest.json").write_text(json.dumps({"versions": versions}))
    (run.path / "recipe.toml").write_text("[unknown]\nkey = 1\n")
    with pytest.raises(InputError, match=r"was made by .*finish it with that"):
        Run.resume(run.path)


def test_a_half_written_checkpoint_is_not_taken_for_one(run: Run) -> None:
    run.checkpoint(state(4), 4)
    (run.path / "checkpoints" / ".000000009.safetensors.4242.tmp").write_bytes(b"half")
    found = run.newest()
    assert found is not None and found["progress"]["round"] == 4


def test_without_a_readable_checkpoint_the_run_starts_over(run: Run) -> None:
    run.record(done(1))
    assert run.newest() is None
    assert recorded(run) == []


def test_a_new_checkpoint_outlives_damaged_ones_of_later_rounds(run: Run) -> None:
    for round_ in (90, 99):
        (run.path / "checkpoints" / f"{round_:09d}.safetensors").write_bytes(b"damaged")
    assert run.newest() is None
    run.checkpoint(state(5), 5)
    assert checkpoints(run) == ["000000005.safetensors"]
    run.checkpoint(state(6), 6)
    assert checkpoints(run) == ["000000005.safetensors", "000000006.safetensors"]


def test_metrics_after_the_checkpoint_are_taken_back(run: Run) -> None:
    for number in range(1, 6):
        run.record(done(number))
        if number == 3:
            run.checkpoint(state(3), 3)
    run.newest()
    assert recorded(run) == [1, 2, 3]


@pytest.mark.parametrize(
    "torn", [b'{"round": 3, "sta', b"\0\0\0\0", b"\xff\xfe\n", b"3\n", b"{}\n"]
)
def test_a_torn_last_line_of_the_metrics_is_dropped(run: Run, torn: bytes) -> None:
    for number in (1, 2):
        run.record(done(number))
    run.checkpoint(state(9), 9)
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    run.newest()
    run.record(done(3))
    assert recorded(run) == [1, 2, 3]


def test_only_an_unfinished_run_is_resumed(run: Run, tmp_path: Path) -> None:
    _, recipe = Run.resume(run.path)
    assert recipe == load_recipe(flags={"run": {"out": "x"}})
    run.finish({"student_accuracy": 0.5}, {"seed": 7}, {})
    assert run.manifest["state"] == "finished"
    with pytest.raises(InputError, match="finished"):
        Run.resume(run.path)
    with pytest.raises(InputError, match="not a run directory"):
        Run.resume(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_a_damaged_manifest_is_named(run: Run, content: bytes) -> None:
    (run.path / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json.* is missing or damaged"):
        _ = run.manifest


def test_a_summary_writes_what_is_not_a_number_as_null(run: Run) -> None:
    run.finish({"kl": float("nan"), "ece": float("inf"), "accuracy": 0.5}, {}, {})
    text = (run.path / "summary.json").read_text()
    assert json.loads(text) == {"kl": None, "ece": None, "accuracy": 0.5}
    assert "NaN" not in text


def test_the_environment_names_versions_and_threads() -> None:
    found = environment(torch.device("cpu"))
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert found["threads"] == torch.get_num_threads()
    assert found["command"] == sys.argv
