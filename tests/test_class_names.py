"""Class names and orders: matched by hand here, and refused where they contradict each other."""

from pathlib import Path

import pytest

from synthkd.core.errors import InputError
from synthkd.labels.class_names import (
    arranged,
    known_names,
    matched,
    names_in,
    numbers_of,
    told_list,
)
from synthkd.recipe import TeacherTable
from synthkd.specs import load_teacher

ANIMALS = ("tench, Tinca tinca", "sea lion", "Golden_Retriever", "hot dog", "Ägyptische Mau")


def order(given: list[str], names: tuple[str, ...] = (), classes: int = 0, how: str = "auto"):
    return arranged(given, [True] * len(given), names, classes or len(given), how)


@pytest.mark.parametrize(
    ("given", "k"),
    [
        ("tench", 0), ("Tinca tinca", 0), ("tench, Tinca tinca", 0), ("n01440764", 0),
        ("n01440764-tench", 0), ("SEA-LION", 1), ("sea_lion", 1), ("sealion", 1), ("1_sea_lion", 1),
        ("002.Golden Retriever", 2), ("hotdog", 3), ("Hot-Dog", 3), ("A\u0308gyptische mau", 4),
    ],
)  # fmt: skip
def test_a_name_is_matched_however_it_is_spelt(given: str, k: int) -> None:
    assert matched([given], ANIMALS) == [k]


def test_a_closer_spelling_wins_and_what_fits_twice_fits_nothing() -> None:
    assert matched(["C++", "C"], ["C", "C++"]) == [1, 0]
    assert matched(["crane"], ["crane, bird", "crane, machine"]) == [None]
    assert matched(["cat", "Cat"], ["cat"]) == [0, None]


def test_numbers_and_number_words_are_the_same_names() -> None:
    words = ("zero", "one", "two", "three")
    assert matched(["3", "02", "class_1", "Zero"], words) == [3, 2, 1, 0]
    assert matched(list(words), ("0", "1", "2", "3")) == [0, 1, 2, 3]


def test_folders_of_a_teacher_with_names_are_matched_and_a_subset_is_enough() -> None:
    names = ("dog", "cat", "eel", "bee")
    assert order(["bee", "cat", "dog", "eel"], names).classes == (3, 1, 0, 2)
    found = order(["bee", "cat"], names, 4)
    assert found.classes == (3, 1) and "by name" in found.how


def test_a_teacher_trained_on_text_order_says_so_by_its_names() -> None:
    names = tuple(sorted(str(k) for k in range(12)))
    padded = [f"{k:02d}" for k in range(12)]
    assert order(padded, names).classes == tuple(names.index(str(k)) for k in range(12))


def test_names_that_fit_only_in_part_are_refused_and_named() -> None:
    with pytest.raises(InputError, match=r"1 of its 3 classes.*'hound' \(like") as caught:
        order(["bee", "cat", "hound"], ("hounds", "cat", "bee", "eel"), 4)
    assert "--class-names" in str(caught.value)


def test_another_vocabulary_falls_back_to_the_order() -> None:
    assert order(["0", "1"], ("normal", "pneumonia")).classes == (0, 1)
    assert order(["gesund", "krank"], ("normal", "pneumonia")).classes == (0, 1)
    with pytest.raises(InputError, match="none of the teacher"):
        order(["gesund", "krank"], ("normal", "pneumonia"), how="names")


def test_imagenets_numbers_come_in_imagenets_order_also_a_few_of_them() -> None:
    few = ["n01440764", "n01443537", "n15075141"]
    assert order(few, classes=1000).classes == (0, 1, 999)
    assert order(["n01443537", "n01440764"], ("goldfish", "tench")).classes == (0, 1)


@pytest.mark.parametrize(
    ("given", "classes", "expected"),
    [
        (["0", "1", "10", "2"], 11, (0, 1, 10, 2)),
        (["00", "01", "02"], 3, (0, 1, 2)),
        (["1", "2", "3"], 3, (0, 1, 2)),
        (["c1", "c10", "c2"], 10, (0, 9, 1)),
        (["class_0", "class_2"], 3, (0, 2)),
        (["0_cat", "10_eel", "1_dog"], 11, (0, 10, 1)),
        (["003.Blue_jay", "001.Crow", "002.Wren"], 3, (2, 0, 1)),
        (["7", "42"], 2, (0, 1)),
        (["one", "two", "zero"], 3, (1, 2, 0)),
        (["cat", "dog"], 2, (0, 1)),
    ],
)
def test_without_names_folders_are_counted(
    given: list[str], classes: int, expected: tuple[int, ...]
) -> None:
    assert order(given, classes=classes).classes == expected


