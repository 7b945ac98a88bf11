"""`synthkd inspect`: a network's card, what would be done with it, and what looks wrong."""

import json
from collections.abc import Sequence
from typing import Any

from synthkd.commands.display import Display
from synthkd.jobs.inspection import inspect
from synthkd.recipe import Recipe


def run(recipe: Recipe, *, as_json: bool = False) -> dict[str, Any]:
    """Prints the card of `recipe.teacher` and returns it as plain data."""
    display = Display(quiet=as_json)
    card, plan, findings, steps = inspect(recipe, report=display)
    if as_json:
        print(json.dumps(card, indent=2, ensure_ascii=False))
        return card
    shape, classes, norms = card["input"], card["classes"], card["batchnorm_layers"]
    names = ", ".join(card["names"][:10]) + (", …" if classes > 10 else "")
    counted = card["operations_per_image"]
    operations = f"{counted / 1e6:,.1f} million" if counted else "unknown"
    refined = card["seconds_per_10000_refined"]
    display.table("card", ("what", "value"), [
        ("network", f"{card['network']}, {card['parameters']:,} parameters, "
                    f"{operations} operations an image"),
        ("input", f"{shape['channels']} x {shape['height']} x {shape['width']}, mean "
                  f"{_numbers(shape['mean'])}, std {_numbers(shape['std'])}"),
        ("classes", f"{classes}: {names}"),
        ("answers", f"{card['answers_read']}; access: {card['access']}"),
        ("BatchNorm layers", str(norms or "none")),
        ("features", str(card["features"] or "none: the last layer is not linear")),
        ("10,000 answers", f"{card['seconds_per_10000_answers']:.1f} s on this machine, "
                           f"{card['precision']}"),
        ("answered", card["fast_answers"]),
        *([("10,000 refined images", f"{refined:.0f} s ({steps} steps each)")] if refined else []),
        ("memory", f"{card['peak_memory_mb']:,.0f} MB until now; up to about "
                   f"{card['expected_memory_mb'] / 1e3:.1f} GB in a run that remembers "
                   f"{recipe.memory.capacity:,} images"),
        ("sha256", card["sha256"]),
    ])  # fmt: skip
    display.plan(plan, f"as the pipeline {recipe.pipeline} would do it")
    display.findings(findings)
    return card


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
