"""The benchmarks can be read and started; what they measure is in docs/log.md."""

import doctest
import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from synthkd.core.errors import InputError
from synthkd.engine.estimate import RoundCost
from synthkd.losses.distillation import TERMS
from synthkd.networks import build_network
from synthkd.recipe import Recipe, Stage

FILES = sorted((Path(__file__).parent.parent / "benchmarks").glob("*.py"))


def test_there_are_benchmarks():
    assert len(FILES) >= 6


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_benchmark_can_be_imported(path, monkeypatch):
    monkeypatch.syspath_prepend(str(path.parent))
    assert runpy.run_path(str(path), run_name="imported")["__doc__"]


@pytest.mark.parametrize("name", ["claims", "pruned_families", "search", "variants"])
def test_the_examples_of_a_benchmark_hold(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FILES[0].parent))
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scaling", "diffusion", "slim", "search"])
def test_a_benchmark_tells_how_it_is_used(name):
    path = next(path for path in FILES if path.stem == name)
    said = subprocess.run(
        [sys.executable, str(path), "--help"], capture_output=True, text=True, check=True
    )
    assert "usage:" in said.stdout


@pytest.fixture
def script(monkeypatch):
    """Imports a benchmark by its name."""
    monkeypatch.syspath_prepend(str(FILES[0].parent))
    return importlib.import_module


def test_a_row_that_is_there_is_not_made_again(script, tmp_path):
    made = []
    for _ in range(2):
        rows = script("rows").Rows(tmp_path / "out")
        assert rows.make("a-1", lambda: made.append(1) or {"value": 2.5}) == {
            "name": "a-1", "value": 2.5,
        }  # fmt: skip
    assert made == [1] and rows.like("a-") == [rows.by_name["a-1"]] and not rows.like("b")


def test_means_with_their_spread(script):
    rows = script("rows")
    assert rows.spread([1.0, 2.0, 3.0], 2) == "2.00 ± 1.00"
    assert (rows.spread([2.0]), rows.spread([])) == ("2.0", "-")
    # variances 1 and 4, three values each: the root of 5/3
    assert rows.difference([1.0, 2.0, 3.0], [0.0, 2.0, 4.0]) == "+0.00 ± 1.29"


def test_kinds_of_work_go_by_turns_and_what_differs_is_counted(script, capsys):
    order = []

    def work(kind, seconds):
        def done(out):
            assert not out.exists()
            out.write_text(kind)
            order.append(kind)
            return seconds.pop(0)

        return done

    kinds = {"plain": work("plain", [1.0, 2.0, 9.0]), "sealed": work("sealed", [4.0, 2.0, 3.0])}
    found, outcomes = script("rows").by_turns(kinds, 3, lambda out: out.read_text())
    assert order == ["plain", "sealed"] * 3
    assert found == {"plain": [1.0, 2.0, 9.0], "sealed": [4.0, 2.0, 3.0]}
    assert outcomes == 2
    assert "sealed: 3.00 ± 1.00 s, ratio of the medians 1.500" in capsys.readouterr().out


LAPS = """a 0 2.0 100 0
a 1 5.0 200 0
b 2 8.0 200 64
b 3 11.0 200 128
b 4 12.5 200 160"""


def test_what_a_round_costs_is_read_from_a_run_and_foretells_others(script, tmp_path):
    """Rounds of 2.5 s that make 100 images, and of 3 s that learn 64, of which the last is a
    half."""
    costs = script("cost_model")
    keys = ("stage", "round", "seconds", "synthesized", "images_seen")
    rows = [dict(zip(keys, [stage, *map(float, rest)], strict=True))
            for stage, *rest in map(str.split, LAPS.splitlines())]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stages = [
        Stage(name="a", share=0.5, student_steps=0, synthesis_steps=0),
        Stage(name="b", share=0.5, student_steps=2),
    ]
    found = costs.costs_of(tmp_path, stages)
    assert found == {
        "a": RoundCost(2.5, 0.0, 0.0, 100.0, 0.0), "b": RoundCost(0.0, 0.0, 3.0, seen=64.0),
    }  # fmt: skip
    given = {"repeats": 1, "whole": 2}
    # 160 images: two rounds of a, two and a half of b
    alone = costs.predicted(stages, found, 160, count=1, exchange=0.0, **given)
    assert alone == pytest.approx(2 * 2.5 + 2.5 * 3.0)
    two = costs.predicted(stages, found, 160, count=2, exchange=0.1, **given)
    assert two == pytest.approx(1 * 2.5 + 2.5 * (1.5 + 2 * 0.1))
    four = costs.predicted(stages, found, 160, count=4, exchange=0.1, **given)  # at half the speed
    assert four == pytest.approx(1 * 5.0 + 2.5 * (1.5 + 2 * 0.1))


