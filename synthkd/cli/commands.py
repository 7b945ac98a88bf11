"""The commands: what the command line knows of each. The code is `run` in
`synthkd/commands/NAME.py`, imported only when the command is called."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synthkd import recipe


@dataclass(frozen=True)
class Switch:
    """A flag of one call, which no recipe records: the keyword argument `name` of `run`."""

    name: str
    flag: str
    kind: Any
    default: Any
    help: str
    brief: str = ""  # for the short help, where `help` is too long for one line
    beside: bool = (
        False  # shares the line of the switch before it, and its words, in the short help
    )
    hyphen: bool = False  # its value may begin with one


@dataclass(frozen=True)
class Positional:
    """An argument without a flag. `several` takes all that follow, as a tuple. With `setting` it is
    the value of that setting of the recipe, else the next positional argument of `run`."""

    name: str
    kind: Any
    help: str
    several: bool = False
    setting: str = ""


@dataclass(frozen=True)
class Command:
    """A command as data: its help, its flags, and how `run` is called.

    A command with `tables` is called as `run(recipe, **switches)`, one without as
    `run(*positionals, **switches)`. With the switch `RESUME` the module also has
    `resume(path, trust_code=…, anyway=…, **switches)`. A dictionary that they return with the
    verdict "useless" ends the program with exit code 3.
    """

    help: str  # one sentence
    tables: tuple[str, ...] = ()  # of the recipe, whose settings are its flags; "": the top level
    without: tuple[str, ...] = ()  # settings of these tables that it does not take
    positionals: tuple[Positional, ...] = ()
    switches: tuple[Switch, ...] = ()
    pipeline: bool = True  # its recipe starts from a pipeline, and takes --stage.NAME.KEY
    several: bool = False  # torchrun may start it in several processes, which do it together
    # what `run` takes besides: given (keys that the user set), started (time.perf_counter() of the
    # call, which `resume` takes too)
    context: tuple[str, ...] = ()

    def settings(self) -> Iterator[recipe.Setting]:
        """The settings that are its flags."""
        for setting in recipe.settings():
            if setting.table in self.tables and setting.key not in self.without:
                yield setting


CONFIG = Switch("config", "--config", Path | None, None, "TOML file of settings")
RESUME = Switch(
    "resume", "--resume", Path | None, None, "directory of an interrupted run to go on with"
)
DRY_RUN = Switch("dry_run", "--dry-run", bool, False, "print the resolved plan and stop")
QUIET = Switch("quiet", "--quiet", bool, False, "print nothing but errors")
JSON = Switch("as_json", "--json", bool, False, "print JSON instead of tables")
TRUST = Switch("trust_code", "--trust-code", bool, False, "allow a student that is code")

SEALED = Switch(
    "sealed",
    "--sealed",
    bool,
    False,
    "let the kernel refuse every file that the recipe does not name, and every socket (Linux)",
    brief="let the kernel refuse all other files (Linux)",
)

_SYNTHESIS = (
    "", "teacher", "data", "budget", "run", "generator", "procedural", "pixels", "diffusion",
    "discriminator", "memory", "difficulty", "augment",
)  # fmt: skip

COMMANDS: dict[str, Command] = {
    "generate": Command(
        "Make a synthetic data set that a teacher agrees with.",
        tables=("dataset", *_SYNTHESIS),
        without=(
            "data.mix_ratio", "data.val", "data.synthetic", "data.class_order", "run.snapshots",
            "diffusion.accept", "memory.priority", "memory.priority_correction",
            "memory.curriculum", "difficulty.per_image",
        ),
        switches=(
            Switch(
                "save_generator", "--save-generator", Path | None, None,
                "directory in which to save a trained diffusion model, as diffusers reads it",
                brief="directory to save a trained diffusion model in",
            ),
            Switch(
                "shards", "--shards", int, 0,
                "make it in so many shards, together with other processes that are started alike "
                "and share --out: each takes the next that nobody works on",
                brief="make it in so many shards, by several processes",
            ),
            Switch(
                "shard", "--shard", int | None, None,
                "make this shard alone, 0 to --shards less one",
                brief="make this shard alone",
            ),
            RESUME, SEALED, JSON, CONFIG, DRY_RUN, QUIET,
        ),
        context=("given",),
    ),
    "distill": Command(
        "Train a small student from a teacher, without its training data.",
        tables=(*_SYNTHESIS, "student", "training", "teaching"),
        switches=(
            RESUME, SEALED,
            Switch(
                "tensorboard", "--tensorboard", bool, False,
                "write measures and contact sheets of every round into RUN/tensorboard, as "
                "TensorBoard shows them",
                brief="TensorBoard events too; no report.html",
            ),
            Switch(
                "no_report", "--no-report", bool, False, "write no report.html at the end",
                beside=True,
            ),
            JSON, CONFIG, replace(DRY_RUN, brief="print the plan and stop; print errors only"),
            replace(QUIET, beside=True),
        ),
        context=("given", "started"),
        several=True,
    ),
    "search": Command(
        "Find the best student for this machine: many short trainings, then a long one.",
        tables=(*_SYNTHESIS, "student", "training"),
        without=(
            "budget.images", "data.synthetic", "student.spec", "student.max_params",
            "student.max_flops", "student.max_latency_ms", "run.stages",
        ),
        switches=(
            Switch(
                "limit", "--max-latency-ms", float | None, None,
                "most milliseconds of an image, by its ONNX file on this machine",
                brief="most milliseconds of an image, by its ONNX file",
            ),
            Switch(
                "sampler", "--sampler", str, "nsga2",
                "who proposes candidates: nsga2, or random",
            ),
            JSON, CONFIG, QUIET,
        ),
        context=("given", "started"),
    ),
    "watch": Command(
        "Show a run at a glance, from another terminal.",
        positionals=(Positional("path", Path, "run directory"),),
        switches=(Switch("once", "--once", bool, False, "show it as it is now, and stop"),),
    ),
    "report": Command(
        "Write what came of a run, of several, a search or a bench, as one HTML file.",
        positionals=(
            Positional("paths", Path, "run directories, a search's or a bench's", several=True),
        ),
        switches=(
            Switch("out", "--out", Path | None, None, "file to write (default: RUN/report.html)"),
            Switch("no_images", "--no-images", bool, False, "show no synthetic images"),
            QUIET,
        ),
    ),
    "evaluate": Command(
        "Score a student against its teacher, or a set of images.",
        tables=("teacher", "student", "data", "run", "evaluation"),
        without=(
            "data.mix_ratio", "data.real", "data.synthetic", "student.start", "student.max_params",
            "student.max_flops", "student.max_latency_ms", "run.precision", "run.seed",
            "run.stages", "run.checkpoint_seconds", "run.snapshots",
        ),
        switches=(JSON, CONFIG, QUIET),
    ),
    "bench": Command(
        "Compare pipelines: the same teacher, student and time for each.",
        tables=("teacher", "student", "data", "budget", "run", "augment"),
        without=(
            "data.mix_ratio", "data.synthetic", "budget.images", "run.seed", "run.stages",
            "run.snapshots",
        ),
        pipeline=False,  # what is given is laid over each of those it compares
        switches=(
            Switch(
                "pipelines", "--pipelines", str, "all",
                "names or .toml files, with commas; all: every shipped one (those of real images "
                "only with --real-data)",
                brief="names or .toml files, with commas, or all",
            ),
            Switch("seeds", "--seeds", str, "0", "seeds, with commas"),
            Switch(
                "also", "--also", list[str] | None, None,
                "NAME=PATH: labelled images to score the students on too (can be repeated)",
                brief="NAME=PATH: more labelled images to score",
            ),
            Switch(
                "report", "--report", bool, False,
                "run nothing: only write tables and plot again from what lies in --out",
                brief="write tables and plot again, run nothing",
            ),
            JSON, CONFIG, DRY_RUN, QUIET,
        ),
    ),
    "inspect": Command(
        "Show what a network is, wants and costs, and what would be done with it.",
        tables=("", "teacher", "run"),
        without=(
            "teacher.spec", "run.out", "run.seed", "run.stages", "run.checkpoint_seconds",
            "run.snapshots",
        ),
        positionals=(
            Positional("spec", str, "SPEC of the network", setting="teacher.spec"),
            Positional("others", str, "others to rank it among, with --rank", several=True),
        ),
        switches=(
            Switch(
                "ranked", "--rank", bool, False,
                "rank several teachers by how well they are likely to teach, by synthetic images "
                "alone",
                brief="rank several teachers, by synthetic images alone",
            ),
            JSON, CONFIG,
        ),
    ),
    "export": Command(
        "Turn a student into files for production, or a data set into tar shards.",
        positionals=(Positional("path", Path, "run directory, or data set"),),
        switches=(
            Switch(
                "formats", "--format", str, "",
                "safetensors, onnx, pt2, executorch, several with commas (default: onnx); of a "
                "data set webdataset",
                brief="safetensors, onnx, pt2, executorch",
            ),
            Switch("int8", "--int8", bool, False, "also an ONNX file of 8-bit integers"),
            Switch(
                "uint8_input", "--uint8-input", bool, False,
                "graphs that take bytes 0..255 (uint8, NCHW) instead of numbers in 0..1",
                brief="graphs that take bytes 0..255",
            ),
            Switch(
                "softmax", "--softmax", bool, False,
                "graphs that answer in probabilities instead of logits",
                brief="graphs that answer in probabilities",
            ),
            Switch("width", "--width", float, 1.0, "share of the width of a slimmable student"),
            Switch(
                "val_data", "--val-data", str, "", "labelled images to score the 8-bit file on"
            ),
            Switch(
                "class_order", "--class-order", str, "",
                "how the classes of --val-data match the student's, as for distill (default: as in "
                "its run)",
                brief="how the classes of --val-data match",
            ),
            Switch(
                "out", "--out", Path | None, None,
                "directory to write (default: RUN/export or SET-webdataset)",
                brief="directory to write (default: RUN/export)",
            ),
            Switch(
                "licence", "--license", str, "", "short name of its licence, for the model card"
            ),
            TRUST, JSON, QUIET,
        ),
    ),
    "audit": Command(
        "Attack the networks of a run, to see what they tell about the training data.",
        tables=("teacher", "data", "run"),
        without=(
            "data.mix_ratio", "data.real", "data.val", "data.synthetic", "run.precision",
            "run.stages", "run.checkpoint_seconds", "run.snapshots",
        ),
        positionals=(Positional("path", str, "run directory", setting="student.spec"),),
        switches=(
            Switch(
                "members", "--members", str, "",
                "labelled images that the teacher was trained with",
                brief="labelled images that the teacher learned",
            ),
            Switch(
                "non_members", "--non-members", str, "",
                "labelled images of the same kind that it was not trained with",
                brief="others of the same kind",
            ),
            Switch(
                "canaries", "--canaries", str, "",
                "images with wrong labels that it was trained with",
                brief="images it learned with wrong labels",
            ),
            Switch(
                "left_out", "--left-out-canaries", str, "",
                "such images that a fair coin left out of its training (default: wrong labels are "
                "drawn for the non-members)",
                brief="canaries that were not trained on",
            ),
            Switch(
                "shadows", "--shadows", list[Path] | None, None,
                "FILE.npz: answers of shadow networks, for LiRA (docs/leaks.md; can be repeated)",
                brief="FILE.npz: answers of shadow networks",
            ),
            Switch(
                "images", "--images", str, "",
                "synthetic images to lay beside real ones (default: those that the run kept)",
                brief="synthetic images (default: the run's)",
            ),
            JSON, CONFIG, QUIET,
        ),
        pipeline=False,  # the recipe is that of the run
    ),
    "verify": Command(
        "Check that a run is as it was left, and what it shows of what it read.",
        positionals=(Positional("path", Path, "run directory, or a data set"),),
        switches=(
            Switch(
                "digest", "--digest", str, "",
                "what was printed at the end of the run: tells whether anything has changed since",
                brief="what was printed at the end of the run",
            ),
            Switch(
                "rerun", "--rerun", bool, False,
                "run the recipe again, and compare the student bit for bit",
                brief="run the recipe again, and compare the students",
            ),
            TRUST, JSON,
        ),
    ),
    "predict": Command(
        "Classify image files with the student of a run.",
        positionals=(
            Positional("path", Path, "run directory"),
            Positional("images", Path, "image files, or folders of them", several=True),
        ),
        switches=(
            Switch("top", "--top", int, 3, "classes to name per image"),
            Switch(
                "data_range", "--data.range", str | None, None,
                "BLACK,WHITE: values that are black and white in images of more than 8 bits",
                brief="BLACK,WHITE, for more than 8 bits", hyphen=True,
            ),
            Switch(
                "data_background", "--data.background", str | None, None,
                "auto, white or black: background of transparent images",
                brief="auto, white or black, if transparent",
            ),
            Switch(
                "data_resize", "--data.resize", str | None, None,
                "stretch, crop or pad: images of another proportion",
                brief="stretch, crop or pad",
            ),
            Switch(
                "csv_file", "--csv", str, "",
                "file with a line per image: image, class, name, probability, those of the next "
                "class, …; - is the standard output",
                brief="file with a line per image; -: the screen", hyphen=True,
            ),
            TRUST, JSON,
        ),
    ),
}  # fmt: skip
