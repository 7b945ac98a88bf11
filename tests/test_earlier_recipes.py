"""Recipe files of earlier versions read as recipes of today, or say what is gone."""

import json
import tomllib
from pathlib import Path

import pytest

from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, Stage, load_recipe, read_toml, settings, to_toml, validated
from synthkd.recipe.earlier import AS_TERMS, REMOVED, RENAMED, RENAMED_VALUES
from synthkd.students.objective import DistillationObjective

# A whole recipe as version 0.1.0 wrote it, with a value that is not the default in every renamed
# setting.
OLD = Path(__file__).parent / "data" / "recipe-0.1.0.toml"
TODAY = {setting.key: setting for setting in settings()}


def read(path: Path, text: str) -> Recipe:
    path.write_text(text)
    return validated(read_toml(path))


def test_a_whole_recipe_of_version_0_1_0_is_read(tmp_path: Path) -> None:
    recipe = validated(read_toml(OLD))
    assert recipe.training.optimizer == "adamw"
    assert recipe.training.lr_factor_without_norm == 0.33
    assert recipe.training.terms == {
        "soft_targets": 1.0, "attention": 2500.0, "feature_match": 0.0, "logit_l1": 0.0,
    }  # fmt: skip
    found = recipe.diffusion
    assert (found.guidance_scale, found.teacher_guidance, found.label_dropout) == (1.5, 2.0, 0.2)
    assert (recipe.difficulty.start, recipe.difficulty.enabled) == (0.3, True)
    assert read(tmp_path / "again.toml", to_toml(recipe)) == recipe


def test_it_names_every_setting_that_was_renamed_replaced_or_removed() -> None:
    stated = tomllib.loads(OLD.read_text())
    keys = {f"{t}.{k}" for t, table in stated.items() if isinstance(table, dict) for k in table}
    gone = {*RENAMED, *AS_TERMS, *REMOVED, "training.loss"}
    assert keys - set(TODAY) == gone


def test_what_it_leads_to_exists_and_what_it_replaces_does_not() -> None:
    assert set(RENAMED.values()) <= set(TODAY)
    assert not {*RENAMED, *AS_TERMS, *REMOVED} & set(TODAY)
    for key, values in RENAMED_VALUES.items():
        for old, new in values.items():
            assert str(new) in TODAY[key].range.split(" | ")
            assert str(old) not in TODAY[key].range.split(" | ")
    assert not any(key.startswith("stage.") for key in {*RENAMED, *REMOVED})
    assert Stage.model_fields  # stages have kept their names


@pytest.mark.parametrize("key", REMOVED)
def test_another_value_of_a_removed_setting_is_refused_in_one_line(
    tmp_path: Path, key: str
) -> None:
    table, leaf = key.split(".")
    here = tmp_path / "old.toml"
    same = f"[{table}]\n{leaf} = {json.dumps(REMOVED[key])}\n"
    assert read(here, same) == Recipe()
    other = {"int": 7, "float": 0.123, "str": "other"}[type(REMOVED[key]).__name__]
    with pytest.raises(InputError) as said:
        read(here, f"[{table}]\n{leaf} = {json.dumps(other)}\n")
    assert "\n" not in str(said.value)
    assert all(word in str(said.value) for word in ("old.toml", key, str(other), "gone"))


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ('loss = "kl"', {"soft_targets": 1.0, "logit_l1": 0.0}),
        (
            'loss = "l1"\nattention = 0.0',
            {"soft_targets": 0.0, "logit_l1": 1.0, "attention": 0.0},
        ),
        ("features = 3.0", {"feature_match": 3.0}),
    ],
)
def test_the_old_loss_and_its_weights_are_terms(
    tmp_path: Path, text: str, terms: dict[str, float]
) -> None:
    assert read(tmp_path / "old.toml", f"[training]\n{text}\n").training.terms == terms


def test_what_an_old_file_switches_off_is_off_in_a_pipeline_that_has_it(tmp_path: Path) -> None:
    (tmp_path / "all.toml").write_text(
        (Path(__file__).parent.parent / "pipelines" / "noise.toml").read_text()
        + "\n[training.terms]\nlogit_l1 = 2.0\nattention = 5.0\nfeature_match = 3.0\n"
    )
    (tmp_path / "old.toml").write_text('[training]\nloss = "kl"\nattention = 0.0\nfeatures = 0.0\n')
    pipeline = {"pipeline": str(tmp_path / "all.toml")}
    found = load_recipe(tmp_path / "old.toml", pipeline).training
    student = Classifier(
        build_network("resnet8-w4", channels=1, size=16, classes=3),
        ImageSpec(1, 16, 16, (0.5,), (0.5,)), 3,
    )  # fmt: skip
    assert DistillationObjective(found, student).weights == {"soft_targets": 1.0}


def test_an_old_and_a_new_name_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"diffusion\.scale is now called .*guidance_scale"):
        read(tmp_path / "a.toml", "[diffusion]\nscale = 1.0\nguidance_scale = 2.0\n")


@pytest.mark.parametrize(
    "text", ["difficulty = 3", '[training]\nloss = "l3"', "[training]\nloss = []"]
)
def test_what_was_never_right_is_still_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError):
        read(tmp_path / "a.toml", text)