def test_numbers_carry_the_other_order_that_imagefolder_would_have_taken() -> None:
    found = order([f"{k:02d}" for k in range(12)])
    (other,) = found.others
    texts = sorted(str(k) for k in range(12))
    assert [texts[k] for k in other.classes] == [str(k) for k in range(12)] and other.adopted
    assert order([f"{k}" for k in range(10)]).others == ()  # both are the same
    assert order([f"{k:02d}" for k in range(12)], how="alphabetical").classes == other.classes
    assert order([f"{k:02d}" for k in range(12)], how="numeric").others == ()


def test_the_order_can_be_told(tmp_path: Path) -> None:
    assert order(["cat", "dog", "eel"], how="2,0,1").classes == (2, 0, 1)
    assert order(["a", "b"], ("cat", "dog"), how="dog,cat").classes == (1, 0)
    assert order(["1", "2"], classes=10, how="one-based").classes == (0, 1)
    assert order(["0", "1"], classes=10, how="background-first").classes == (1, 2)
    (tmp_path / "order.txt").write_text("1\n0\n")
    assert order(["a", "b"], how=str(tmp_path / "order.txt")).classes == (1, 0)
    for wrong in ("2,2,0", "0,1,3", "0,1", "sideways", "numeric", "one-based"):
        with pytest.raises(InputError, match="--class-order"):
            order(["cat", "dog", "eel"], how=wrong)


def test_an_empty_folder_counts_only_where_it_makes_up_the_number() -> None:
    assert arranged(["a", "b", "c"], [True, False, True], (), 3).classes == (0, 1, 2)
    assert arranged(["a", "b", "c"], [True, False, True], (), 2).classes == (0, -1, 1)
    with pytest.raises(InputError, match="it has 3 classes"):
        arranged(["a", "b", "c"], [True, False, True], (), 5)


def test_numbers_in_names_are_found_only_where_all_have_one() -> None:
    assert numbers_of(["a1", "b2"]) is None and numbers_of(["cat", "2"]) is None
    assert numbers_of(["1", "01"]) is None
    assert known_names(("class 0", "class 1")) == () and known_names(("cat", "0")) == ("cat", "0")


def test_lists_are_read_from_text_and_from_files(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\ufeff0 tench, Tinca tinca\n1 sea lion\n\n")
    assert told_list(str(tmp_path / "labels.txt"), "-") == ("tench, Tinca tinca", "sea lion")
    assert told_list("a, b", "-") == ("a", "b") and told_list("", "-") == ()
    (tmp_path / "classes").write_text("cat\ndog\n")
    assert told_list(str(tmp_path / "classes"), "-") == ("cat", "dog")
    assert told_list("a\0" * 3, "-") == ("a\0a\0a\0",) and told_list("x" * 5000, "-")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "hole.txt").write_text("a\n\nb\n")
    for name in ("bad.txt", "hole.txt", "none.txt"):
        with pytest.raises(InputError, match="--class-names"):
            told_list(str(tmp_path / name), "--class-names")


NET = """
import torch
from torch import nn
{module}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 3)
        {network}
    def forward(self, x):
        return self.head(x.flatten(1))
def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
def function():
    net = Net()
    def ask(x):
        with torch.no_grad():
            return net(torch.from_numpy(x)).numpy()
    return ask
"""


@pytest.mark.parametrize(
    ("module", "network", "call", "names"),
    [
        ("", "self.classes = ['cat', 'dog', 'eel']", "Net", ("cat", "dog", "eel")),
        ("", "self.id2label = {0: 'cat', 2: 'eel', 1: 'dog'}", "Net", ("cat", "dog", "eel")),
        ("", "self.class_to_idx = {'dog': 0, 'cat': 1, 'eel': 2}", "Net", ("dog", "cat", "eel")),
        ("CLASSES = ('cat', 'dog', 'eel')", "", "plain", ("cat", "dog", "eel")),
        ("class_names = ['cat', 'dog', 'eel']", "", "function", ("cat", "dog", "eel")),
        ("CLASSES = ('cat', 'dog')", "self.names = [1, 2, 3]", "Net", ("0", "1", "2")),
    ],
)  # fmt: skip
def test_a_network_of_code_can_name_its_classes(
    tmp_path: Path, module: str, network: str, call: str, names: tuple[str, ...]
) -> None:
    (tmp_path / "net.py").write_text(NET.format(module=module, network=network or "pass"))
    table = TeacherTable(
        spec=f"{tmp_path / 'net.py'}:{call}", image_size=8, channels=1, mean=(0.5,), std=(0.5,)
    )
    assert load_teacher(table, trust_code=True).names == names
    told = table.model_copy(update={"class_names": "x,y,z"})
    assert load_teacher(told, trust_code=True).names == ("x", "y", "z")
    with pytest.raises(InputError, match="--class-names: 2 names"):
        load_teacher(table.model_copy(update={"class_names": "x,y"}), trust_code=True)


def test_names_that_a_module_holds_for_other_classes_are_not_taken() -> None:
    class Holder:
        labels = ("a", "a")
        names = "ab"

    assert names_in(Holder(), 2) == ()
