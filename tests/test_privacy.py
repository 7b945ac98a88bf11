"""The statement on privacy: one wording everywhere, and nothing that promises more."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from synthkd.cards.data import data_card
from synthkd.core.privacy import STATEMENT, statement

ROOT = Path(__file__).parent.parent
CLAIM = re.compile(r"\b(private|anonymous|safe)\b", re.IGNORECASE)
# What may stand around such a word: it is denied, or it is about machinery.
ALLOWED = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(not|never|nor|nothing|nobody)\b[^.!?:]{0,40}\b(private|anonymous|safe)\b",
        r"made safe for a terminal",
        r"on the safe side",
        r"private=True",
        r"private (temporary )?(directory|folder)",
        r"nothing private of another",
        r"differentially private",
    )
)
DIARY = ("docs/log.md", "docs/decisions/", "docs/bench/")


def claims(text: str) -> list[str]:
    """The sentences of a text that say private, anonymous or safe, but for those allowed."""
    flat = " ".join(text.split())
    found = re.split(r"(?<=[.!?:|])\s", flat)
    return [s for s in found if CLAIM.search(s) and not any(a.search(s) for a in ALLOWED)]


def strings(source: str) -> Iterator[str]:
    """The strings of a Python source, docstrings among them; those of an f-string in one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(p.value) for p in node.values if isinstance(p, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def documents() -> list[Path]:
    return [ROOT / "README.md"] + [
        path for path in sorted((ROOT / "docs").rglob("*.md"))
        if not path.relative_to(ROOT).as_posix().startswith(DIARY)
    ]  # fmt: skip


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_promises_what_nobody_measured(path: Path) -> None:
    assert claims(path.read_text(encoding="utf-8")) == []


def test_no_string_of_the_program_promises_it_either() -> None:
    found = {
        str(path.relative_to(ROOT)): said
        for path in sorted((ROOT / "synthkd").rglob("*.py"))
        for text in strings(path.read_text(encoding="utf-8"))
        if (said := claims(text))
    }
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "The student is private.", "SAFE to publish", "an anonymous data set: yours",
        "No image was read. The result is safe.",
    ],
)  # fmt: skip
def test_a_planted_promise_is_found(text: str) -> None:
    assert len(claims(text)) == 1
    assert [s for s in strings(f"print(f{text!r})") if claims(s)]


@pytest.mark.parametrize(
    "text", ["Nothing says that it is safe.", "saved as safetensors", "a private temporary folder"]
)
def test_a_denial_and_machinery_are_no_promise(text: str) -> None:
    assert claims(text) == []


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md"])
def test_the_statement_stands_on_the_page_once_word_for_word(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    quoted = " ".join(re.sub(r"^> ?", "", text, flags=re.MULTILINE).split())
    assert quoted.count(STATEMENT) == 1


def test_the_statement_is_written_once_in_the_program() -> None:
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "synthkd").rglob("*.py")]
    assert sum(text.count("We have not measured leakage") for text in sources) == 1


def test_what_a_run_read_changes_its_beginning_alone() -> None:
    rest = STATEMENT.split(". ", 1)[1]
    assert statement(0) == statement(0, level=1) == STATEMENT
    for said in (statement(1234, level=2), statement(0, level=2)):
        assert said.endswith(rest) and "no real data" not in said and said.count(rest) == 1
    assert statement(1234, level=2).startswith("This run read 1,234 real images,")
    assert statement(0, level=3).startswith("This run read no real images, but")
    assert claims(statement(5)) == claims(STATEMENT) == []


MANIFEST = {
    "count": 20, "classes": 2, "names": ["a", "b"], "per_class": [10, 10], "empty_classes": [],
    "spec": {"channels": 1, "height": 16, "width": 16, "mean": [0.0], "std": [1.0]},
    "teacher": "demo", "teacher_sha256": "0" * 64, "generator": "pixels", "seed": 0,
    "promise_level": 0, "promise": "strict: the teacher only", "real_images_read": 0,
    "training": {"from": None, "images": 0, "seconds": 0.0}, "drawn": 40, "agreed_share": 0.5,
    "classes_not_filled": {},
}  # fmt: skip


def test_a_data_card_states_it_once_and_promises_nothing() -> None:
    card = data_card(MANIFEST)
    assert card.count(STATEMENT) == 1 and claims(card) == []
    read = data_card(MANIFEST | {"real_images_read": 7, "promise_level": 2})
    assert statement(7) in read and STATEMENT not in read and '"data-free"' not in read
