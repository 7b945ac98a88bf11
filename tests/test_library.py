"""The library: living objects in, a student out; nothing printed, nothing of the user's altered."""

import json
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import synthkd
from synthkd.core.errors import InputError
from synthkd.data.sources import demo_digits, images_of
from synthkd.engine.build import images_for
from synthkd.engine.reporter import Silent
from synthkd.networks import build_network
from synthkd.recipe import from_settings, to_toml
from synthkd.specs import load_teacher
from synthkd.teachers.frozen import digest_of

SHIPPED = load_teacher(synthkd.Recipe().teacher)
CONTRACT: dict[str, Any] = {
    "image_size": 16, "channels": 1, "mean": SHIPPED.spec.mean, "std": SHIPPED.spec.std,
}  # fmt: skip
TINY = {
    "training.batch": 32, "memory.capacity": 300, "run.threads": 1, "stage.draw.fresh": 64,
    "stage.refine.synthesis_batch": 20, "stage.refine.synthesis_steps": 2, "training.repeats": 1,
}  # fmt: skip


def net() -> nn.Module:
    """The demo's teacher as a network of the user's."""
    body: nn.Module = load_teacher(synthkd.Recipe().teacher).classifier.body
    return body.requires_grad_(True).train()


def small() -> nn.Module:
    torch.manual_seed(0)
    return build_network("resnet8-w4", channels=1, size=16, classes=10)


def digits() -> tuple[Tensor, Tensor]:
    """The demo's digits that its teacher never saw."""
    pixels, labels, unseen = demo_digits()
    held = torch.from_numpy(unseen)
    return pixels[held], labels[held]


def distil(out: Path, **given: Any) -> synthkd.Result:
    settings = {"images": 600, "seed": 1, "settings": TINY, **CONTRACT, **given}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", synthkd.UselessResult)
        return synthkd.distill(settings.pop("teacher", None) or net(), out=out, **settings)


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> synthkd.Result:
    return distil(tmp_path_factory.mktemp("library") / "run", student=small(), val_data=digits())


