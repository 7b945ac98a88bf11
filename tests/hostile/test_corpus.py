"""Hostile input at every door of the command line: a corpus, each case run as a user would.

Six things hold of every case: nothing in it is executed (a payload would leave the file `ran`, and
each is proved to be armed), nothing outside of what the command names is written, changed or
removed, there is no traceback, it holds at most 3 GB, it ends within a minute, and it is done, or
refused in one line that names the file or the flag, and the fault.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import doors_networks
import doors_settings
import pytest
from harness import Case, Place, Server, faults, serving

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or not Path("/proc/self/status").exists(),
    reason="cases are forked processes, whose memory is read from /proc",
)
CASES = [case for doors in (doors_settings, doors_networks) for case in doors.CASES()]
NAMES = [f"{number:03d} {case.name}"[:60] for number, case in enumerate(CASES)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serving(folder) as process:
        yield process


@pytest.fixture
def place(tmp_path: Path, server: Server) -> Place:
    tmp_path.chmod(0o755)
    return Place(tmp_path, server.bases)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_case_does_no_harm_and_is_refused_in_one_line(
    case: Case, place: Place, server: Server
) -> None:
    found, _ = faults(case, place, server)
    assert not found, "; ".join(found)


def test_there_are_cases_enough() -> None:
    assert len(CASES) >= 150
    assert len({case.name for case in CASES}) == len(CASES)
