"""What a student minimises by contrast: its embedding of an image is found again among others.

B batch, D features, M remembered embeddings, E the size of what two heads map to.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.losses.distillation.view import DistillationView, KnownBeforehand

SIZE = 128  # E
BANK = 16_384  # M at most
TEMPERATURE = 0.1


def contrasted(
    learned: Tensor, taught: Tensor, others: Tensor | None = None, same: Tensor | None = None,
    twice: Tensor | None = None, *, temperature: float = TEMPERATURE,
) -> Tensor:  # fmt: skip
    """InfoNCE: the cross-entropy of finding an image's own embedding by the teacher among those of
    the other images.

        −log( exp(s_i · t_i / T) / sum over k of exp(s_i · k / T) ),   k all t_j and `others`

    van den Oord et al. 2018 (https://arxiv.org/abs/1807.03748); as distillation Tian et al. 2020
    (https://arxiv.org/abs/1910.10699), section 3. Bounded below by 0, where the difference of a
    similarity and a sum of others, which is found in tutorials, has no bound.

    `learned` and `taught` are [B, E] and `others` [M, E], all of length 1; `same` [B, M] says which
    of the others are the image itself and do not count, `twice` [B, B] which of the batch are. The
    result is [B].
    """
    likeness = learned @ taught.T / temperature
    if twice is not None:
        others_of_batch = ~torch.eye(len(learned), dtype=torch.bool, device=learned.device)
        likeness = likeness.masked_fill(twice & others_of_batch, -1e4)
    if others is not None and len(others):
        more = learned @ others.T / temperature
        likeness = torch.cat([likeness, more if same is None else more.masked_fill(same, -1e4)], 1)
    own = torch.arange(len(learned), device=learned.device)
    return F.cross_entropy(likeness, own, reduction="none")


class InstanceContrast(nn.Module):
    """`contrasted` within a batch, with a linear head for each network."""

    def __init__(self, known: KnownBeforehand) -> None:
        super().__init__()
        ours, theirs = known.embeddings
        self.student_head = nn.Linear(ours, SIZE)
        self.teacher_head = nn.Linear(theirs, SIZE)

    def embedded(self, view: DistillationView) -> tuple[Tensor, Tensor]:
        """What the heads map to, of length 1: student and teacher, [B, E] each."""
        mine, taught = view.embeddings
        heads = self.student_head(mine), self.teacher_head(taught)
        return F.normalize(heads[0], dim=1), F.normalize(heads[1], dim=1)

    def forward(self, view: DistillationView) -> Tensor:
        """The loss of each image, [B]."""
        return contrasted(*self.embedded(view))


class MemoryContrast(InstanceContrast):
    """`contrasted` with a bank of the teacher's earlier embeddings. Each keeps the slot that its
    image has in the replay memory, and an image that is drawn again is no other to itself; one that
    comes from nowhere (fresh, real) has no slot, and nobody knows it again."""

    bank: Tensor
    slots: Tensor
    next: Tensor

    def __init__(self, known: KnownBeforehand) -> None:
        super().__init__(known)
        size = min(BANK, known.capacity) if known.capacity else BANK
        self.register_buffer("bank", torch.zeros(size, SIZE))
        self.register_buffer("slots", torch.full((size,), -2, dtype=torch.int64))  # −2: empty
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    def forward(self, view: DistillationView) -> Tensor:
        """The loss of each image, [B]; afterwards the bank holds the teacher's embeddings of this
        batch in the place of its oldest."""
        mine, taught = self.embedded(view)
        own = torch.full((len(mine),), -1) if view.slots is None else view.slots
        own = own.to(self.slots.device)
        known = (own >= 0)[:, None]
        here = (own[:, None] == self.slots[None, :]) & known
        empty = (self.slots == -2)[None, :]
        twice = (own[:, None] == own[None, :]) & known  # in this batch
        bank = self.bank.clone()  # it moves below
        loss = contrasted(mine, taught, bank, here | empty, twice)
        with torch.no_grad():
            kept = min(len(taught), len(self.bank))
            places = (self.next + torch.arange(kept, device=own.device)) % len(self.bank)
            self.bank[places] = taught.detach()[:kept]
            self.slots[places] = own[:kept]
            self.next.copy_((self.next + kept) % len(self.bank))
        return loss
