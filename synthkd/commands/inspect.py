"""`synthkd inspect`: a network's card, what would be done with it, and what looks wrong."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from synthkd.commands.display import Display
from synthkd.core.errors import InputError
from synthkd.jobs.inspection import inspect, rank
from synthkd.recipe import Recipe


def run(
    recipe: Recipe, *, others: Sequence[str] = (), ranked: bool = False, as_json: bool = False
) -> dict[str, Any]:
    """Prints the card of `recipe.teacher` and returns it as plain data; or how it ranks among
    others."""
    display = Display(quiet=as_json)
    if ranked:
        return _rank(recipe, others, display, as_json=as_json)
    if others:
        raise InputError("several networks are compared by --rank; a card is of one")
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


def _rank(
    recipe: Recipe, others: Sequence[str], display: Display, *, as_json: bool
) -> dict[str, Any]:
    found = rank(recipe, others, report=display)
    data = {"ranking": [{**asdict(each.quality), "score": each.score} for each in found]}
    if as_json:
        print(json.dumps(data, indent=2, ensure_ascii=False))
        return data
    header = ("teacher", "score", "Fisher trace", "effective rank", "confidence", "balance")
    display.table("likely to teach best, by synthetic images alone", header, [
        (each.quality.described, f"{each.score:+.2f}", f"{each.quality.fisher_trace:.3g}",
         f"{each.quality.effective_rank:.1f} of {each.quality.features}",
         f"{each.quality.confidence:.3f}", f"{each.quality.balance:.3f}")
        for each in found
    ])  # fmt: skip
    return data


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