def test_importing_is_cheap_and_offers_the_library():
    code = (
        "import sys, synthkd; assert 'torch' not in sys.modules; "
        "print(sorted(n for n in dir(synthkd) if n in synthkd.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("distill", "evaluate", "inspect", "load_student", "build", "Recipe"):
        assert name in done.stdout
        assert getattr(synthkd, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = synthkd.distil


def test_living_objects_give_a_student_and_a_run_directory(result):
    assert isinstance(result.student, nn.Module)
    assert not result.student.training
    assert result.student(torch.rand(3, 1, 16, 16)).shape == (3, 10)
    written = json.loads((result.run / "summary.json").read_text())
    assert written == json.loads(json.dumps(result.summary))
    assert result.summary["val_images"] == 539
    assert result.summary["real_images_read"] == 0


@pytest.mark.slow
def test_nothing_is_printed_and_the_users_objects_stay_as_they_were(tmp_path, capfd):
    teacher, student = net(), small()
    states = (*teacher.state_dict().values(), *student.state_dict().values())
    before = [tensor.clone() for tensor in states]
    distil(tmp_path / "run", teacher=teacher, student=student)
    after = [*teacher.state_dict().values(), *student.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert teacher.training and all(p.requires_grad for p in teacher.parameters())
    assert not any(module._forward_hooks for module in teacher.modules())
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_progress_is_shown_where_it_is_asked_for(tmp_path, capfd):
    distil(tmp_path / "run", student=small(), progress=True)
    said = capfd.readouterr().out
    assert "plan: " in said and "run directory" in said


@pytest.mark.slow
def test_objects_and_names_of_the_same_network_give_the_same_student(tmp_path):
    """A living teacher, and the shipped one by its name, are the same teacher."""
    found = [
        distil(tmp_path / "a", student="resnet8-w4"),
        distil(tmp_path / "b", student="resnet8-w4", teacher="demo", image_size=None,
               channels=None, mean=None, std=None),
    ]  # fmt: skip
    one, other = (r.student.body.state_dict() for r in found)
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_a_living_student_is_loaded_again_only_with_its_network(result):
    with pytest.raises(InputError, match=r"as student= of synthkd\.distill or network="):
        synthkd.load_student(result.run)
    again = synthkd.load_student(result.run, network=small())
    images = torch.rand(5, 1, 16, 16)
    assert torch.allclose(again(images), result.student(images), atol=1e-5)
    with pytest.raises(InputError):
        synthkd.load_student(result.run, network=nn.Linear(3, 2))


@pytest.mark.slow
def test_a_student_by_name_is_loaded_without_it(tmp_path):
    made = distil(tmp_path / "run", student="resnet8-w4")
    images = torch.rand(5, 1, 16, 16)
    assert torch.allclose(synthkd.load_student(made.run)(images), made.student(images), atol=1e-5)


def test_a_function_teaches_as_a_black_box(tmp_path):
    body = net().eval()

    def ask(pixels: np.ndarray) -> np.ndarray:
        images = (torch.from_numpy(pixels) - CONTRACT["mean"][0]) / CONTRACT["std"][0]
        with torch.no_grad():
            return body(images).softmax(1).numpy()

    given = {key: CONTRACT[key] for key in ("image_size", "channels")}
    made = distil(tmp_path / "run", teacher=ask, student=small(), mean=None, std=None, **given)
    assert made.summary["teacher_access"] == "logits"
    assert "probabilities" in made.summary["teacher_answers"]


class Pairs(Dataset[Any]):
    """Items as torchvision gives them: a PIL image and a label."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return Image.fromarray(self.pixels[index, 0].numpy()), int(self.labels[index])


def test_images_of_every_kind_of_object_are_the_same_images():
    pixels, labels = (part[:50] for part in digits())
    spec = SHIPPED.spec
    kinds = [
        (pixels, labels),
        (pixels.numpy(), labels.numpy()),
        (pixels.float() / 255, labels.tolist()),
        (pixels.permute(0, 2, 3, 1), labels),
        {"images": pixels.numpy(), "labels": labels.numpy()},
        TensorDataset(pixels, labels),
        Pairs(pixels, labels),
        (pixels.bfloat16(), labels),
        TensorDataset(pixels.bfloat16(), labels.float().requires_grad_()),
    ]
    found = [images_of(kind, spec, classes=10, labelled=True) for kind in kinds]
    for other in found:
        assert torch.equal(other.pixels, found[0].pixels)
        assert torch.equal(other.labels, labels)
    alone = images_of(pixels, spec, classes=10, labelled=False)
    assert alone.labels is None and torch.equal(alone.pixels, found[0].pixels)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (torch.zeros(0, 1, 16, 16), "no images"),
        (torch.zeros(3, 7, 16, 16), "must have the shape"),
        ((torch.zeros(3, 1, 16, 16), [0, 1]), "labels"),
        (["cat.png"], "images must be an array of numbers"),
        (42, "images are a tensor, an array"),
        (TensorDataset(torch.zeros(0, 1, 16, 16)), "no images"),
    ],
)
def test_images_that_are_none_are_one_line(source, said):
    with pytest.raises(InputError, match=said) as error:
        images_of(source, SHIPPED.spec, classes=10, labelled=True)
    assert "\n" not in str(error.value)


def test_real_images_may_be_a_tensor(tmp_path):
    pixels, _ = digits()
    made = distil(tmp_path / "run", student=small(), mix_ratio=0.5, real_data=pixels)
    assert made.summary["real_images_read"] == len(pixels)
    assert made.summary["promise_level"] >= 2
    assert 0.4 < made.summary["synthetic_share"] < 0.6


def test_what_is_missing_or_wrong_is_said_in_the_words_of_python(tmp_path):
    with pytest.raises(InputError, match=r"give image_size=, channels=, mean=, std="):
        synthkd.distill(net(), small(), images=100, out=tmp_path / "a")
    with pytest.raises(InputError, match=r"mix ratio 0\.5 needs real images"):
        distil(tmp_path / "b", student=small(), mix_ratio=0.5)
    with pytest.raises(InputError, match="did you mean 'batch'"):
        distil(tmp_path / "c", student=small(), settings={"training.bach": 3})
    with pytest.raises(InputError, match="not empty"):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "x").write_text("")
        distil(tmp_path / "full", student=small())


class Locked(nn.Module):
    """A network that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.lock = small(), threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.inner(x)


def test_a_network_that_cannot_be_copied_is_refused_and_left_as_it_is(tmp_path):
    theirs = Locked().train()
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    with pytest.raises(InputError, match=r"cannot be copied .*lock.*: give a function that calls"):
        distil(tmp_path / "a", teacher=theirs, student=small())
    with pytest.raises(InputError, match=r"--student '<Locked>'.*package\.module:callable"):
        distil(tmp_path / "b", student=theirs)
    assert theirs.training and all(p.requires_grad for p in theirs.parameters())
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())


def test_a_network_without_weights_is_one_line():
    with torch.device("meta"):
        blank = build_network("resnet8-w4", channels=1, size=16, classes=10)
    with pytest.raises(InputError, match="its tensors are on the device meta"):
        load_teacher(synthkd.Recipe.of({"teacher.image_size": 16}).teacher, network=blank)


@pytest.mark.slow
def test_the_process_is_left_as_it_was(tmp_path):
    """A job computes with its own threads and precision, and so does whoever called it."""
    own = {"run.threads": 1, "run.precision": "bfloat16"}
    jobs = (
        lambda: synthkd.inspect(settings=own),
        lambda: synthkd.distill(images=100, student="nosuch", settings=own, out=tmp_path / "a"),
        lambda: synthkd.generate(
            count=10, settings={**own, "generator.start": "nowhere"}, out=tmp_path / "b"
        ),
    )
    before = torch.backends.mha.get_fastpath_enabled()
    torch.set_num_threads(2)
    torch.backends.mha.set_fastpath_enabled(True)
    try:
        for number, job in enumerate(jobs):
            if number:
                with pytest.raises(InputError):
                    job()
            else:
                job()
            assert torch.get_num_threads() == 2
            assert torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.set_num_threads(1)
        torch.backends.mha.set_fastpath_enabled(before)


def test_a_useless_student_is_warned_of(tmp_path):
    with pytest.warns(synthkd.UselessResult, match="constant classifier"):
        synthkd.distill(
            net(), small(), images=100, settings=TINY, val_data=digits(), out=tmp_path / "run",
            **CONTRACT,
        )  # fmt: skip


@pytest.mark.slow
def test_it_works_in_a_thread(tmp_path):
    found: list[synthkd.Result] = []
    thread = threading.Thread(
        target=lambda: found.append(distil(tmp_path / "run", student=small())), daemon=True
    )
    thread.start()
    thread.join(90)
    assert found and (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_with_the_objects_given_again(tmp_path):
    unbroken = distil(tmp_path / "whole", student=small())

    class Interrupting:
        """A reporter that presses Ctrl-C in the third round."""

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

        def follow(self, round_: Any) -> None:
            if round_.progress.round == 3:
                import signal

                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"go on with: synthkd.distill\(…, resume="):
        distil(tmp_path / "run", student=small(), progress=Interrupting())
    with pytest.warns(synthkd.UselessResult):
        again = synthkd.distill(net(), small(), resume=tmp_path / "run")
    assert (again.run, again.summary["images_seen"]) == (tmp_path / "run", 600)
    one, other = (r.student.body.state_dict() for r in (unbroken, again))
    assert all(torch.equal(one[key], other[key]) for key in one)
    for more in ({"seed": 3}, {"val_data": "demo:unseen"}, {"settings": {"training.batch": 8}}):
        with pytest.raises(InputError, match="no other settings"):
            synthkd.distill(net(), small(), resume=tmp_path / "run", **more)


def test_code_that_a_run_directory_names_is_not_called_without_trust(tmp_path):
    class Stopping(Silent):
        def follow(self, round: Any) -> None:
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        synthkd.distill(out=tmp_path / "run", settings=TINY, images=600, progress=Stopping())
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('spec = "demo"', 'spec = "shutil:rmtree"', 1))
    with pytest.raises(InputError, match="is named in a file and would be called"):
        synthkd.distill(resume=tmp_path / "run")
    with pytest.raises(InputError, match="is named in a file and would be called"):
        synthkd.distill(resume=tmp_path / "run", settings={"run.anyway": True})
    with pytest.raises(InputError, match="shutil"):  # called, with nothing to remove
        synthkd.distill(resume=tmp_path / "run", settings={"run.trust_code": True})


def test_a_teacher_of_the_settings_or_of_the_recipe_is_taken(tmp_path):
    settings = {"teacher.spec": "resnet8", "teacher.weights": "none.pt"}
    for given in ({"settings": settings}, {"recipe": synthkd.Recipe.of(settings)}):
        with pytest.raises(InputError, match=r"none\.pt"):
            synthkd.distill(out=tmp_path / "run", **given)
    with pytest.raises(InputError, match=r"none\.pt"):
        synthkd.inspect(settings=settings)


def test_settings_that_contradict_each_other_are_one_line():
    recipe = synthkd.Recipe.of({})
    with pytest.raises(InputError, match="has its pipeline already"):
        synthkd.distill(recipe=recipe, pipeline="gan")
    with pytest.raises(InputError, match=r"stage\.NAME\.KEY"):
        synthkd.Recipe.of({"stage.refine": {"share": 0.5}})
    trusting = synthkd.Recipe.of({"teacher.spec": "synthkd:Recipe", "run.trust_code": True})
    assert from_settings({"run.seed": 1}, trusting).run.seed == 1


def test_settings_that_do_nothing_are_warned_of(tmp_path):
    real = torch.rand(40, 1, 16, 16)
    with pytest.warns(UserWarning, match="--real-data is not used at --mix-ratio 1.0"):
        distil(tmp_path / "run", student=small(), real_data=real)


def test_real_images_for_a_lab_are_living_objects_too():
    recipe = synthkd.Recipe.of({**TINY, "budget.images": 300, "data.mix_ratio": 0.5})
    with pytest.raises(InputError, match="needs real images"):
        synthkd.build(recipe, teacher=SHIPPED)
    lab = synthkd.build(recipe, teacher=SHIPPED, real_data=torch.rand(40, 1, 16, 16))
    assert lab.real is not None and len(lab.real) == 40


def test_the_range_of_living_images_is_the_recipes():
    recipe = synthkd.Recipe.of({"data.range": (0.0, 4095.0)})
    pixels = torch.full((3, 1, 16, 16), 2047.5)
    found = images_for(recipe, pixels, load_teacher(recipe.teacher), labelled=False)
    assert found.pixels.float().mean() == pytest.approx(127.5, abs=1)


def test_labels_that_cannot_be_scored_cost_no_run(tmp_path):
    several = torch.zeros(8, 10)
    several[:, :2] = 1
    with pytest.warns(UserWarning, match="labels of several classes"):
        found = distil(
            tmp_path / "run", student=small(), val_data=(torch.rand(8, 1, 16, 16), several)
        )
    assert found.summary["student_accuracy"] is None
    assert (tmp_path / "run" / "summary.json").is_file()


def test_numbers_of_numpy_and_torch_are_numbers():
    card = synthkd.inspect(net(), **{**CONTRACT, "mean": torch.tensor(0.25), "std": np.float32(1)})
    assert (card["input"]["mean"], card["input"]["std"]) == ([0.25], [1.0])


@pytest.mark.slow
def test_questions_of_an_earlier_run_are_not_counted_again():
    recipe = synthkd.Recipe.of({**TINY, "budget.images": 300})
    asked = []
    for _ in range(2):
        lab = synthkd.build(recipe, teacher=SHIPPED)
        list(lab)
        asked.append(lab.teacher.queries)
    assert asked[0] == asked[1]


def test_a_lab_is_walked_round_by_round():
    recipe = synthkd.Recipe.of({**TINY, "budget.images": 300})
    lab = synthkd.build(recipe, teacher=SHIPPED)
    stages = [round.stage for round in lab]
    assert list(dict.fromkeys(stages)) == ["draw", "refine", "study"]
    assert lab.progress.images_seen == 300
    assert digest_of(SHIPPED.classifier) == SHIPPED.digest


@pytest.mark.slow
def test_the_recipe_of_a_lab_is_the_one_that_is_used():
    lab = synthkd.build(synthkd.Recipe.of({**TINY, "student.spec": "auto"}), teacher=SHIPPED)
    assert lab.recipe.student.spec != "auto"
    assert lab.recipe.run.precision in ("float32", "bfloat16")
    assert 'spec = "auto"' not in to_toml(lab.recipe)


def test_evaluating_is_what_the_summary_says(result):
    result.student.train()
    found = synthkd.evaluate(result.student, net(), digits(), **CONTRACT)
    assert result.student.training
    result.student.eval()
    assert found.student_accuracy == pytest.approx(result.summary["student_accuracy"])
    assert found.teacher_accuracy == pytest.approx(result.summary["teacher_accuracy"])
    assert found.constant_accuracy is not None


def test_inspecting_a_network_tells_its_input_and_classes():
    card = synthkd.inspect(net(), **CONTRACT)
    assert (card["classes"], card["input"]["height"]) == (10, 16)
    assert card["parameters"] == sum(p.numel() for p in net().parameters())


@pytest.mark.slow
def test_a_data_set_is_made_and_learned_from(tmp_path):
    made = synthkd.generate(
        net(), count=60, out=tmp_path / "set", settings=TINY, images=64, **CONTRACT
    )
    assert (made.count, made.path) == (60, tmp_path / "set")
    assert made.manifest["real_images_read"] == 0
    learned = distil(
        tmp_path / "run", student=small(), settings={**TINY, "data.synthetic": str(made.path)}
    )
    assert learned.summary["images_synthesized"] == 0
    with pytest.raises(InputError, match="this data set is finished"):
        synthkd.generate(net(), resume=made.path)


@pytest.mark.slow
def test_what_is_recorded_of_a_data_set_is_what_was_used(tmp_path):
    settings = {**TINY, "memory.capacity": 5000, "diffusion.accept": "agreed"}
    made = synthkd.generate(count=40, out=tmp_path / "a", settings=settings)
    assert "capacity = 5000" in made.manifest["recipe"]
    assert 'accept = "all"' in made.manifest["recipe"]  # the writer chooses, not the sampler
    assert "mix_ratio = 1.0" in made.manifest["recipe"]
    del settings["memory.capacity"]
    default = synthkd.generate(count=40, out=tmp_path / "b", settings=settings)
    assert "capacity = 4096" in default.manifest["recipe"]
    assert (tmp_path / "b" / "recipe.toml").read_text() == default.manifest["recipe"]
