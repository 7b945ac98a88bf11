"""A student loss with weights and a memory of its own: contrastive distillation with a head and a
bank.

    python examples/contrastive_loss.py

After Tian et al. 2020 (https://arxiv.org/abs/1910.10699), in its InfoNCE form: the student's
embedding of an image shall be nearer to the teacher's of the same image than to those of others,
of this batch and of a bank of earlier ones. The head learns with the student, is saved with the
run, and is no part of the student that ships.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import synthkd
from synthkd.losses.distillation import TERMS, DistillationView, KnownBeforehand
from synthkd.losses.term import Term

SIZE, BANK, TEMPERATURE = 64, 1024, 0.1


class Contrastive(nn.Module):
    """The term: a linear head for each network, and a bank of the teacher's embeddings."""

    bank: Tensor

    def __init__(self, known: KnownBeforehand) -> None:
        super().__init__()
        ours, theirs = known.pairs[-1]
        self.student_head = nn.Linear(known.student[ours][0], SIZE)
        self.teacher_head = nn.Linear(known.teacher[theirs][0], SIZE)
        self.register_buffer("bank", F.normalize(torch.randn(BANK, SIZE), dim=1))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    def forward(self, view: DistillationView) -> Tensor:
        """Cross-entropy of finding each image among B + BANK others: [B]."""
        ours, theirs = view.pairs[-1]
        mine = self.student_head(view.student_features[ours].float().mean((2, 3)))
        taught = self.teacher_head(view.teacher_features[theirs].float().mean((2, 3)))
        mine, taught = F.normalize(mine, dim=1), F.normalize(taught, dim=1)
        likeness = mine @ torch.cat([taught, self.bank]).T / TEMPERATURE  # [B, B + BANK]
        own = torch.arange(len(mine), device=mine.device)
        loss = F.cross_entropy(likeness, own, reduction="none")
        with torch.no_grad():
            places = (self.next + own) % BANK
            self.bank[places] = taught.detach()
            self.next.copy_((self.next + len(mine)) % BANK)
        return loss


TERMS["contrastive"] = Term(
    "an image is found again among others", module=Contrastive, needs=frozenset({"features"})
)


def main(images: int = 20_000) -> None:
    """One run with it."""
    terms = {"soft_targets": 1.0, "contrastive": 0.5}
    lab = synthkd.build(synthkd.Recipe.of({"training.terms": terms, "budget.images": images}))
    for round in lab:
        print(f"{round.stage} {round.share:.0%} {round.measures.get('loss', 0.0):.3f}")


if __name__ == "__main__":
    main()
