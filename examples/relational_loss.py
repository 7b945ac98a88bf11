"""A student loss over pairs of images: relational knowledge distillation by distances.

    python examples/relational_loss.py

Park et al. 2019 (https://arxiv.org/abs/1904.05068), section 3.2.1: the distances between the
images of a batch, each network's divided by its own mean, shall be the same. The term that ships,
`relational_distance`, compares what enters the last layers; this one compares answers, so it needs
no layers and works between any two networks, and with black boxes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import synthkd
from synthkd.losses.distillation import TERMS, DistillationView
from synthkd.losses.term import Term


def distances(answers: Tensor) -> Tensor:
    """Euclidean distances [B, B] of answers [B, K], divided by the mean of those that are not
    0."""
    gaps = torch.cdist(answers.float(), answers.float())
    return gaps / gaps[gaps > 0].mean().clamp_min(1e-12)


def answer_distances(view: DistillationView) -> Tensor:
    """Mean over the pairs of a batch of the Huber loss between the networks' distances."""
    return F.smooth_l1_loss(distances(view.learned), distances(view.taught))


TERMS["answer_distances"] = Term(
    "pairs of images are as far apart as for the teacher", answer_distances
)


def main(images: int = 20_000) -> None:
    """One run with it."""
    recipe = synthkd.Recipe.of(
        {
            "training.terms": {"soft_targets": 1.0, "answer_distances": 10.0},
            "budget.images": images,
        }
    )
    lab = synthkd.build(recipe)
    for round in lab:
        print(f"{round.stage} {round.share:.0%} {round.measures.get('loss', 0.0):.3f}")


if __name__ == "__main__":
    main()
