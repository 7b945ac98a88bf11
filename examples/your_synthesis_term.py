"""A synthesis term of your own: images shall use the whole range from black to white.

    python examples/your_synthesis_term.py

A term is a function of a `View`, all that is known of one batch of synthetic images, to a scalar
that is minimised; its gradient runs to the images. `needs` says what of the view it looks at beyond
images, labels and the teacher's logits, so that nothing is computed for nobody.
"""

import torch
from torch import Tensor

import synthkd
from synthkd.losses.synthesis import TERMS, View
from synthkd.losses.term import Term


def contrast_range(view: View) -> Tensor:
    """−mean over images of the standard deviation of the pixels: 0 for a grey image, −0.5 at
    most."""
    return -view.images.flatten(1).std(dim=1, correction=0).mean()


# the one line that makes it a term: terms = { one_hot = 1.0, contrast_range = 2.0 }
TERMS["contrast_range"] = Term("images use the whole range from black to white", contrast_range)


def main(images: int = 20_000) -> tuple[float, float]:
    """The spread of refined images without it and with it."""
    spreads = []
    for weight in (0.0, 20.0):
        settings = {
            "budget.images": images,
            "stage.refine.terms.contrast_range": weight,
            "stage.refine.synthesis_batch": 64,
        }
        lab = synthkd.build(synthkd.Recipe.of(settings))
        list(lab)
        stored = lab.memory.everything()
        refined = torch.tensor([origin == "pixels" for origin in stored.origins])
        pixels = stored.images[refined].float() / 255
        spreads.append(float(pixels.flatten(1).std(dim=1, correction=0).mean()))
        print(f"weight {weight:g}: standard deviation of the pixels {spreads[-1]:.3f}")
    return spreads[0], spreads[1]


if __name__ == "__main__":
    main()
