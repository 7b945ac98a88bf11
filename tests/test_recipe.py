"""Recipes: how layers are merged, what is refused in which words, and the text they are kept as."""

import json
import math
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from synthkd import recipe
from synthkd.core.errors import InputError
from synthkd.recipe.toml import TOML_DOTS

PIPELINE = """
[budget]
images = 5_000
[memory]
capacity = 100
[difficulty]
ceiling = 1.0
[[stage]]
name = "warm"
student_steps = 0
terms = { one_hot = 1.0, balance = 2.0 }
[[stage]]
name = "learn"
share = 0.5
"""


@pytest.fixture
def pipeline(tmp_path):
    path = tmp_path / "pipeline.toml"
    path.write_text(PIPELINE)
    return str(path)


@pytest.fixture
def toml(tmp_path):
    """Writes a TOML file and returns its path."""

    def write(content):
        path = tmp_path / "recipe.toml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def refusal(path):
    """The line that says what is wrong with a file."""
    with pytest.raises(InputError) as caught:
        recipe.read_toml(path)
    line = str(caught.value)
    assert "\n" not in line and "\x1b" not in line
    assert path.name in line
    assert len(line) < 600
    return line


# --- merging


def test_flags_win_over_the_config_and_the_config_over_the_pipeline(pipeline, toml):
    config = toml("[memory]\ncapacity = 200\nreplayed = 0.25\n[run]\nseed = 3\n")
    built = recipe.load_recipe(config, {"pipeline": pipeline, "memory": {"capacity": "300"}})
    assert (built.memory.capacity, built.memory.replayed, built.run.seed) == (300, 0.25, 3)
    assert recipe.load_recipe(config, {"pipeline": pipeline}).memory.capacity == 200
    assert recipe.load_recipe(None, {"pipeline": pipeline}).memory.capacity == 100
    assert recipe.load_recipe(None, {"pipeline": pipeline}).memory.replayed == 0.75


