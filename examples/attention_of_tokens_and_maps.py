"""A student loss of your own: attention transfer between tokens and maps, at layers by name.

    python examples/attention_of_tokens_and_maps.py

A vision transformer has no maps [B, C, H, W] but tokens [B, T, D], and attention transfer
(Zagoruyko & Komodakis 2017, https://arxiv.org/abs/1612.03928) asks where a layer looks, not what it
sees there: the mean of squares over channels is defined for both. What differs in size is resized.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import synthkd
from synthkd.losses.distillation import TERMS, DistillationView
from synthkd.losses.term import Term


def places(features: Tensor) -> Tensor:
    """Where a layer looks: maps [B, C, H, W] or tokens [B, T, D] to [B, 1, side, side]. Of tokens
    that form no square the first, which stands for the class, is left out."""
    if features.dim() == 4:
        return features.square().mean(1, keepdim=True)
    side = int(features.shape[1] ** 0.5)
    return features[:, -side * side :].square().mean(2).view(-1, 1, side, side)


def token_attention(view: DistillationView) -> Tensor:
    """Mean over pairs of layers of the squared distance of the two pictures of attention, each of
    length 1: [B]."""
    gaps = []
    for ours, theirs in view.pairs:
        mine, taught = places(view.student_features[ours]), places(view.teacher_features[theirs])
        mine = F.interpolate(mine, taught.shape[2:], mode="bilinear")
        mine, taught = (F.normalize(x.flatten(1).float(), dim=1) for x in (mine, taught))
        gaps.append((mine - taught).square().sum(1))
    return torch.stack(gaps).mean(0)


# the one line that makes it a term: [training.terms] token_attention = 20.0
TERMS["token_attention"] = Term(
    "student and teacher look at the same places, tokens or maps",
    token_attention,
    frozenset({"features"}),
)


def main(images: int = 20_000) -> synthkd.Recipe:
    """One run with it; in TOML the settings are the same."""
    recipe = synthkd.Recipe.of(
        {
            "training.terms": {"soft_targets": 1.0, "token_attention": 20.0},
            "training.student_layers": ["layer2", "layer3"],
            "training.teacher_layers": ["layer2", "layer3"],
            "budget.images": images,
        }
    )
    for round in synthkd.build(recipe):
        print(f"{round.stage} {round.share:.0%} {round.measures.get('loss', 0.0):.3f}")
    return recipe


if __name__ == "__main__":
    main()
