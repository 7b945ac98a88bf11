"""Ways of making images. Each is a file here, a line in `GENERATORS`, and a `Generator`."""

from synthkd.synthesis.diffusion.generator import Diffusion
from synthkd.synthesis.episodes import Episodes
from synthkd.synthesis.gan import Gan
from synthkd.synthesis.pixels import Pixels
from synthkd.synthesis.procedural import Procedural
from synthkd.synthesis.protocol import Abilities, Generator

__all__ = ["GENERATORS", "Abilities", "Generator", "readers"]

GENERATORS: dict[str, type[Generator]] = {
    "gan": Gan,
    "episodes": Episodes,
    "pixels": Pixels,
    "procedural": Procedural,
    "diffusion": Diffusion,
}


def readers() -> dict[str, list[str]]:
    """The generators that read a table of the recipe, by its name.

    >>> readers()["diffusion"]
    ['diffusion']
    """
    found: dict[str, list[str]] = {}
    for name, maker in GENERATORS.items():
        for table in maker.abilities.reads:
            found.setdefault(table, []).append(name)
    return found
