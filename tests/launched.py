"""What torchrun starts in two processes for tests/test_processes.py: collectives, and a step that
both learn together. Each writes what it has seen into the folder that it is given."""

import json
import os
import sys
import time
from pathlib import Path

import torch
from lessons import lesson, plain_learner

from synthkd.engine.processes import LostProcess, from_environment


def main(folder: Path) -> None:
    """What each of the two does."""
    torch.set_num_threads(1)
    processes = from_environment("cpu")
    rank = processes.rank

    values = [torch.tensor([1.0, 2.0]) + rank, torch.tensor(10 * rank), torch.eye(2) * rank]
    processes.mean_(values[::2])  # floats of two shapes
    weighted = torch.tensor([4.0 * (rank + 1)])
    processes.mean_([weighted], 0.25 if rank == 0 else 0.75)
    spread = [torch.full((2,), float(rank)), torch.tensor(rank)]
    processes.spread_(spread)
    seen = {
        "means": [value.tolist() for value in values],
        "weighted": weighted.tolist(),
        "spread": [value.tolist() for value in spread],
        "first": processes.first({"rank": rank, "infinite": float("inf"), "third": 1 / 3}),
        "every": processes.every([rank, "é" * (1 + 40 * rank)]),
        "part": processes.part(5),
        "leads": processes.leads,
        "launcher": processes.launcher,
    }

    learner = plain_learner(processes.mean_)  # each learns its part of one batch, 3 images and 2
    begin, count = processes.part(5)
    images, taught = (whole[begin : begin + count] for whole in lesson(5))
    learner.step(images, taught, 0.3, fraction=count / 5)
    seen["weights"] = [p.tolist() for p in learner.student.parameters()]

    processes.wait()
    if rank == 1:
        (folder / "1.json").write_text(json.dumps(seen))
        os._exit(0)
    began = time.monotonic()
    try:
        processes.first(1)
        processes.every(None)
    except LostProcess as error:
        seen["lost"], seen["after"] = str(error), time.monotonic() - began
    (folder / "0.json").write_text(json.dumps(seen))
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