def test_seconds_of_shards_by_several_workers(script):
    by_workers = script("cost_model").by_workers
    assert by_workers(100.0, 80.0, 8, 1) == 100.0
    assert by_workers(100.0, 80.0, 8, 2) == 20.0 + 40.0
    assert by_workers(100.0, 80.0, 8, 3) == 20.0 + 30.0  # two workers have three shards


def test_rows_of_other_numbers_are_refused(script, tmp_path):
    begun_with, path = script("rows").begun_with, tmp_path / "out" / "begun.json"
    for _ in range(2):
        begun_with(path, {"minutes": 20, "limit": 0.75})
    with pytest.raises(SystemExit, match=r"minutes 20, now 1\): choose another OUT"):
        begun_with(path, {"minutes": 1, "limit": 0.75})
    assert json.loads(path.read_text()) == {"minutes": 20, "limit": 0.75}


def test_a_benchmark_without_all_results_ends_with_an_error(script, monkeypatch, tmp_path):
    complete = script("rows").complete
    complete([])
    with pytest.raises(SystemExit, match="a-1, a-2"):
        complete(["a-1", "a-2"])
    without_data = script("without_data")
    monkeypatch.setattr(without_data, "finished", lambda *_: False)
    missing = without_data.collect("digits", tmp_path, {}, 1)
    assert missing == [f"digits/{run}" for run in without_data.runs_of("digits")]


