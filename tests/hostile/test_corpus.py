"""Hostile input at every door of the command line: a corpus, each case run as a user would.

Six things hold of every case: nothing in it is executed (a payload would leave the file `ran`, and
each is proved to be armed), nothing outside of what the command names is written, changed or
removed, there is no traceback, it holds at most 3 GB, it ends within a minute, and it is done, or
refused in one line that names the file or the flag, and the fault.

Neighbours in the corpus are siblings: a third of them is run each time, and all where the variable
SYNTHKD_ALL_CASES is set.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cases_data
import cases_networks
import cases_settings
import pytest
from harness import Case, Place, Server, faults, serving

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or not Path("/proc/self/status").exists(),
    reason="cases are forked processes, whose memory is read from /proc",
)
pytest.importorskip("onnx", reason="graphs want the extra onnx")
pytest.importorskip("transformers", reason="folders of Hugging Face want the extra hf")
ALL = [case for doors in (cases_settings, cases_networks, cases_data) for case in doors.CASES()]
CASES = ALL if os.environ.get("SYNTHKD_ALL_CASES") else ALL[::3]
ARMED = [case for case in ALL if case.armed]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture
def place(tmp_path: Path, server: Server) -> Place:
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):  # some cases are another user's
        folder.chmod(0o755)
    return Place(tmp_path, server.bases)


def named(case: Case) -> str:
    return case.name.encode("ascii", "backslashreplace").decode()[:70]


@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_case_does_no_harm_and_is_refused_in_one_line(
    case: Case, place: Place, server: Server
) -> None:
    found, _ = faults(case, place, server)
    assert not found, "; ".join(found)


@pytest.mark.parametrize("case", ARMED, ids=named)
def test_a_payload_is_armed(case: Case, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert case.armed is not None
    case.make(place)
    monkeypatch.chdir(place.cwd)
    with suppress(Exception):  # what is read is no weights; it was read
        case.armed(place)
    assert (place.cwd / "ran").exists()


def test_there_are_cases_enough_and_no_two_of_one_name() -> None:
    assert len(CASES) >= 150
    assert len({case.name for case in ALL}) == len(ALL)