def test_a_config_may_name_the_pipeline_and_a_flag_overrules_it(pipeline, toml, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text("[memory]\ncapacity = 7\n")
    config = toml(f'pipeline = "{other}"\n')
    assert recipe.load_recipe(config).memory.capacity == 7
    assert recipe.load_recipe(config).pipeline == str(other)
    assert recipe.load_recipe(config, {"pipeline": pipeline}).memory.capacity == 100


def test_stages_of_a_config_replace_those_of_the_pipeline(pipeline, toml):
    config = toml('[[stage]]\nname = "only"\n')
    assert [s.name for s in recipe.load_recipe(config, {"pipeline": pipeline}).stage] == ["only"]


def test_a_stage_flag_changes_one_setting_of_one_stage(pipeline):
    changed = {"warm": {"student_steps": "4", "terms": {"one_hot": "0.5"}}}
    warm, learn = recipe.load_recipe(None, {"pipeline": pipeline}, changed).stage
    assert (warm.student_steps, warm.terms) == (4, {"one_hot": 0.5, "balance": 2.0})
    assert learn == recipe.load_recipe(None, {"pipeline": pipeline}).stage[1]


def test_a_flag_for_an_unknown_stage_suggests_the_right_one(pipeline):
    with pytest.raises(InputError, match="did you mean 'learn'"):
        recipe.load_recipe(None, {"pipeline": pipeline}, {"lern": {"share": "1"}})


def test_only_the_named_stages_run_in_their_own_order(pipeline):
    built = recipe.load_recipe(None, {"pipeline": pipeline, "run": {"stages": "learn,warm"}})
    assert [s.name for s in built.stages] == ["warm", "learn"]
    built = recipe.load_recipe(None, {"pipeline": pipeline, "run": {"stages": "learn"}})
    assert [s.name for s in built.stages] == ["learn"]
    with pytest.raises(InputError, match="did you mean 'learn'"):
        recipe.load_recipe(None, {"pipeline": pipeline, "run": {"stages": "lurn"}})


def test_a_budget_takes_the_place_of_the_other_kind_in_a_lower_layer(pipeline):
    built = recipe.load_recipe(None, {"pipeline": pipeline, "budget": {"minutes": "2"}})
    assert (built.budget.minutes, built.budget.images) == (2.0, None)


def test_two_budgets_in_one_layer_are_refused(pipeline, toml):
    config = toml("[budget]\nminutes = 5\nimages = 3\n")
    with pytest.raises(InputError, match="--minutes or --images-seen, not both"):
        recipe.load_recipe(config, {"pipeline": pipeline})


def test_settings_over_a_recipe_are_settings_over_its_pipeline():
    """What nobody set is not taken for chosen: the default student, say, where images are large."""
    low, high = {"pipeline": "gan", "training.batch": 32}, {"run.seed": 3, "budget.minutes": 2.0}
    one = recipe.from_settings(low | high)
    other = recipe.from_settings(high, recipe.from_settings(low))
    assert one == other
    for name in type(one).model_fields:
        table, same = getattr(one, name), getattr(other, name)
        if isinstance(table, recipe.Table):
            assert table.model_fields_set == same.model_fields_set
    assert "spec" not in other.student.model_fields_set
    assert "seed" in other.run.model_fields_set


def test_a_term_that_is_added_over_a_recipe_stands_beside_its_own():
    for base in (None, recipe.Recipe(), recipe.from_settings({})):
        for terms in ("attention=5", {"attention": 5.0}):
            found = recipe.from_settings({"training.terms": terms}, base).training.terms
            assert found == {"soft_targets": 1.0, "attention": 5.0}


def test_merging_leaves_its_arguments_alone():
    low, high = {"run": {"seed": 1, "threads": 2}}, {"run": {"seed": 5}}
    assert recipe.merge(low, high) == {"run": {"seed": 5, "threads": 2}}
    assert (low, high) == ({"run": {"seed": 1, "threads": 2}}, {"run": {"seed": 5}})


def test_relations_are_judged_after_merging(pipeline, toml):
    """0.95 is above the ceiling that the program has, not above the one that the pipeline sets."""
    config = toml("[difficulty]\nstart = 0.95\n")
    assert recipe.load_recipe(config, {"pipeline": pipeline}).difficulty.start == 0.95
    with pytest.raises(InputError, match="start must not exceed ceiling"):
        recipe.load_recipe(config, {"pipeline": pipeline, "difficulty": {"ceiling": "0.9"}})


def test_an_unknown_pipeline_is_one_line():
    with pytest.raises(InputError, match="--pipeline: no pipeline 'defualt'"):
        recipe.load_recipe(None, {"pipeline": "defualt"})


def test_a_recipe_cannot_be_changed(pipeline):
    built = recipe.load_recipe(None, {"pipeline": pipeline})
    with pytest.raises(ValidationError):
        built.run.seed = 4


# --- what a file may not say


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[memory]\ncapcity = 1\n", "unknown key 'memory.capcity'; did you mean 'capacity'?"),
        ("[memry]\ncapacity = 1\n", "unknown key 'memry'; did you mean 'memory'?"),
        ("seed = 1\n", "unknown key 'seed'"),
        ('[[stage]]\nname = "a"\nshair = 1\n', "'stage.0.shair'; did you mean 'share'?"),
        ("[[stage]]\nshare = 1\n", "stage.0.name"),
    ],
)
def test_unknown_keys_are_refused_with_a_suggestion(toml, text, says):
    assert says in refusal(toml(text))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[memory]\ncapacity = "5"\n', "memory.capacity"),
        ("[memory]\ncapacity = 5.0\n", "memory.capacity"),
        ("[memory]\ncapacity = true\n", "memory.capacity"),
        ("[augment]\nflip = 1\n", "augment.flip"),
        ('[augment]\nflip = "true"\n', "augment.flip"),
        ('[augment]\nshift = "0.1"\n', "augment.shift"),
        ("[teacher]\nspec = 5\n", "teacher.spec"),
        ('[teacher]\nmean = "0.5"\n', "teacher.mean"),
        ("[teacher]\nmean = 0.5\n", "teacher.mean"),
        ("[run]\nseed = 2020-01-01\n", "run.seed"),
        ("memory = 5\n", "memory"),
        ("stage = [1]\n", "stage.0"),
        ("[stage.warm]\nshare = 1.0\n", "stage"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_its_key(toml, text, key):
    assert f"{key}" in refusal(toml(text)).split(".toml': ")[1].split(": ")[0]


def test_a_whole_number_may_stand_for_a_real_one(toml):
    assert recipe.read_toml(toml("[budget]\nminutes = 5\n")) == {"budget": {"minutes": 5}}


@pytest.mark.parametrize(
    "text",
    [
        "[data]\nmix_ratio = 1.3\n",
        "[data]\nmix_ratio = -0.1\n",
        "[run]\nseed = -1\n",
        "[run]\nseed = 2147483648\n",
        "[run]\nseed = nan\n",
        "[augment]\nshift = nan\n",
        "[budget]\nminutes = inf\n",
        "[budget]\nminutes = 1e999\n",
        "[budget]\nminutes = 0\n",
        '[run]\ndevice = "gpu"\n',
        '[training]\noptimizer = "sgdd"\n',
        '[[stage]]\nname = "Two Words"\n',
        '[[stage]]\nname = "a"\nterms = { one_hot = nan }\n',
    ],
)
def test_a_value_out_of_range_is_refused(toml, text):
    refusal(toml(text))


# --- the same for flags


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"data": {"mix_ratio": "1.3"}}, "data.mix_ratio"),
        ({"data": {"mix_ratio": "much"}}, "got 'much'"),
        ({"data": {"mix_ratio": "nan"}}, "data.mix_ratio"),
        ({"memory": {"capcity": "1"}}, "did you mean 'capacity'"),
        ({"teacher": {"channels": "3", "mean": "0.5,0.5"}}, "2 numbers for 3 channels"),
        ({"teacher": {"mean": ""}}, "--teacher-mean is empty"),
        ({"teacher": {"std": "0.5,0"}}, "must be positive"),
        ({"teacher": {"mean": "a,b"}}, "teacher.mean.0"),
    ],
)
def test_a_wrong_flag_is_one_line(pipeline, flags, says):
    with pytest.raises(InputError) as caught:
        recipe.load_recipe(None, {"pipeline": pipeline, **flags})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flags_write_lists_with_commas(pipeline):
    built = recipe.load_recipe(
        None, {"pipeline": pipeline, "teacher": {"mean": "0.5, 0.25", "std": "1"}}
    )
    assert (built.teacher.mean, built.teacher.std) == ((0.5, 0.25), (1.0,))


