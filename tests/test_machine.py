"""What a run says about the machine that it ran on."""

import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from synthkd.engine.machine import peak_memory_mb
from synthkd.runs.session import Cadence, Stop, stopping

LARGE = 1_500_000_000
ASKED = """
import torch
from synthkd.engine.machine import peak_memory_mb
print(peak_memory_mb(torch.device("cpu")))
"""


@pytest.mark.slow
def test_peak_memory_knows_what_was_freed() -> None:
    held = bytearray(LARGE)
    del held
    assert peak_memory_mb(torch.device("cpu")) > LARGE / 1e6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="where /proc tells")
def test_peak_memory_is_that_of_this_process_alone() -> None:
    held = bytearray(LARGE)
    told = subprocess.run(
        [sys.executable, "-c", ASKED], capture_output=True, text=True, check=True
    ).stdout
    assert 50 < float(told) < len(held) / 1e6


INTERRUPTED = """
import time
from synthkd.runs.session import stopping
def heard():
    print("heard", time.monotonic(), flush=True)
with stopping(heard) as stop:
    print("ready", flush=True)
    import hashlib
    end = time.monotonic() + 30
    while not stop and time.monotonic() < end:
        hashlib.pbkdf2_hmac("sha256", b"x" * 64, b"salt", 3_000_000)  # seconds in one call
    print("left", stop.signal, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_wish_to_stop_is_heard_while_one_operation_takes_seconds(name: str) -> None:
    code = [sys.executable, "-c", INTERRUPTED, name]
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)  # by now it is in the long call
        sent = time.monotonic()
        process.send_signal(getattr(signal, name))
        word, when = process.stdout.readline().split()
        assert word == "heard" and float(when) - sent < 0.5
        last = process.stdout.readline().split()
        assert process.wait(60) == 0
    assert int(last[1]) == getattr(signal, name)


def test_outside_the_main_thread_nothing_is_caught_and_nothing_breaks() -> None:
    seen: list[object] = []

    def work() -> None:
        with stopping() as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stopping():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_checkpoint_is_due_after_a_long_round_but_not_for_more_than_a_tenth_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    cadence = Cadence(60)
    now[0] = 110.0
    assert not cadence.due(0.1) and cadence.due(10.0)
    with cadence.saving(Stop()):
        now[0] = 113.0
    now[0] = 133.0
    assert not cadence.due(20.0)  # 20 s of work would cost 3 s of saving
    now[0] = 144.0
    assert cadence.due(20.0) and not cadence.due(1.0)
    now[0] = 174.0
    assert cadence.due(1.0)


STUCK = """
import hashlib
from synthkd.runs import session
from synthkd.specs.code import foreign_code
session.LAST = 0.5
def give_up():
    print("given up")
    return True
with session.stopping(lambda: None, give_up):
    with foreign_code("a teacher"):  # in which os._exit is none
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"x" * 64, b"salt", 300_000_000)  # minutes in one call
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_operation_that_does_not_end_is_left_by_force(name: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        sent = time.monotonic()
        process.send_signal(getattr(signal, name))
        assert process.stdout.read() == "given up\n"
        assert process.wait(30) == 128 + getattr(signal, name)
    assert time.monotonic() - sent < 5


HELD = """
import ctypes
from synthkd.runs import session
session.LAST, session.MERCY = 0.5, 0.5
with session.stopping(lambda: None, lambda: True):
    print("ready", flush=True)
    ctypes.PyDLL(None).sleep(60)  # no other thread of Python gets its turn
    ctypes.PyDLL(None).sleep(60)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="where sleep is in the program itself")
def test_a_thread_that_gets_no_turn_is_no_way_to_stay() -> None:
    with subprocess.Popen([sys.executable, "-c", HELD], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.3)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)  # ends the first sleep; the second one is held
        assert process.wait(30) in (-signal.SIGALRM, 130)
    assert time.monotonic() - sent < 10


def test_a_timer_of_the_callers_survives_a_run_that_nobody_stopped() -> None:
    before = signal.setitimer(signal.ITIMER_REAL, 90)
    try:
        with stopping() as stop, Cadence(60).saving(stop):
            pass
        assert 80 < signal.getitimer(signal.ITIMER_REAL)[0] <= 90
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_a_second_signal_goes_to_whoever_handled_it_before_where_nothing_is_forced() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job may ignore it
    try:
        with pytest.raises(KeyboardInterrupt), stopping(by_force=False) as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_timer_of_the_callers_survives_where_nothing_is_forced() -> None:
    before = signal.setitimer(signal.ITIMER_REAL, 90, 70)
    try:
        with stopping(by_force=False) as stop:
            signal.raise_signal(signal.SIGTERM)
            with Cadence(60).saving(stop):
                pass
        left, every = signal.getitimer(signal.ITIMER_REAL)
        assert 80 < left <= 90 and every == 70
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
