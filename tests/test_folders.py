"""Folders of diffusers: what is borrowed, what is refused, and that nothing in them is run."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from safetensors.torch import load_file, save_file

from synthkd.core.errors import InputError
from synthkd.networks.unet import new_unet
from synthkd.recipe import AugmentTable, Recipe, Stage, TeacherTable
from synthkd.specs import load_teacher
from synthkd.synthesis.context import SynthesisContext
from synthkd.synthesis.diffusion.diffusers_io import (
    describe,
    is_diffusers_folder,
    open_folder,
    promise_of,
    save_folder,
)
from synthkd.synthesis.diffusion.generator import SCHEDULE, Diffusion
from synthkd.synthesis.diffusion.sampling import sampled, solver
from synthkd.teachers.frozen import FrozenTeacher


@pytest.fixture(scope="module")
def teacher() -> FrozenTeacher:
    return load_teacher(TeacherTable())


def opened(folder: Path, teacher: FrozenTeacher) -> Any:
    return open_folder(folder, teacher, scale=1.0, prompt="a {}")


def small_unet(channels: int = 1, **more: Any) -> UNet2DModel:
    return UNet2DModel(
        sample_size=8, in_channels=channels, out_channels=channels, layers_per_block=1,
        block_out_channels=(8, 8), norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"), **more,
    )  # fmt: skip


def small_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4,
    )  # fmt: skip


def unconditional(folder: Path, channels: int = 1, **more: Any) -> Path:
    DDPMPipeline(unet=small_unet(channels), scheduler=DDPMScheduler()).save_pretrained(
        str(folder), **more
    )
    return folder


def ours(folder: Path) -> Path:
    save_folder(
        new_unet(1, 10, size=16, width=8), SCHEDULE, folder,
        {"classes": list("0123456789"), "promise_level": 0, "teacher_sha256": "abc"},
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_an_unconditional_model_of_others_is_sampled_at_the_teachers_size(
    teacher: FrozenTeacher, tmp_path: Path, channels: int
) -> None:
    folder = unconditional(tmp_path / "theirs", channels)
    model = opened(folder, teacher)
    labels = torch.full((3,), -1)
    images = sampled(model, [1, 2, 3], labels, steps=3, name="ddim")
    assert images.shape == (3, 1, 16, 16) and model.classes == 0
    assert promise_of(str(folder), teacher.digest) == 1
    assert any("outside prior" in line for line in describe(str(folder), 10))
    pipeline = DDPMPipeline.from_pretrained(str(folder))
    theirs = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    theirs.set_timesteps(3)
    now = torch.stack(
        [torch.randn(channels, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (1, 2, 3)]
    )
    with torch.no_grad():
        for step in theirs.timesteps:
            now = theirs.step(pipeline.unet(now, step).sample, step, now).prev_sample
    torch.testing.assert_close(model.decoded(now).clamp(0, 1), images, atol=1e-5, rtol=0)


def test_a_class_conditional_latent_model_knows_its_classes(
    teacher: FrozenTeacher, tmp_path: Path
) -> None:
    model = opened(latent_model(tmp_path / "dit"), teacher)
    assert (model.classes, model.shape) == (10, (4, 4, 4))
    images = sampled(model, [1, 1, 1], torch.tensor([0, 7, -1]), steps=2)
    assert images.shape == (3, 1, 16, 16)
    assert float((images[0] - images[1]).abs().max()) > 0


def latent_model(folder: Path, classes: int = 10, vae: Any = None, **schedule: Any) -> Path:
    """A tiny DiT with random weights."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1,
        norm_num_groups=2, sample_size=4, patch_size=2, num_embeds_ada_norm=classes,
    )  # fmt: skip
    pipeline = DiTPipeline(transformer, vae or small_vae(), DDIMScheduler(**schedule))
    pipeline.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("classes", [7, 1000])
def test_a_model_of_other_classes_is_asked_for_none(
    teacher: FrozenTeacher, tmp_path: Path, classes: int
) -> None:
    folder = latent_model(tmp_path / "dit", classes)
    model = opened(folder, teacher)
    assert model.classes == 0
    noisy = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 9, -1])
    found = model(noisy, 500, labels)
    times, none = torch.full((3,), 500), torch.full((3,), classes)
    with torch.no_grad():
        wanted = model.network(noisy, timestep=times, class_labels=none).sample[:, :4]
    torch.testing.assert_close(found, wanted)
    said = f"its {classes} classes are not the teacher's 10: it is sampled without classes"
    assert said in describe(str(folder), 10) and said not in describe(str(folder), classes)
    tables = {"generator": {"start": str(folder)},
              "diffusion": {"steps": 2, "teacher_guidance": 2.0, "accept": "all"}}  # fmt: skip
    made = Diffusion(Recipe.model_validate(tables), teacher)
    stage = Stage(name="x", generator="diffusion", synthesis_steps=0, fresh=10)
    still = AugmentTable(shift=0.0, flip=False)
    context = SynthesisContext(
        teacher, teacher, stage, {}, still, lambda *_: None, False, lambda *_: None
    )
    images, asked = made.synthesize(context, torch.Generator().manual_seed(0)).batch
    assert images.shape == (10, 1, 16, 16) and sorted(asked.tolist()) == list(range(10))