def test_a_run_that_was_killed_while_it_was_made_is_begun_anew(script, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text("")
    code = script("jobs").distil(
        tmp_path / "run", ["--images-seen", "few"], str(FILES[0].parents[1])
    )
    said = (tmp_path / "run.log").read_text()
    assert code == 2 and "few" in said and "resume" not in said


def test_what_was_stopped_is_not_taken_for_a_refusal(script, tmp_path):
    search, place = script("search"), tmp_path / "demo-auto-s0"
    place.with_suffix(".log").write_text("error: too slow\n")
    with pytest.raises(InputError, match="too slow"):
        search.ended(2, place, place)
    for code in (-9, 1, 130, 143):
        with pytest.raises(SystemExit, match=f"{code}: error: too slow"):
            search.ended(code, place, place)


PIPELINES = {"ablation": "adaptive", "generation": "gan", "stages": "gan"}


def test_every_variant_is_a_recipe(script):
    for group, variants in script("variants").GROUPS.items():
        for settings in variants.values():
            recipe = Recipe.of({"pipeline": PIPELINES.get(group, "synthkd"), **settings})
            assert set(recipe.training.terms) <= set(TERMS)
            assert set(recipe.run.stages) <= {stage.name for stage in recipe.stage}


def test_every_row_of_the_claims_is_a_recipe_of_known_variants(script):
    claims, variants = script("claims"), script("variants")
    places = {**script("jobs").places_of("data", "chest.pt"), "sets": "sets"}
    for row in claims.ROWS.values():
        flags = variants.flags_of(row.words.format(**places).split())
        assert flags.get("data.synthetic", "sets/digits").removeprefix("sets/") in claims.SETS
        for name in row.only or variants.GROUPS[row.group]:
            Recipe.of({**flags, **variants.GROUPS[row.group][name]})
    for words in claims.SETS.values():
        assert "--count" in words
        assert Recipe.of(variants.flags_of(words.format(**places).split()))


def test_the_best_variants_get_more_seeds_and_a_refused_one_none(script, tmp_path, monkeypatch):
    """Of three, the first and the one whose student agrees more often."""
    variants, asked = script("variants"), []
    held_out = {"even": 0.1, "easy first": 0.2, "boundary": 0.3}

    def run(settings, test, seconds, rate, seed, copies):
        [name] = [n for n in held_out if variants.GROUPS["replay"][n].items() == settings.items()]
        asked.append((name, seed))
        return {"refused": "no"} if name == "easy first" else {**SCORED, "held_out": held_out[name]}

    monkeypatch.setattr(variants, "run", run)
    words = ["variants.py", str(tmp_path / "out.json"), "replay", "--test", "demo:unseen",
             "--only", ",".join(held_out), "--best", "1", "--seeds", "2", "--"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    variants.main()
    assert asked == [
        ("even", 0), ("easy first", 0), ("boundary", 0), ("even", 1), ("boundary", 1),
    ]  # fmt: skip


SCORED = {
    "held_out": 0.5, "ms": 1.0, "teacher_ms": 2.0, "accuracy": 0.25, "agreement": 0.5,
    "transfer": None, "to_95": 3.0, "made": {},
}  # fmt: skip


def test_options_after_the_group_count_and_what_diverged_is_told(
    script, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out.json"
    lost = {"diverged": "the loss is no longer finite"}
    out.write_text(json.dumps({
        "even": {"1.0 0": SCORED, "1.0 1": SCORED, "1.0 2": lost}, "boundary": {"1.0 0": lost},
        "prioritised": {"1.0 0": {"refused": "no"}},
    }))  # fmt: skip
    words = ["variants.py", str(out), "replay", "--table", "--seconds", "5", "--", "--teacher", "x"]
    monkeypatch.setattr(sys, "argv", words)
    script("variants").main()
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == ["even", "prioritised", "boundary"]
    assert "25.00 ± 0.00 | - | 1.000" in lines[0] and "| - |" in lines[0]
    assert lines[0].endswith("| 2, 1 diverged |")
    assert "refused: no" in lines[1] and "diverged: the loss is no longer finite" in lines[2]


@pytest.mark.slow
def test_a_variant_that_diverges_is_a_result(script):
    settings = {
        "student.spec": "resnet8-w4", "run.threads": 1, "training.batch": 64,
        "stage.refine.synthesis_steps": 2, "stage.refine.synthesis_batch": 64,
        "stage.refine.fresh": 64,
    }  # fmt: skip
    found = script("variants").run(settings, "demo:unseen", 4.0, 1e30, 0)
    assert list(found) == ["diverged"] and "finite" in found["diverged"]


@pytest.mark.slow
def test_a_variant_is_scored_at_the_end_and_on_its_way(script):
    settings = {
        "student.spec": "resnet8-w4", "run.threads": 1, "training.batch": 64,
        "stage.refine.synthesis_steps": 2, "stage.refine.synthesis_batch": 64,
        "stage.refine.fresh": 64,
    }  # fmt: skip
    found = script("variants").run(settings, "demo:unseen", 8.0, 1.0, 0, "demo:unseen")
    assert found["accuracy"] == found["copies"] and 0 < found["to_95"] <= 8
    assert 0 < len(found["curve"]) <= 12 and found["made"]["balance"] > 0.5
    assert min(found["ms"], found["steps"], found["images"]) > 0


def test_widths_learned_apart_alone_have_no_export(script, tmp_path, capsys):
    slim = script("slim")
    for share in slim.SHARES:
        told = {"widths": {f"{share:g}": {"accuracy": 0.5}}, "seconds": 1.0, "images_seen": 10}
        slim.scores_of(tmp_path / f"digits-{share:g}-s0").write_text(json.dumps(told))
    slim.table(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("| digits | 0.5 ")] == [
        "| digits | 0.5 | 50.00 (1) | - | - | - | - | - | - | - |"
    ]


def test_teachers_of_random_weights_are_read_from_a_file(script, tmp_path):
    speed = script("speed")
    teacher = speed.teacher_of(32, 10, tmp_path)
    settings = {**speed.OLD, "training.batch": 32, "budget.images": 64}
    lab = speed.lab_of(teacher, {**settings, "run.stages": ("draw", "study")})
    assert lab.teacher.classes == 10 and lab.learner is not None


@pytest.mark.slow
def test_teachers_are_ranked_without_data(script, tmp_path):
    found = {}
    for seed, name in enumerate(("one", "other")):
        torch.manual_seed(seed)
        network = build_network("resnet8-w4", channels=1, size=16, classes=10)
        path = tmp_path / f"{name}.safetensors"
        save_file(network.state_dict(), path)
        found[name] = {"spec": "resnet8-w4", "weights": str(path), "image_size": 16,
                       "channels": 1, "mean": (0.3,), "std": (0.3,)}  # fmt: skip
    told = script("teacher_quality").ranked(tmp_path, found)
    assert set(told) == {"one", "other"} and all("score" in scores for scores in told.values())


def test_a_rule_is_judged_by_data_that_it_was_not_fitted_with(script):
    """Three data sets on a line, one of them elsewhere: what is fitted without it misses it by so
    much, and one that sees it does not."""
    fits = script("without_data_fit")
    rng = np.random.default_rng(0)
    features = rng.uniform(0.2, 1.2, (90, 1))
    data = np.repeat(["a", "b", "c"], 30)
    truth = features[:, 0] + 0.1 * (data == "c")
    guess, reach = fits.left_out(features, truth, data, fits.as_it_is)
    assert np.allclose(guess, features[:, 0]) and reach[data == "a"].max() == pytest.approx(0.1)
    assert np.allclose(reach[data == "c"], 0)  # what a and b, which it saw, tell of it
    guess, _ = fits.left_out(features, truth, data, fits.fit)
    assert np.abs(guess - truth)[data == "c"].mean() == pytest.approx(0.1, abs=0.02)
    line = fits.fit(features, truth, fits.even(data))
    assert np.abs(line(features) - truth)[data != "c"].max() < 0.1
    shares = np.array([0.0, 0.25, 1.0])
    assert np.allclose(fits.share_of(fits.angle(shares)), shares)
    same = [{"run": run, "share": 1.0, "held_out": 0.5, "agreement": 0.3} for run in ("x", "y")]
    assert [row["run"] for row in fits.distinct(same)] == ["x"]
