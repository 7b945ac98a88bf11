"""Runs command lines in forked children of a process that has torch and the zoos imported.

A line of JSON in, one out. The child gets its own folder, standard streams and limits; what it
holds at most, how long it takes and how it ends are told.
"""

# ruff: noqa: E402, T201

import encodings.utf_8_sig  # noqa: F401
import io
import json
import os
import re
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

import diffusers
import onnx  # noqa: F401
import pydantic.type_adapter  # noqa: F401
import timm  # noqa: F401
import torch._dynamo
import transformers
from torchvision import models  # noqa: F401

_ = (diffusers.UNet2DModel, transformers.AutoModelForImageClassification)  # they load lazily

import bases

import synthkd.commands.bench
import synthkd.commands.distill
import synthkd.commands.evaluate
import synthkd.commands.export
import synthkd.commands.generate
import synthkd.commands.inspect
import synthkd.commands.predict  # noqa: F401
from synthkd.cli import main

MOST_MEMORY = 3_000_000_000
MOST_SECONDS = 60.0


def peak(pid: int) -> int:
    """Bytes that a process held at most so far."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def streams(request: dict[str, Any]) -> None:
    """The standard streams of a child: files, unless the case wants something else."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        kind = request.get(name, "file")
        if kind == "closed":
            os.close(number)
            setattr(sys, name, None)
            continue
        if kind == "broken":
            reading, writing = os.pipe()
            os.close(reading)
            os.dup2(writing, number)
        else:
            place = "/dev/full" if kind == "full" else f"{request['folder']}/{name}"
            os.dup2(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        encoding = request.get("encoding", "utf-8")
        raw = open(number, "wb", closefd=False)  # noqa: SIM115
        setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding, write_through=number == 2))


def child(request: dict[str, Any]) -> int:
    """One command line, or the making of what cases are changed copies of."""
    os.chdir(request["cwd"])
    os.environ |= {"HOME": request["folder"], "TMPDIR": request["tmp"], **request.get("env", {})}
    streams(request)
    try:
        if "bases" in request:
            bases.make(Path(request["bases"]))
            return 0
        if "file_size" in request:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"],) * 2)
        if request.get("user"):
            os.setgid(request["user"])
            os.setuid(request["user"])
        sys.argv = ["synthkd", *request["argv"]]
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            code = 120 if code == 0 else code
    return code


def watched(pid: int) -> dict[str, Any]:
    """Waits for a child; ends one that holds or takes too much."""
    started, most = time.monotonic(), 0
    while True:
        most = max(most, peak(pid))
        done, status = os.waitpid(pid, os.WNOHANG)
        seconds = time.monotonic() - started
        if done:
            code = os.waitstatus_to_exitcode(status)
            return {"code": code, "memory": most, "seconds": round(seconds, 3)}
        if most > MOST_MEMORY or seconds > MOST_SECONDS:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            code = "memory" if most > MOST_MEMORY else "time"
            return {"code": code, "memory": most, "seconds": round(seconds, 3)}
        time.sleep(0.005)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        number = os.fork()
        if number == 0:
            os.setsid()
            os._exit(child(asked))  # taking torch apart again costs a second
        print(json.dumps(watched(number)), flush=True)
