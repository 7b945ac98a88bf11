"""Ways of inventing images. Each is a file here, a line in `GENERATORS`, and follows
`Generator`."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from synthkd.recipe import Recipe
from synthkd.synthesis.context import SynthesisContext, SyntheticBatch
from synthkd.synthesis.diffusion.generator import Diffusion
from synthkd.synthesis.episodes import Episodes
from synthkd.synthesis.gan import Gan
from synthkd.synthesis.pixels import Pixels
from synthkd.synthesis.procedural import Procedural
from synthkd.teachers.protocol import Teacher


class Generator(Protocol):
    """Invents images for a teacher. One verb, and its state."""

    def synthesize(self, context: SynthesisContext, rng: Any) -> SyntheticBatch:
        """Improves itself by the scene's steps, then offers images; all randomness comes from
        `rng`."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""


GENERATORS: Mapping[str, Callable[[Recipe, Teacher], Generator]] = {
    "gan": Gan,
    "episodes": Episodes,
    "pixels": Pixels,
    "procedural": Procedural,
    "diffusion": Diffusion,
}
