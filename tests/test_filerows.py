"""Rows in a file: what a tensor would hold, and a memory whose images lie there is the same."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import synthkd
from synthkd.core.errors import DiskError
from synthkd.core.filerows import FileRows
from synthkd.core.states import Rows, load_state
from synthkd.replay import Memory, memory
from synthkd.runs import checkpoints as kept
from synthkd.runs.checkpoints import Checkpoints

SHAPE = (1, 4, 4)
ALL = ("images", "labels", "logits", "votes", "slots", "weights")


@contextmanager
def in_files(held: int = 0):
    """Memories made meanwhile keep their images in files, if they are more than `held`."""
    with patch.object(memory, "RESIDENT", held * 16):
        yield


def offer(votes: list[int], number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, str]:
    rng = torch.Generator().manual_seed(number)
    images = torch.randint(256, (len(votes), *SHAPE), dtype=torch.uint8, generator=rng)
    logits = torch.randn(len(votes), 4, generator=rng)
    logits[range(len(votes)), votes] = 9.0
    return images, torch.arange(len(votes)), logits, f"origin {number % 2}"


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=6, unique=True), max_size=6),
    st.sampled_from([torch.uint8, torch.float16, torch.int64]),
    st.sampled_from([(), (3,), (2, 1, 3)]),
)
def test_rows_are_those_of_a_tensor(writes, dtype, shape):
    rows, oracle = FileRows(10, shape, dtype), torch.zeros((10, *shape), dtype=dtype)
    for number, places in enumerate(writes):
        index = torch.tensor(places, dtype=torch.int64)
        values = (torch.arange(len(places) * oracle[0].numel()) + number).to(dtype)
        rows[index] = oracle[index] = values.view(len(places), *shape)
    mask = torch.arange(10) % 3 == 0
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    for index in (
        slice(None),
        slice(2, 7),
        mask,
        order,
        torch.tensor([3, 3]),
        torch.tensor([]).long(),
    ):
        assert torch.equal(rows[index], oracle[index])
    assert torch.equal(rows.first(4)[:], oracle[:4])
    one = torch.ones((), dtype=dtype).expand(1, *shape)  # of stride 0
    rows[torch.tensor([7])] = oracle[torch.tensor([7])] = one
    assert torch.equal(rows[:], oracle)
    assert rows.shape == tuple(oracle.shape) and len(rows) == 10 and rows.dtype == dtype


def test_what_does_not_fit_is_refused():
    rows = FileRows(3, (2,), torch.uint8)
    with pytest.raises(IndexError):
        rows[torch.tensor([3])]
    with pytest.raises(ValueError, match="not 2 rows"):
        rows[torch.tensor([0, 1])] = torch.zeros(1, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="float32"):
        rows[torch.tensor([0])] = torch.zeros(1, 2)


def test_the_file_has_no_name_and_is_not_made_for_nothing(tmp_path):
    missing = FileRows(3, (2,), torch.uint8, tmp_path / "missing")
    assert missing[:].tolist() == [[0, 0]] * 3
    with pytest.raises(DiskError, match=r"missing.*memory fails"):
        missing[torch.tensor([0])] = torch.ones(1, 2, dtype=torch.uint8)
    there = FileRows(3, (2,), torch.uint8, tmp_path)
    there[torch.tensor([0])] = torch.ones(1, 2, dtype=torch.uint8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_disk_that_takes_no_more_is_one_line(tmp_path):
    program = (
        "import resource, torch\n"
        "from pathlib import Path\n"
        "from synthkd.core.errors import DiskError\n"
        "from synthkd.core.filerows import FileRows\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        f"rows = FileRows(9, (64,), torch.uint8, Path({str(tmp_path)!r}))\n"
        "rows[torch.tensor([0])] = torch.ones(1, 64, dtype=torch.uint8)\n"
        "try:\n"
        "    rows[torch.tensor([1])] = torch.ones(1, 64, dtype=torch.uint8)\n"
        "except DiskError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "a file for the images of the memory fails: File too large" in done.stdout
    assert str(tmp_path) in done.stdout


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=8), min_size=1, max_size=8),
    st.integers(1, 12),
    st.integers(0, 6),
)
def test_a_memory_in_a_file_is_the_same_memory(past, capacity, held):
    """It moves there when it has more images than are held."""
    with in_files(held):
        filed = Memory(capacity, SHAPE, 4)
    plain = Memory(capacity, SHAPE, 4)
    for number, votes in enumerate(past):
        for one in (filed, plain):
            one.add(*offer(votes, number))
        assert isinstance(filed.images, FileRows) == (len(filed) > held)
    assert isinstance(plain.images, torch.Tensor)
    with in_files():
        restored = Memory(1, SHAPE, 4)
        restored.load_state_dict(filed.state_dict())
    moved = Memory(1, SHAPE, 4)
    moved.load_state_dict(filed.state_dict())
    assert isinstance(restored.images, FileRows) == (len(filed) > 0)
    assert isinstance(moved.images, torch.Tensor)
    for one in (filed, restored, moved):
        assert one.counts == plain.counts
        pairs = [(one.everything(), plain.everything())]
        if len(plain):
            rngs = [torch.Generator().manual_seed(1) for _ in range(2)]
            pairs.append((one.draw(9, rngs[0], boundary=0.5), plain.draw(9, rngs[1], boundary=0.5)))
            some = torch.tensor([len(plain) - 1, 0])
            pairs.append((one.everything().take(some), plain.everything().take(some)))
        for a, b in pairs:
            assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ALL)
            assert a.origins == b.origins


def test_checkpoints_go_in_small_files_and_come_back(tmp_path):
    """Files of at most 20 rows; a memory of 64 that is exchanged twice over."""
    row = Rows(torch.arange(1), {k: v[:1] for k, v in columns(filled(1)).items()}).bytes
    with in_files(), patch.object(kept, "PART", 20 * row):
        one, folder = Memory(64, SHAPE, 4, tmp_path), Checkpoints(tmp_path / "c")
        (tmp_path / "c").mkdir()
        for round_ in range(24):
            one.add(*offer([round_ % 4, 1, 2, 3, 0, 1], round_))
            folder.save({"memory": one.state_dict()}, round_)
        sizes = [len(load_state(path, "rows").numbers) for path in (tmp_path / "c").glob("rows-*")]
        assert max(sizes) <= 20 and 64 <= sum(sizes) <= 4 * 64
        found = Checkpoints(tmp_path / "c").newest()
        assert found is not None and found[0] == 23
        again = Memory(1, SHAPE, 4, tmp_path)
        again.load_state_dict(found[1]["memory"])
    a, b = again.everything(), one.everything()
    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ALL)


def filled(count: int) -> Memory:
    found = Memory(count, SHAPE, 4)
    found.add(*offer([0] * count, 0))
    return found


def columns(one: Memory) -> dict[str, torch.Tensor]:
    return dict(one.state_dict()["rows"].columns)


def test_rows_come_in_parts_of_a_size():
    state = filled(10).state_dict()["rows"]
    parts = list(state.parts(3 * state.bytes))
    assert [len(places) for places, _ in parts] == [3, 3, 3, 1]
    assert torch.equal(torch.cat([part["images"] for _, part in parts]), state.columns["images"])
    assert [len(places) for places, _ in state.parts(1)] == [1] * 10  # never nothing


@pytest.mark.slow
def test_a_student_is_the_same_wherever_its_memory_lies(tmp_path):
    def digest(out: Path) -> str:
        settings = {"training.batch": 50}
        made = synthkd.distill(images=2000, val_data="none", out=out, settings=settings)
        return str(made.summary["student_sha256"])

    plain = digest(tmp_path / "a")
    with in_files():
        assert digest(tmp_path / "b") == plain
    a, b = ({path.name for path in (tmp_path / name).iterdir()} for name in "ab")
    assert a == b


def test_an_unfinished_file_is_gone_with_its_process():
    with TemporaryDirectory() as name:
        rows = FileRows(2, (1,), torch.uint8, Path(name))
        rows[:] = torch.ones(2, 1, dtype=torch.uint8)
        del rows
        assert list(Path(name).iterdir()) == []
