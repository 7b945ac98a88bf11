"""Images by formula. Each kind is a function

    f(count, channels, height, width, rng) -> float32 [count, channels, height, width] in 0..1

for one to four channels and sides of 8 pixels or more, and a line in `DRAWINGS`.
"""

from collections.abc import Mapping

from synthkd.synthesis.drawings import fractals, leaves, noise, polygons, shaders, strokes
from synthkd.synthesis.drawings.brushes import Drawing

DRAWINGS: Mapping[str, Drawing] = {
    "noise": noise.noise,
    "spectrum": noise.spectrum,
    "leaves": leaves.leaves,
    "shaders": shaders.shaders,
    "strokes": strokes.strokes,
    "fractals": fractals.fractals,
    "polygons": polygons.polygons,
}
