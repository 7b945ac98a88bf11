"""Seeds, nested states, atomic files: what is written comes back, and what is damaged is told."""

import json
import os
import socket
import struct
import threading
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synthkd.core.errors import InputError
from synthkd.core.files import (
    append_line,
    plain_tree,
    read_bytes,
    read_table,
    sha256_of,
    sweep,
    write_atomic,
    write_json,
)
from synthkd.core.seeds import derived, generator_for, globally
from synthkd.core.states import check_state, load_state, save_state

# --- seeds ---


@given(
    st.integers(0, 2**31),
    st.lists(st.one_of(st.integers(0, 99), st.text("ab", min_size=1)), max_size=3),
)
def test_a_derived_seed_is_a_number_that_torch_takes(seed, path):
    assert 0 <= derived(seed, *path) < 2**63
    torch.Generator().manual_seed(derived(seed, *path))


def test_other_names_give_other_seeds():
    paths = [
        (),
        ("round",),
        ("round", 0),
        ("round", 1),
        ("round", 11),
        ("generator",),
        ("student",),
    ]
    assert len({derived(seed, *path) for seed in range(50) for path in paths}) == 50 * len(paths)


def test_a_derived_seed_never_changes_between_versions():
    """SHA-256 of "3/round/17", first 64 bits, halved: old checkpoints find their numbers again."""
    import hashlib

    assert derived(3, "round", 17) == int(hashlib.sha256(b"3/round/17").hexdigest()[:16], 16) // 2
    assert derived(3, "round", 17) == 2804676650595222700


def test_the_same_names_give_the_same_numbers_whatever_ran_before():
    first = torch.rand(5, generator=generator_for(1, "x", 2))
    torch.rand(3, generator=generator_for(1, "x", 3))
    torch.rand(100)
    assert torch.equal(first, torch.rand(5, generator=generator_for(1, "x", 2)))


def test_a_global_seed_lasts_as_long_as_its_block_even_when_it_fails():
    before = torch.get_rng_state()
    with globally(generator_for(1)):
        first = torch.rand(3)
    with pytest.raises(RuntimeError), globally(generator_for(1)):
        assert torch.equal(first, torch.rand(3))
        raise RuntimeError
    assert torch.equal(before, torch.get_rng_state())


# --- states ---

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)
)
STATES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=4),
    ),
    max_leaves=12,
)


@given(STATES)
def test_a_nested_state_comes_back_as_it_was(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("state") / "x"
    save_state(state, path, "thing")
    assert load_state(path, "thing") == state


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.uint8,
        torch.int64,
        torch.bool,
    ],
)
def test_a_tensor_comes_back_bit_for_bit(tmp_path, dtype):
    tensor = torch.rand(2, 3, 4, 5).mul(9).to(dtype)
    state = {
        "a": [tensor, {"b": tensor[:, 1:].transpose(0, 1)}],
        "scalar": tensor[0, 0, 0, 0],
        "none": tensor[:0],
    }
    save_state(state, tmp_path / "x", "thing")
    found = load_state(tmp_path / "x", "thing")
    for a, b in (
        (found["a"][0], tensor), (found["a"][1]["b"], tensor[:, 1:].transpose(0, 1)),
        (found["scalar"], tensor[0, 0, 0, 0]), (found["none"], tensor[:0]),
    ):  # fmt: skip
        assert a.dtype == dtype
        assert torch.equal(a, b)


def test_shared_memory_and_layout_do_not_hinder_saving(tmp_path):
    weight = torch.rand(4, 3, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    save_state({"one": weight, "same": weight, "part": weight[1]}, tmp_path / "x", "thing")
    found = load_state(tmp_path / "x", "thing")
    assert torch.equal(found["one"], weight)
    assert torch.equal(found["same"], weight)
    assert torch.equal(found["part"], weight[1])
    assert not found["one"].requires_grad
    found["one"].zero_()
    assert torch.equal(found["same"], weight)


def test_infinity_survives(tmp_path):
    save_state([float("inf"), -float("inf")], tmp_path / "x", "thing")
    assert load_state(tmp_path / "x", "thing") == [float("inf"), -float("inf")]


def test_what_a_state_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="object"):
        save_state({"x": [object()]}, tmp_path / "x", "thing")
    assert list(tmp_path.iterdir()) == []