def test_latents_are_not_kept_to_a_range(teacher: FrozenTeacher, tmp_path: Path) -> None:
    """Whatever their scheduler's configuration says, or does not say."""
    assert opened(latent_model(tmp_path / "a", clip_sample=True), teacher).schedule[
        "clip_sample"
    ] is False  # fmt: skip
    path = latent_model(tmp_path / "b") / "scheduler/scheduler_config.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in told.items() if k != "clip_sample"}))
    model = opened(tmp_path / "b", teacher)
    assert solver("ddim", model.schedule, 5).config.clip_sample is False


def test_an_autoencoder_of_other_channels_is_refused(
    teacher: FrozenTeacher, tmp_path: Path
) -> None:
    vae = AutoencoderKL(
        out_channels=2, block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4,
    )  # fmt: skip
    with pytest.raises(InputError, match="images of 2 channels, the teacher takes 1"):
        opened(latent_model(tmp_path / "x", vae=vae), teacher)


@pytest.mark.parametrize("factor", [None, "0.18215", 0, -1.0, True])
def test_an_autoencoder_whose_scale_is_no_number_is_refused(
    teacher: FrozenTeacher, tmp_path: Path, factor: object
) -> None:
    folder = latent_model(tmp_path / "x")
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling_factor": factor}))
    with pytest.raises(InputError, match="scaling_factor of its vae is no positive number"):
        opened(folder, teacher)


@pytest.mark.parametrize("betas", [5, 0.5, "0.5", {"a": 0.5}, [0.5, "a"], [1.0]])
def test_betas_that_are_no_list_of_numbers_below_1_are_refused(
    teacher: FrozenTeacher, tmp_path: Path, betas: object
) -> None:
    folder = latent_model(tmp_path / "x")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trained_betas": betas}))
    with pytest.raises(InputError, match=r"betas that do not lie in 0\.\.1"):
        opened(folder, teacher)


def text_model(folder: Path) -> Path:
    """A tiny Stable Diffusion with random weights and an alphabet for a vocabulary."""
    transformers = pytest.importorskip("transformers", reason="text models want transformers")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16
    )
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=4,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16,
        attention_head_dim=4,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=small_vae(), text_encoder=transformers.CLIPTextModel(config), tokenizer=tokenizer,
        unet=unet, scheduler=DDIMScheduler(clip_sample=False), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(str(folder / "model"))  # fmt: skip
    return folder / "model"


def test_a_text_model_is_told_the_class_names(teacher: FrozenTeacher, tmp_path: Path) -> None:
    folder = text_model(tmp_path / "text")
    model = opened(folder, teacher)
    assert model.classes == 10 and model.words is not None and len(model.words) == 11
    images = sampled(model, [1, 1, 1], torch.tensor([0, 7, -1]), steps=2)
    assert images.shape == (3, 1, 16, 16)
    assert float((images[0] - images[1]).abs().max()) > 0  # other words, other images
    again = open_folder(folder, teacher, scale=1.0, prompt="{} of another kind")
    other = sampled(again, [1], torch.tensor([0]), steps=2)
    assert float((images[0] - other[0]).abs().max()) > 0


def test_half_precision_is_read_as_float32_and_said(teacher: FrozenTeacher, tmp_path: Path) -> None:
    pipeline = DDPMPipeline(unet=small_unet().half(), scheduler=DDPMScheduler())
    pipeline.save_pretrained(str(tmp_path / "half"), variant="fp16")
    assert (tmp_path / "half/unet/diffusion_pytorch_model.fp16.safetensors").is_file()
    model = opened(tmp_path / "half", teacher)
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    assert bool(sampled(model, [1], torch.tensor([-1]), steps=2).isfinite().all())
    assert any("half precision" in line for line in describe(str(tmp_path / "half"), 10))


