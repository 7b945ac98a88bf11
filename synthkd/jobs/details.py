"""What is worth a look at the end of a run beside its summary: votes, classes, quality, pictures.

None of it chooses anything, and none of it shows a real image.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from synthkd.engine.held_out import HeldOut
from synthkd.engine.loop import Lab
from synthkd.evaluation.compare import YES_OR_NO, Comparison
from synthkd.evaluation.image_scores import score_by_teacher
from synthkd.replay.protocol import ReplayBatch
from synthkd.runs.directory import Run
from synthkd.teachers.protocol import Teacher, asked_freely

SHOWN = 16  # images in a sheet of chosen ones


def run_details(
    lab: Lab, held_out: HeldOut, sample: ReplayBatch | None, found: Comparison | None
) -> dict[str, Any]:
    """Details as plain data: how often teacher and student voted for each pair of classes on
    held-out images, a row for each class, and what the teacher says of a `sample` of the memory.
    A teacher whose answers may cost is not asked again."""
    teacher = lab.teacher
    names = YES_OR_NO if teacher.independent else teacher.names
    rows: list[dict[str, Any]] = [{"name": name} for name in teacher.names]
    counts = lab.memory.counts if len(lab.memory) and not teacher.independent else []
    for row, count in zip(rows, counts, strict=False):
        row["remembered"] = count
    quality = {}
    if sample is not None and len(sample) > 1 and asked_freely(teacher):
        asked = teacher.queries
        scores, classes = score_by_teacher(sample.images, teacher)
        teacher.queries = asked  # asked about nothing of the run
        quality = {name: asdict(score) for name, score in scores.items()}
        for row, told in zip(rows, classes, strict=True):
            row["diversity"] = told.diversity
    if found is not None:
        for row, scored in zip(rows, found.classes, strict=True):
            row |= asdict(scored)
    votes = {"names": list(names), "votes": pairs_of_votes(held_out.taught, held_out.learned)}
    return {"held_out": votes, "classes": rows, "quality": quality}


def pairs_of_votes(taught: Tensor, learned: Tensor) -> list[list[int]]:
    """[teacher's class, student's class, how often] for votes int64 [N] and [N].

    >>> pairs_of_votes(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]))
    [[0, 0, 1], [0, 2, 1], [1, 1, 1]]
    """
    if not len(taught):
        return []
    pairs, counts = torch.stack([taught, learned], 1).unique(  # type: ignore[no-untyped-call]
        dim=0, return_counts=True
    )
    found: list[list[int]] = torch.cat([pairs, counts[:, None]], 1).tolist()
    return found


def draw_chosen(lab: Lab, held_out: HeldOut, sample: ReplayBatch | None, run: Run) -> None:
    """Sheets of the held-out images on which teacher and student disagree though the teacher is
    sure, and of those of the sample between whose two likeliest classes it hardly decides."""
    teacher = lab.teacher
    if teacher.independent or not lab.sources.synthetic:
        return
    kept = lab.held_out.everything()
    synthetic = torch.tensor([origin != "real" for origin in kept.origins], dtype=torch.bool)
    differ = (held_out.learned != held_out.taught) & synthetic
    if bool(differ.any()):
        sure = teacher.probabilities(kept.logits.float())
        own = held_out.answers.softmax(1)
        place = surest(sure, differ)
        texts = [
            f"teacher {_told(teacher, sure[k])}, student {_told(teacher, own[k])}"
            for k in place.tolist()
        ]
        run.chosen_sheet("disagreed", kept.take(place).images, texts)
    if sample is not None and len(sample) and "real" not in sample.origins:
        answers = teacher.probabilities(sample.logits.float())
        place = narrowest(answers)
        texts = [_two(teacher, answers[k]) for k in place.tolist()]
        run.chosen_sheet("hardest", sample.take(place).images, texts)


def surest(probabilities: Tensor, among: Tensor) -> Tensor:
    """The places [≤ SHOWN] of the largest probabilities [N, K] `among` those of a mask [N].

    >>> surest(torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), torch.tensor([0, 1, 1]) > 0)
    tensor([2, 1])
    """
    confidence = probabilities.amax(1).masked_fill(~among, -1.0)
    return confidence.topk(min(SHOWN, int(among.sum()))).indices


def narrowest(probabilities: Tensor) -> Tensor:
    """The places [≤ SHOWN] of the images whose two largest probabilities [N, K] are the closest.

    >>> narrowest(torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.4, 0.6]]))
    tensor([1, 2, 0])
    """
    first, second = probabilities.topk(2, dim=1).values.unbind(1)
    return (second - first).topk(min(SHOWN, len(probabilities))).indices


def _told(teacher: Teacher, probabilities: Tensor) -> str:
    best = int(probabilities.argmax())
    return f"{teacher.names[best]} {float(probabilities[best]):.0%}"


def _two(teacher: Teacher, probabilities: Tensor) -> str:
    values, classes = probabilities.topk(2)
    return ", ".join(
        f"{teacher.names[k]} {v:.0%}"
        for v, k in zip(values.tolist(), classes.tolist(), strict=True)
    )
