"""Recipe files of earlier versions: settings that were renamed, replaced or removed still read."""

from collections.abc import Mapping
from typing import Any

from synthkd.core.errors import InputError, quoted

RENAMED: dict[str, str] = {
    "diffusion.drop": "diffusion.label_dropout",
    "diffusion.guidance": "diffusion.teacher_guidance",
    "diffusion.scale": "diffusion.guidance_scale",
    "training.unnormalised": "training.lr_factor_without_norm",
}

RENAMED_VALUES: dict[str, dict[object, object]] = {"training.optimizer": {"adam": "adamw"}}

# Weights of the student's terms that were settings of their own, and its loss. What they switched
# off has a weight of 0, so that a file laid over a pipeline switches it off there.
AS_TERMS: dict[str, str] = {
    "training.attention": "attention",
    "training.features": "feature_match",
}
LOSSES: dict[object, dict[str, float]] = {
    "kl": {"soft_targets": 1.0, "logit_l1": 0.0},
    "l1": {"soft_targets": 0.0, "logit_l1": 1.0},
}

# Settings that are gone, and the value that holds now for every run.
REMOVED: dict[str, object] = {
    "difficulty.down": 0.8,
    "difficulty.floor": 0.1,
    "difficulty.high": 0.85,
    "difficulty.low": 0.7,
    "difficulty.patience": 2,
    "difficulty.up": 1.2,
    "diffusion.guide_clip": 1.0,
    "diffusion.guide_schedule": "constant",
    "diffusion.noise": "cosine",
    "diffusion.opened_after": 0.5,
    "diffusion.prediction": "v",
    "diffusion.recurrence": 1,
    "diffusion.snr": 5.0,
    "diffusion.through": "image",
}


def of_today(data: Mapping[str, Any]) -> dict[str, Any]:
    """The plain data of a recipe file in the words of this version.

    >>> of_today({"training": {"unnormalised": 0.33, "optimizer": "adam"}})
    {'training': {'lr_factor_without_norm': 0.33, 'optimizer': 'adamw'}}

    Raises InputError where a setting that was removed has a value other than the one it had
    become, or where a setting has both its names.
    """
    result = dict(data)
    for name, table in data.items():
        if isinstance(table, Mapping):
            result[name] = _table(name, table)
    return result


def _table(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    terms: dict[str, Any] = {}
    for leaf, value in table.items():
        key = f"{name}.{leaf}"
        if key in REMOVED:
            if value != REMOVED[key]:
                raise InputError(
                    f"{key} = {quoted(value)}: this setting is gone, and every run has "
                    f"{REMOVED[key]}: omit it"
                )
        elif key in RENAMED:
            new = RENAMED[key].partition(".")[2]
            if new in table:
                raise InputError(f"{key} is now called {RENAMED[key]}, and both are given: omit it")
            result[new] = value
        elif key in AS_TERMS:
            terms[AS_TERMS[key]] = value
        elif key == "training.loss" and isinstance(value, str) and value in LOSSES:
            terms |= LOSSES[value]
        else:
            known = RENAMED_VALUES.get(key, {})
            result[leaf] = known.get(value, value) if isinstance(value, str) else value
    if terms and isinstance(result.get("terms", {}), Mapping):
        result["terms"] = terms | result.get("terms", {})
    return result