def test_a_safety_checker_is_left_alone_and_said(teacher: FrozenTeacher, tmp_path: Path) -> None:
    folder = unconditional(tmp_path / "x")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    opened(folder, teacher)
    assert any("safety checker is not used" in line for line in describe(str(folder), 10))
    index["safety_checker"] = []
    (folder / "model_index.json").write_text(json.dumps(index))
    assert not any("safety checker" in line for line in describe(str(folder), 10))


def spoil_index(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        index = json.loads((folder / "model_index.json").read_text())
        change(index)
        (folder / "model_index.json").write_text(json.dumps(index))

    return spoil


def spoil_config(name: str = "unet/config.json", **change: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return spoil


def halve(folder: Path) -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    save_file({key: state[key] for key in sorted(state)[::2]}, path, {"format": "pt"})


def to_pickle(folder: Path) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.unlink()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (
        lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(),
        r"diffusion_pytorch_model\.safetensors is missing",
    ),
    "no scheduler": (
        lambda f: (f / "scheduler/scheduler_config.json").unlink(),
        r"scheduler_config\.json is missing",
    ),
    "no configuration": (lambda f: (f / "unet/config.json").unlink(), r"config\.json is missing"),
    "a pickle": (to_pickle, "is a pickle, which can run code"),
    "a torn file": (
        lambda f: (f / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 50),
        "not a readable safetensors file",
    ),
    "a billion layers": (spoil_config(layers_per_block=10**9), "no network has that"),
    "a thousand layers": (spoil_config(layers_per_block=1000), "far larger than its weights"),
    "wide layers": (
        spoil_config(block_out_channels=[32_000, 64_000]), "far larger than its weights",
    ),
    "code of its own": (
        spoil_index(lambda i: i.update(unet=["my_unet", "Unet"])), "code of its own, which",
    ),
    "a pipeline of its own": (
        spoil_index(lambda i: i.update(_class_name=["pipeline.py", "Mine"])),
        "code of its own, which is never run",
    ),
    "no size": (spoil_config(sample_size=None), "sample_size"),
    "sizes of another form": (spoil_config(sample_size="8"), "cannot be read as a UNet2DModel"),
    "another prediction": (
        spoil_config("scheduler/scheduler_config.json", prediction_type="flow"),
        "it predicts 'flow', which is not supported",
    ),
    "half of the weights": (lambda f: halve(f / "unet"), r"lack \d+ tensors, '\w+.* among them"),
    "another kind": (
        spoil_index(lambda i: i.update(_class_name="AudioLDMPipeline")), "is not known; known",
    ),
    "not JSON": (lambda f: (f / "model_index.json").write_text("{"), "cannot be read as JSON"),
    "a list": (lambda f: (f / "model_index.json").write_text("[]"), "is not a table"),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_folder_is_one_clear_line(
    teacher: FrozenTeacher, tmp_path: Path, what: str
) -> None:
    folder = unconditional(tmp_path / "x")
    spoil, said = SPOILT[what]
    spoil(folder)
    with pytest.raises(InputError, match=said) as caught:
        opened(folder, teacher)
    assert "\n" not in str(caught.value)


def test_wrong_channels_and_wrong_classes_are_said(teacher: FrozenTeacher, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="images of 2 channels, the teacher takes 1"):
        opened(unconditional(tmp_path / "two", channels=2), teacher)
    pipeline = DDPMPipeline(small_unet(num_class_embeds=7), DDPMScheduler())
    pipeline.save_pretrained(str(tmp_path / "seven"))
    with pytest.raises(InputError, match="it makes 7 classes, the teacher sees 10"):
        opened(tmp_path / "seven", teacher)


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        ({"beta_schedule": "sigmoid"}, {"solver": "ddim"}, "ddim cannot run its scheduler in 8"),
        ({"num_train_timesteps": 4}, {"solver": "auto"}, "ddim, dpm, ddpm cannot run .* 4 steps"),
        ({"num_train_timesteps": "many"}, {}, "cannot run its scheduler"),
    ],
)
def test_a_schedule_that_no_solver_runs_is_one_line(
    teacher: FrozenTeacher,
    tmp_path: Path,
    change: dict[str, Any],
    settings: dict[str, Any],
    said: str,
) -> None:
    folder = unconditional(tmp_path / "x")
    spoil_config("scheduler/scheduler_config.json", **change)(folder)
    tables = {"generator": {"start": str(folder)}, "diffusion": {"steps": 8} | settings}
    with pytest.raises(InputError, match=said) as caught:
        Diffusion(Recipe.model_validate(tables), teacher)
    assert "\n" not in str(caught.value)