def test_a_mix_ratio_with_real_data_is_accepted(pipeline):
    built = recipe.load_recipe(
        None, {"pipeline": pipeline, "data": {"mix_ratio": "0.5", "real": "somewhere"}}
    )
    assert built.data.mix_ratio == 0.5


def test_the_escape_codes_of_a_stranger_are_shown_not_sent(toml):
    assert "\\x1b" in refusal(toml('[memory]\n"\\u001b[31mcapacity" = 1\n'))
    assert "\\x1b" in refusal(toml('[training]\noptimizer = "\\u001b[2J"\n'))


# --- files that are no recipes


@pytest.mark.parametrize(
    "content",
    [
        "x = " + "[" * 3_000,
        "x = " + "[" * 300 + "]" * 300,
        "x = " + "{a = " * 3_000,
        "a" + ".a" * 20_000 + " = 1",
        "x = {a" + ".a" * 20_000 + " = 1}",
        '"="' + ".a" * 20_000 + " = 1",
        '"\u2028"' + ".a" * 20_000 + " = 1",
        "[a" + ".a" * 20_000 + "]",
        "[run]\nseed = " + "9" * 5_000,
        "[run]\nseed = " + "9" * 4_000,
        b"\xff\xfe[run]",
        b"\x00" * 100,
        "# " + "x" * 2_000_000,
        "[run\n",
        "[run]\nseed = 1\nseed = 2\n",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_hostile_file_is_one_line_at_once(toml, content):
    path = toml(content)
    start = time.process_time()
    refusal(path)
    assert time.process_time() - start < 2


def test_the_slowest_keys_that_are_allowed_do_not_keep_us_long(toml):
    lines = (f"a{i}" + ".a" * TOML_DOTS + " = 1" for i in range(240))
    path = toml("\n".join(lines))
    start = time.process_time()
    refusal(path)
    assert time.process_time() - start < 2


def test_a_mark_that_editors_put_first_is_no_part_of_a_recipe(tmp_path):
    for number, text in enumerate(("[budget]\nminutes = 5\n", "# nothing\n")):
        path = tmp_path / f"{number}.toml"
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        wanted = {} if number else {"budget": {"minutes": 5}}
        assert recipe.read_toml(path) == wanted


def test_a_missing_file_a_directory_and_an_impossible_name_are_one_line(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    assert "cannot be read" in refusal(tmp_path / "folder.toml")
    with pytest.raises(InputError, match="cannot be read"):
        recipe.load_recipe(None, {"pipeline": "a\0.toml"})


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_a_device_without_an_end_is_not_read_to_its_end(tmp_path):
    (tmp_path / "link.toml").symlink_to("/dev/zero")
    assert "too large" in refusal(tmp_path / "link.toml")


# --- kept as text


NAMED = {  # settings that hold names and numbers, as a plan writes them
    "pixels.scales": {0.5: 0.5, 0.75: 0.35, 1.0: 0.15},
    "training.scales": {0.5: 0.7, 1.0: 0.3},
    "training.terms": {"soft_targets": 1.0, "hint": 0.5},
    "memory.shares": {"pixels": 0.6},
    "teacher.args": {"width": "16"},
    "student.args": {"depth": "8"},
}


def test_every_setting_that_holds_names_comes_back_from_a_file(toml):
    held = {
        f"{table}.{key}"
        for table, values in recipe.Recipe().model_dump().items() if isinstance(values, dict)
        for key, value in values.items() if isinstance(value, dict)
    }  # fmt: skip
    assert held == set(NAMED)  # a new one has its line above
    tables = {}
    for name, value in NAMED.items():
        table, key = name.split(".")
        tables.setdefault(table, {})[key] = value
    built = recipe.validated(tables)
    assert {name: getattr(getattr(built, name.split(".")[0]), name.split(".")[1])
            for name in NAMED} == NAMED  # fmt: skip
    assert recipe.validated(recipe.read_toml(toml(recipe.to_toml(built)))) == built


def test_the_defaults_come_back_from_their_text(toml):
    plain = recipe.Recipe()
    assert recipe.validated(recipe.read_toml(toml(recipe.to_toml(plain)))) == plain


@given(
    out=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    mean=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    rate=st.floats(0, 1e300, exclude_min=True),
    seed=st.integers(0, 2**31 - 1),
    capacity=st.integers(0, 10**12),
    flip=st.booleans(),
    size=st.none() | st.integers(8, 1024),
    terms=st.dictionaries(
        st.sampled_from(["one_hot", "statistics", "spread"]), st.floats(-1e9, 1e9)
    ),
    stages=st.sampled_from([(), ("one",), ("one", "two")]),
)
def test_any_recipe_comes_back_from_its_text(
    tmp_path_factory, out, mean, rate, seed, capacity, flip, size, terms, stages
):
    built = recipe.validated(
        {
            "teacher": {"mean": mean, "image_size": size},
            "run": {"out": out, "seed": seed, "stages": stages},
            "memory": {"capacity": capacity},
            "augment": {"flip": flip},
            "training": {"learning_rate": rate},
            "stage": [{"name": "one", "terms": terms}, {"name": "two"}],
        }
    )
    text = recipe.to_toml(built)
    assert recipe.validated(tomllib.loads(text)) == built
    path = tmp_path_factory.mktemp("text") / "recipe.toml"
    path.write_text(text, encoding="utf-8", newline="")
    assert recipe.validated(recipe.read_toml(path)) == built


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_plain_data_of_any_kind_is_a_recipe_or_one_line(value):
    fields = ({"run": {"seed": value}}, {"teacher": {"mean": value}})
    for place in ({"run": value}, {"stage": value}, *fields):
        try:
            built = recipe.validated(place)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert all(math.isfinite(m) for m in built.teacher.mean or ())


# --- what flags, help and the README are made from


def test_the_settings_are_exactly_the_leaves_of_a_recipe():
    def leaves(data, prefix=""):
        for key, value in data.items():
            if isinstance(value, dict) and key not in ("shares", "args", "terms", "scales"):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    kept = dict(leaves(recipe.Recipe().model_dump(exclude={"stage"})))
    assert {s.key: s.default for s in recipe.settings()} == kept


def test_shares_are_written_as_pairs_on_a_command_line():
    built = recipe.load_recipe(None, {"memory": {"shares": "pixels=0.6, gan=0.2"}})
    assert built.memory.shares == {"pixels": 0.6, "gan": 0.2}
    with pytest.raises(InputError, match=r"memory\.shares"):
        recipe.load_recipe(None, {"memory": {"shares": "pixels"}})


def test_ranges_are_told_in_words():
    told = {s.key: s.range for s in recipe.settings()}
    assert told["data.mix_ratio"] == "0..1" or told["data.mix_ratio"] == "0.0..1.0"
    assert told["training.optimizer"] == "sgd | adamw"
    assert told["run.seed"] == ">= 0"
    assert told["budget.minutes"] == "> 0"
    assert told["teacher.spec"] == ""


def test_plain_json_of_a_recipe_is_finite():
    json.dumps(recipe.Recipe().model_dump(), allow_nan=False)


def test_a_file_cannot_choose_what_is_called(tmp_path: Path) -> None:
    """With arguments of its own a SPEC like subprocess:run would run any command."""
    for table, key in (("teacher", "spec"), ("student", "spec"), ("evaluation", "extractor")):
        (tmp_path / "a.toml").write_text(f'[{table}]\n{key} = "subprocess:run"\n')
        with pytest.raises(InputError, match="is named in a file and would be called"):
            recipe.load_recipe(tmp_path / "a.toml")
        trusted = recipe.load_recipe(tmp_path / "a.toml", {"run": {"trust_code": True}})
        assert getattr(getattr(trusted, table), key) == "subprocess:run"
    flags = {"teacher": {"spec": "mine.nets:make"}}
    (tmp_path / "a.toml").write_text('[teacher]\nargs = { depth = "8" }\n')
    assert recipe.load_recipe(tmp_path / "a.toml", flags).teacher.args == {"depth": "8"}


def test_a_device_that_is_not_served_says_which_are() -> None:
    for name in ("mps", "xpu", "tpu:0"):
        with pytest.raises(InputError, match="known devices: auto, cpu, cuda, cuda:N") as told:
            recipe.load_recipe(flags={"run": {"device": name}})
        assert ("use cpu" in str(told.value)) == (name == "mps")


@pytest.mark.parametrize("text", ["nan", "inf", "2026-01-01", "[1, 2]", "{ a = 1 }"])
def test_options_of_a_generator_are_what_a_recipe_can_hold(tmp_path, text):
    path, stage = tmp_path / "x.toml", '[[stage]]\nname = "a"\noptions = '
    path.write_text(f"{stage}{{ passes = {text} }}\n")
    with pytest.raises(InputError, match="options"):
        recipe.load_recipe(path)
    path.write_text(stage + '{ passes = 3, kind = "b", on = true, x = 0.5 }\n')
    built = recipe.load_recipe(path)
    assert built.stage[0].options == {"passes": 3, "kind": "b", "on": True, "x": 0.5}
    assert recipe.validated(tomllib.loads(recipe.to_toml(built))) == built