def test_a_state_of_another_kind_is_told(tmp_path):
    save_state({}, tmp_path / "x", "checkpoint")
    with pytest.raises(InputError, match="not a generator"):
        load_state(tmp_path / "x", "generator")


def header(**metadata: str) -> bytes:
    """An empty safetensors file with these words in its header."""
    text = json.dumps({"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(text)) + text


def skeleton(state: str) -> bytes:
    """The same around a state without tensors, its checksum right."""
    return header(**{"synthkd-thing": f"{zlib.crc32(state.encode()):08x} {state}"})


DAMAGED = {
    "empty": b"",
    "noise": bytes(range(256)) * 9,
    "a web page": b"<html>not found</html>",
    "a huge header": struct.pack("<Q", 2**60) + b"{}",
    "no kind": header(),
    "no skeleton": header(kind="thing"),
    "no checksum": header(**{"synthkd-thing": '["l", []]'}),
    "another checksum": header(**{"synthkd-thing": '00c0ffee ["l", []]'}),
    "a checksum alone": header(**{"synthkd-thing": "00000000"}),
    "no JSON": skeleton("[[["),
    "an unknown tensor": skeleton('["t", "7"]'),
    "a tensor that is a number": skeleton('["t", 7]'),
    "a list that is none": skeleton("[1, 2, 3]"),
    "a dictionary that is none": skeleton('["d", 5]'),
    "pairs that are none": skeleton('["d", [[1, 2, 3]]]'),
    "keys that are lists": skeleton('["d", [[["l"], 2]]]'),
    "a depth without end": skeleton('["l", [' * 20_000 + "]]" * 20_000),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_state_is_one_line_for_the_user(tmp_path, what):
    path = tmp_path / "x"
    path.write_bytes(DAMAGED[what])
    with pytest.raises(InputError) as caught:
        load_state(path, "thing")
    assert "\n" not in str(caught.value)
    assert "thing" in str(caught.value)


def test_what_the_damaged_states_are_made_of_can_be_read(tmp_path):
    (tmp_path / "x").write_bytes(skeleton('["l", [1, null]]'))
    assert load_state(tmp_path / "x", "thing") == [1, None]


def test_a_flipped_bit_anywhere_is_noticed(tmp_path):
    path = tmp_path / "x"
    state = {"a": torch.rand(5), "b": [torch.tensor(True), torch.arange(3)], "drawn": 1024}
    save_state(state, path, "thing")
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        with pytest.raises(InputError, match="damaged"):
            load_state(path, "thing")


def test_a_state_cut_anywhere_is_one_line_for_the_user(tmp_path):
    path = tmp_path / "x"
    save_state({"a": torch.rand(50), "b": [1, 2.0, None]}, path, "thing")
    whole = path.read_bytes()
    for end in (1, 7, 8, 9, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError):
            load_state(path, "thing")


def test_a_missing_state_is_one_line_for_the_user(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        load_state(tmp_path / "nowhere", "thing")


# --- files ---


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path, sync):
    path = tmp_path / "x"
    for content in (b"long, long ago", "größer"):
        write_atomic(path, content, sync=sync)
    assert path.read_text(encoding="utf-8") == "größer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_that_opened_the_old_file_goes_on_reading_it(tmp_path):
    path = tmp_path / "x"
    write_atomic(path, b"old" * 1000)
    with path.open("rb") as file:
        file.read(3)
        write_atomic(path, b"new")
        assert file.read() == b"old" * 999
    assert path.read_bytes() == b"new"


def test_json_has_null_where_numbers_are_not_finite(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": [1.5, float("nan"), (float("inf"),)], 2: {"ü": True}})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "a": [1.5, None, [None]],
        "2": {"ü": True},
    }
    assert "ü" in path.read_text(encoding="utf-8")


def test_sha256_is_that_of_the_bytes(tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# Files of strangers


def test_a_link_at_the_place_of_a_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    outside, path = tmp_path / "outside", tmp_path / "in" / "file"
    outside.write_text("precious")
    path.parent.mkdir()
    path.symlink_to(outside)
    path.with_name(f".file.{os.getpid()}.tmp").symlink_to(outside)
    write_atomic(path, "new")
    assert (outside.read_text(), path.read_text(), path.is_symlink()) == ("precious", "new", False)
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_nothing_behind_and_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(OSError) as caught:
        write_atomic(tmp_path / "there", b"x")  # a folder is not replaced by a file
    assert caught.value.filename == str(tmp_path / "there")
    assert [entry.name for entry in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("kind", ["link", "link to nowhere", "hard link", "pipe", "folder"])
def test_a_line_is_added_to_no_file_of_elsewhere(tmp_path: Path, kind: str) -> None:
    outside, path = tmp_path / "outside", tmp_path / "lines"
    if kind != "link to nowhere":
        outside.write_text("precious")
    if kind.startswith("link"):
        path.symlink_to(outside)
    elif kind == "hard link":
        path.hardlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OSError) as caught:
        append_line(path, "line")
    assert caught.value.filename == str(path)
    assert outside.read_text() == "precious" if outside.exists() else kind == "link to nowhere"


def test_lines_are_added_one_after_the_other(tmp_path: Path) -> None:
    for line in ("one", "zwölf"):
        append_line(tmp_path / "lines", line)
    assert (tmp_path / "lines").read_bytes() == "one\nzwölf\n".encode()


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(OSError, match="a pipe, not a plain file"):
        read_bytes(tmp_path / "config.json", 100)
    with pytest.raises(InputError, match=r"it: config.json cannot be read: a pipe, not a plain"):
        read_table(tmp_path / "config.json", "it")
    with pytest.raises(OSError, match="not a plain file"):
        sha256_of(tmp_path / "config.json")


def test_a_pipe_that_the_user_names_is_read_to_its_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"a" * 200_000,))
    writer.start()
    assert read_bytes(tmp_path / "pipe", 300_000, pipes=True) == b"a" * 200_000
    writer.join()
    assert read_bytes(Path(os.devnull), 10, pipes=True) == b""


def test_a_table_that_is_too_large_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "big.json").write_bytes(b'{"a": "' + b"a" * (4 << 20) + b'"}')
    with pytest.raises(InputError, match=r"it: big.json cannot be read: too large"):
        read_table(tmp_path / "big.json", "it")


@pytest.mark.parametrize("kind", ["file link", "folder link", "link to nowhere", "pipe", "socket"])
@pytest.mark.parametrize("place", ["", "a/b/c"])
def test_a_tree_with_anything_but_files_and_folders_is_refused(
    tmp_path: Path, kind: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tree" / place
    folder.mkdir(parents=True)
    (folder / "plain.txt").write_text("")
    (tmp_path / "elsewhere").mkdir()
    plain_tree(tmp_path / "tree", "it")
    odd = folder / "odd"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "socket":
        monkeypatch.chdir(folder)  # a socket's name is short
        socket.socket(socket.AF_UNIX).bind("odd")
    else:
        names = {"file link": "elsewhere/file", "folder link": "elsewhere"}
        odd.symlink_to(tmp_path / names.get(kind, "nowhere"))
        (tmp_path / "elsewhere" / "file").write_text("")
    with pytest.raises(InputError, match=rf"it: '{place and place + '/'}odd' in it is a"):
        plain_tree(tmp_path / "tree", "it")
    if "link" in kind:  # to be read only
        plain_tree(tmp_path / "tree", "it", links=True)


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    kept = {".bashrc", "a.tmp", ".a.tmp", ".a.b.tmp"}
    for name in (*kept, ".000000009.safetensors.4242.tmp"):
        (tmp_path / name).write_text("")
    (tmp_path / ".folder.1.tmp").mkdir()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, ".folder.1.tmp"}


def test_a_state_is_checked_without_being_put_together(tmp_path):
    path = tmp_path / "x"
    checksum = save_state({"a": torch.rand(50), "b": torch.rand(3)}, path, "thing")
    check_state(path, "thing", checksum)
    for kind, number in (("other", checksum), ("thing", checksum ^ 1)):
        with pytest.raises(InputError, match="is damaged or not a"):
            check_state(path, kind, number)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="is damaged"):
        check_state(path, "thing", checksum)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (3,), (2, 3)])
def test_a_state_takes_tensors_of_any_stride(tmp_path, shape):
    """One number that is expanded has a stride of 0, also where it is as large as before."""
    value = torch.tensor(7).expand(shape)
    assert 0 in value.stride()
    save_state({"a": value, "b": torch.arange(6).view(2, 3).T}, tmp_path / "x", "state")
    found = load_state(tmp_path / "x", "state")
    assert torch.equal(found["a"], value)
    assert torch.equal(found["b"], torch.arange(6).view(2, 3).T)
