"""What nobody learns from: how often student and teacher agree on it, and which weights it is that
leave the run. N images, K classes.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from synthkd.core.images import in_cache, portions, to_float
from synthkd.core.logits import paired
from synthkd.images.augment import augmented, mixed_up
from synthkd.measures import decided, kl
from synthkd.replay import ReplayBatch
from synthkd.students.learner import Learner

if TYPE_CHECKING:
    from synthkd.engine.loop import Lab

LOOKED_AT = 128  # held-out images that agreement is measured on after a round
RECALIBRATED = 20  # batches on which BatchNorm statistics are estimated anew


class HeldOut(NamedTuple):
    """What student and teacher vote on the images that nobody learned from."""

    learned: Tensor  # [N] int64, the student's votes; of independent classes, N yes or no
    taught: Tensor  # [N] int64, the teacher's
    answers: Tensor  # the student's logits, float32 [images, K]

    @property
    def agreement(self) -> float:
        """The share of equal votes, 0..1; 0 without images."""
        return float((self.learned == self.taught).float().mean()) if len(self.taught) else 0.0


def select_final_weights(lab: "Lab") -> tuple[dict[str, Any], HeldOut]:
    """Decides between last and averaged weights, recalibrated ones where these are asked for, and
    those that a student cut out of its teacher began with, by agreement on all held-out images;
    loads the best.

    No test data takes part. Returns the agreements and the choice, of the images of all processes
    together, and the votes of the weights that were chosen on those of this one.
    """
    learner, every = lab.learner, lab.processes.every
    assert learner is not None
    name, votes = "last", held_out_votes(lab)
    best = agreement_of_all(lab, votes)
    told = {"held_out_agreement_last": best} if learner.average else {}

    def weights() -> dict[str, Tensor]:
        return {k: v.clone() for k, v in learner.student.state_dict().items()}

    if learner.average is not None:
        kept = weights()
        learner.use(learner.average)
        averaged = held_out_votes(lab)
        told["held_out_agreement_averaged"] = agreed = agreement_of_all(lab, averaged)
        if agreed >= best:
            name, votes, kept, best = "averaged", averaged, learner.average, agreed
        if learner.table.recalibrate and all(every(len(lab.memory) > 0)):
            learner.use(learner.average)
            if learner.recalibrate(_views(lab, learner)):
                lab.processes.mean_(learner.statistics())
                again = held_out_votes(lab)
                told["held_out_agreement_recalibrated"] = agreed = agreement_of_all(lab, again)
                if agreed > best:
                    name, votes, kept, best = "recalibrated", again, weights(), agreed
        learner.use(kept)
    if learner.begun is not None:
        kept = weights()
        learner.use(learner.begun)
        before = held_out_votes(lab)
        told["held_out_agreement_begun"] = agreed = agreement_of_all(lab, before)
        if agreed > best:
            name, votes, kept, best = "begun", before, learner.begun, agreed
        learner.use(kept)
    chosen = {
        "weights": name, "held_out_agreement": best, **told,
        "held_out_images": sum(every(len(lab.held_out))),
    }  # fmt: skip
    return chosen, votes


def agreement_of_all(lab: "Lab", votes: HeldOut) -> float:
    """The share of equal votes on the images that all processes hold out, 0..1."""
    if lab.processes.count == 1:
        return votes.agreement
    told = lab.processes.every([int((votes.learned == votes.taught).sum()), len(votes.taught)])
    hits, images = (sum(numbers) for numbers in zip(*told, strict=True))
    return float(hits / max(1, images))


def held_out_votes(lab: "Lab") -> HeldOut:
    """What student and teacher vote on all held-out images."""
    assert lab.learner is not None
    kept = lab.held_out.everything()
    answers = [
        lab.learner.answer(to_float(some)).float().cpu()
        for part in portions(kept.images)
        for some in in_cache(lab.moved(part))
        if len(some)
    ]
    taught = _taught(lab, kept)
    if not answers:
        return HeldOut(taught, taught, torch.empty(0, lab.teacher.classes))
    logits = torch.cat(answers)
    return HeldOut(decided(logits, independent=lab.teacher.independent), taught, logits)


def agreement_now(lab: "Lab", rng: torch.Generator) -> dict[str, float]:
    """Agreement on some of the held-out images after a round, and how far the answers are from the
    teacher's at temperature 1 (the gap that a student's capacity leaves); nothing where none are
    held out."""
    if len(lab.held_out) == 0:
        return {}
    assert lab.learner is not None
    drawn = lab.held_out.draw(min(LOOKED_AT, len(lab.held_out)), rng)
    answers = lab.learner.answer(to_float(lab.moved(drawn.images))).cpu()
    own = decided(answers, independent=lab.teacher.independent)
    same = float((own == _taught(lab, drawn)).float().mean())
    learned, taught = answers, drawn.logits.float()
    if lab.teacher.independent:  # of an image, not of a question about it
        learned, taught = paired(learned), paired(taught)
    return {"agreement": same, "kl": kl(learned, taught) * len(learned) / len(answers)}


def _views(lab: "Lab", learner: Learner) -> Iterator[Tensor]:
    """Batches of remembered images, evenly over classes, augmented and blended as the student's."""
    rng, (_, count) = lab.stream("recalibrate"), lab.processes.part(learner.table.batch)
    for _ in range(RECALIBRATED):
        pixels = lab.memory.draw(count, rng, shares=lab.shares).images
        images = augmented(to_float(lab.moved(pixels)), lab.recipe.augment, lab.difficulty, rng)
        often = lab.recipe.augment.mixup
        if often and float(torch.rand((), generator=rng)) < often:
            images = mixed_up(images, rng)
        yield images


def _taught(lab: "Lab", kept: ReplayBatch) -> Tensor:
    """What the teacher decided on stored images: its votes [N], or of independent classes [N · K]
    no (0) or yes (1)."""
    return decided(kept.logits, independent=True) if lab.teacher.independent else kept.votes