def test_only_a_folder_of_ours_is_written_over(tmp_path: Path) -> None:
    ours(ours(tmp_path / "model"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is there already, and holds something else"):
        ours(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "thesis.txt").read_text() == "precious"


def test_a_generator_has_the_promise_of_the_run_that_left_it(tmp_path: Path) -> None:
    manifest = {"promise_level": 2, "teacher_sha256": "abc"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert promise_of(str(tmp_path), "abc") == 2
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"promise_level": 0}))
    assert (promise_of(str(tmp_path), "abc"), promise_of(str(tmp_path), "def")) == (0, 1)
    (tmp_path / "manifest.json").unlink()
    assert promise_of(str(tmp_path), "abc") == 3  # who knows
    assert promise_of("", "abc") == 0


@pytest.mark.slow
def test_code_in_a_folder_fires_with_the_librarys_loader_and_never_with_ours(
    teacher: FrozenTeacher, tmp_path: Path
) -> None:
    folder = unconditional(tmp_path / "bad")
    fired = tmp_path / "fired"
    (folder / "pipeline.py").write_text(
        f"open({str(fired)!r}, 'w').close()\n"
        "from diffusers import DDPMPipeline\nclass Mine(DDPMPipeline): pass\n"
    )
    spoil_index(lambda i: i.update(_class_name=["pipeline", "Mine"]))(folder)
    with pytest.raises(InputError, match="never run"):
        opened(folder, teacher)
    assert not fired.exists()
    naive = (
        "from diffusers import DiffusionPipeline as P\n"
        f"P.from_pretrained({str(folder)!r}, custom_pipeline={str(folder)!r}, "
        "trust_remote_code=True, local_files_only=True)"
    )
    subprocess.run(
        [sys.executable, "-c", naive], capture_output=True, timeout=100,
        env={"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert fired.exists()


def test_what_is_a_folder(tmp_path: Path) -> None:
    assert not is_diffusers_folder("") and not is_diffusers_folder(str(tmp_path))
    (tmp_path / "run").mkdir()
    ours(tmp_path / "run" / "diffusion")
    assert is_diffusers_folder(str(tmp_path / "run")) and is_diffusers_folder(
        str(tmp_path / "run" / "diffusion")
    )
    assert promise_of(str(tmp_path / "run"), "abc") == 0
    assert promise_of(str(tmp_path / "run"), "of another teacher") == 1
    with pytest.raises(InputError, match=r"there is no model_index\.json"):
        opened(tmp_path / "nothing", None)  # type: ignore[arg-type]


@pytest.mark.slow
def test_plain_diffusers_in_another_process_samples_our_folder_alike(
    teacher: FrozenTeacher, tmp_path: Path
) -> None:
    folder = ours(tmp_path / "model")
    (tmp_path / "other.py").write_text(
        "import sys, torch\n"
        "from diffusers import DiffusionPipeline\n"
        "pipe = DiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True)\n"
        "seeds = [torch.Generator().manual_seed(s) for s in (5, 6, 7)]\n"
        "out = pipe(batch_size=3, class_labels=[1, 4, 10], num_inference_steps=6,\n"
        "           generator=seeds, output_type='pt')\n"
        "torch.save(out.images, sys.argv[2])\n"
        "assert not any(name.startswith('synthkd') for name in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", str(tmp_path / "other.py"), str(folder), str(tmp_path / "y.pt")],
        capture_output=True, text=True, timeout=100, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = torch.load(tmp_path / "y.pt", weights_only=True)
    found = sampled(opened(folder, teacher), [5, 6, 7], torch.tensor([1, 4, -1]), steps=6)
    torch.testing.assert_close(found, theirs, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_model_of_the_hub_is_fetched_by_name_or_said_to_be_out_of_reach(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "synthkd", "generate", "--pipeline", "diffusion", "--run.stages",
         "imagine", "--generator-from", "hub:nobody/nothing", "--out", str(tmp_path / "x")],
        capture_output=True, text=True, timeout=100,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --generator-from 'hub:nobody/nothing': it cannot be")


@pytest.mark.slow
@pytest.mark.parametrize("word", ["distill", "generate"])
def test_a_dry_run_does_not_touch_the_network(tmp_path: Path, word: str) -> None:
    program = (
        "import sys\n"
        "def heard(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'):\n"
        "        print('touched', event, args, file=sys.stderr)\n"
        "sys.addaudithook(heard)\n"
        "from synthkd.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, word, "--dry-run", "--pipeline", "diffusion",
         "--generator-from", "hub:nobody/nothing"],
        capture_output=True, text=True, timeout=100, cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
        | {"HF_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --generator-from 'hub:nobody/nothing': it is not on this")
