"""Checkpoints with their rows in files of their own: only what is new is written, nothing is lost,
and a damaged file is noticed."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synthkd.core.errors import InputError
from synthkd.core.states import Rows, load_state, save_state
from synthkd.replay import Memory
from synthkd.runs.checkpoints import Checkpoints

SHAPE = (1, 4, 4)


def added(memory: Memory, votes: list[int]) -> Memory:
    """Images that nothing else has, in which the teacher sees `votes`."""
    rng = torch.Generator().manual_seed(memory.total_added)
    images = torch.randint(256, (len(votes), *SHAPE), dtype=torch.uint8, generator=rng)
    logits = torch.randn(len(votes), 4, generator=rng)
    logits[range(len(votes)), votes] = 9.0
    memory.add(images, torch.arange(len(votes)), logits, f"origin {len(votes) % 3}")
    return memory


def state(memory: Memory, round_: int = 0) -> dict[str, Any]:
    return {"memory": memory.state_dict(), "other": [Memory(9, SHAPE, 4).state_dict()], "n": round_}


def assert_kept(found: dict[str, Any], memory: Memory) -> None:
    """What was read back makes the same memory."""
    again = Memory(1, SHAPE, 4)
    again.load_state_dict(found["memory"])
    a, b = again.everything(), memory.everything()
    for name in ("images", "labels", "logits", "votes"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert a.origins == b.origins
    assert torch.equal(again.insertion_index[: len(a)], memory.insertion_index[: len(b)])


def files_of_rows(folder: Path) -> dict[str, Rows]:
    return {path.name: load_state(path, "rows") for path in sorted(folder.glob("rows-*"))}


STEPS = st.lists(
    st.tuples(st.lists(st.integers(0, 3), max_size=12), st.booleans()), min_size=1, max_size=12
)


@pytest.mark.slow
@given(STEPS, st.integers(1, 20))
def test_every_checkpoint_can_be_read_back_by_whoever_comes(steps, capacity):
    """Now and then another process goes on."""
    memory = Memory(capacity, SHAPE, 4)
    with TemporaryDirectory() as name:
        checkpoints = Checkpoints(Path(name))
        for round_, (votes, another) in enumerate(steps):
            added(memory, votes)
            checkpoints.save(state(memory, round_), round_)
            reader = Checkpoints(Path(name))
            found = reader.newest()
            assert found is not None and found[0] == found[1]["n"] == round_
            assert_kept(found[1], memory)
            if another:
                checkpoints = reader
        one = Checkpoints(Path(name))
        (Path(name) / f"{round_:09d}.safetensors").unlink()
        assert (one.newest() or (-1, {}))[0] == round_ - 1  # the one before is whole too


def test_only_new_images_are_written(tmp_path):
    memory, checkpoints = Memory(2000, SHAPE, 4), Checkpoints(tmp_path)
    checkpoints.save(state(added(memory, [0, 1, 2, 3] * 250)), 1)
    before = (tmp_path / "rows-000000001-0.safetensors").stat()
    checkpoints.save(state(added(memory, [0, 1, 2])), 2)
    after = (tmp_path / "rows-000000001-0.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert {name: len(rows.numbers) for name, rows in files_of_rows(tmp_path).items()} == {
        "rows-000000001-0.safetensors": 1000, "rows-000000002-0.safetensors": 3,
    }  # fmt: skip
    checkpoints.save(state(memory), 3)  # nothing new
    assert len(files_of_rows(tmp_path)) == 2


@pytest.mark.slow
def test_files_stay_few_and_hold_at_most_twice_what_is_remembered(tmp_path):
    """A memory of 256 that is exchanged ten times over, a dozen images at a time."""
    memory, checkpoints = Memory(256, SHAPE, 4), Checkpoints(tmp_path)
    most = total = 0
    for round_ in range(220):
        before = {path.name for path in tmp_path.glob("rows-*")}
        checkpoints.save(state(added(memory, [round_ % 4, 1, 2, 3] * 3)), round_)
        described: list[dict[str, Any]] = []
        load_state(tmp_path / f"{round_:09d}.safetensors", "checkpoint", together=described.append)
        sizes = [
            len(load_state(tmp_path / name, "rows").numbers) for name, _ in described[0]["files"]
        ]
        assert sum(sizes) <= 2 * len(memory)
        most = max(most, len(sizes))
        present = files_of_rows(tmp_path)
        assert sum(len(rows.numbers) for rows in present.values()) <= 4 * 256  # two checkpoints'
        total += sum(len(rows.numbers) for name, rows in present.items() if name not in before)
    assert most <= 2 + math.log2(256)
    assert total < 6 * memory.total_added  # and each image was written a few times at most
    assert sorted(path.name for path in tmp_path.glob("0*")) == [
        "000000218.safetensors", "000000219.safetensors",
    ]  # fmt: skip


def two(folder: Path) -> tuple[Memory, Path]:
    """Two checkpoints; the file of rows that only the second needs."""
    memory, checkpoints = Memory(100, SHAPE, 4), Checkpoints(folder)
    checkpoints.save(state(added(memory, [0, 1, 2, 3] * 8)), 1)
    first = Memory(100, SHAPE, 4)
    first.load_state_dict(memory.state_dict())
    checkpoints.save(state(added(memory, [2, 3])), 2)
    return first, folder / "rows-000000002-0.safetensors"


@pytest.mark.parametrize("damage", ["missing", "torn", "flipped", "empty", "another", "link"])
def test_a_damaged_file_of_rows_is_noticed_and_the_checkpoint_before_is_used(tmp_path, damage):
    first, path = two(tmp_path)
    whole = path.read_bytes()
    path.unlink()
    if damage == "torn":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "another":  # whole, but not the one that was written
        save_state(added(Memory(2, SHAPE, 4), [2, 3]).state_dict()["rows"], path, "rows")
    elif damage == "link":
        path.symlink_to(tmp_path / "nowhere")
    checkpoints = Checkpoints(tmp_path)
    found = checkpoints.newest()
    assert found is not None and found[0] == 1
    assert_kept(found[1], first)
    path.unlink(missing_ok=True)
    checkpoints.save(state(added(first, [1])), 3)
    assert_kept((Checkpoints(tmp_path).newest() or (0, {}))[1], first)


def test_where_all_rows_are_gone_no_checkpoint_is_left(tmp_path):
    two(tmp_path)
    for path in tmp_path.glob("rows-*"):
        path.unlink()
    assert Checkpoints(tmp_path).newest() is None


@pytest.mark.parametrize("name", ["../rows-000000001-0.safetensors", "/etc/passwd", "x", 3])
def test_rows_are_read_from_the_same_folder_and_under_our_names_alone(tmp_path, name):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    rows = added(Memory(2, SHAPE, 4), [2, 3]).state_dict()["rows"]
    checksum = save_state(rows, tmp_path / "rows-000000001-0.safetensors", "rows")

    def apart(place: str, rows: Rows) -> dict[str, Any]:
        empty = {key: column[:0] for key, column in rows.columns.items()}
        files = [[name, checksum]]
        return {"place": place, "numbers": rows.numbers, "files": files, "empty": empty}

    whole = {"format": 2, "round": 1, "state": {"rows": rows}}
    save_state(whole, folder / "000000001.safetensors", "checkpoint", apart=apart)
    assert Checkpoints(folder).newest() is None


def test_what_a_crash_left_goes_with_the_next_checkpoint(tmp_path):
    memory, _ = two(tmp_path)
    for name in ("rows-000000009-0.safetensors", "rows-000000009-1.safetensors"):
        (tmp_path / name).write_bytes(b"of a checkpoint that was never written")
    (tmp_path / "rows-of-mine.txt").write_text("precious")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() is not None
    checkpoints.save(state(added(memory, [1])), 3)
    assert not list(tmp_path.glob("rows-000000009*"))
    checkpoints.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["rows-of-mine.txt"]


def test_a_state_keeps_its_rows_in_one_file_where_nobody_takes_them(tmp_path):
    memory = added(Memory(5, SHAPE, 4), [0, 1, 2])
    save_state(state(memory), tmp_path / "x", "checkpoint")
    assert_kept(load_state(tmp_path / "x", "checkpoint"), memory)


def test_rows_that_are_elsewhere_are_not_taken_for_none(tmp_path):
    _, _ = two(tmp_path)
    with pytest.raises(InputError, match="damaged"):
        load_state(tmp_path / "000000002.safetensors", "checkpoint")
