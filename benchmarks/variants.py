"""Which parts of the framework earn their seconds: a run for each, all else equal.

    synthkd generate --count 20000 --minutes 10 … --out SET
    python benchmarks/variants.py OUT.json terms --test TEST [--copies MORE] -- --synthetic SET …
    python benchmarks/variants.py OUT.json terms --table

Groups: `plain` (the flags as they are), `terms` (each loss of the student beside KL), `weights`,
`temperature`, `replay`, `ablation` (of the pipeline adaptive), `teaching` (assistants, peer,
average), `generation` (what keeps a GAN's images apart: --pipeline gan) and `stages` (each left
out), both of which also tell of the images made, `mix` (shares of synthetic images, with
--real-data).
What follows `--` are flags of `synthkd distill`, for all variants. A run lasts so many seconds, in
this process. TEST, a data path with labels, is asked about the student after the run is over, and
decides nothing, its first 1,000 images also about the student at twelve moments; so is MORE, a
larger set of lesser images, by which small differences can be seen. Where a group
tries rates (`terms`), each variant learns with seed 0 at 0.5, 1 and 2 times the recipe's, or at
--rates, and the rate whose student agrees most often with the teacher on held-out synthetic images
is taken for the other seeds. These are run for the first variant and, with --best N, only the N
others whose students of seed 0 agree most often on those images. Runs that are done are kept, those
that diverged too; OUT.json is for one group, with the same seconds, TEST and flags.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rows import begun_with, spread

import synthkd
from synthkd import recipe as recipes
from synthkd.core.files import write_json
from synthkd.data.sources import Images
from synthkd.engine.build import build, images_for
from synthkd.engine.held_out import select_final_weights
from synthkd.engine.loop import Lab, rounds
from synthkd.evaluation.compare import compare
from synthkd.evaluation.image_scores import score_by_teacher

MOMENTS, ASKED = 12, 1000  # of a run, and images at each
SAMPLED = 2000  # images of the memory that are looked at
Settings = dict[str, Any]


def terms(**weights: float) -> Settings:
    """A table of terms, KL included unless it is given."""
    return {"training.terms": {"soft_targets": 1.0, **weights}}


KL = {"soft_targets": 0.0}
FIXED = {"difficulty.enabled": False, "difficulty.start": 0.9}  # at its ceiling from the beginning
STAGES = ("pregenerate", "finetune", "joint")  # of the pipelines gan and adaptive
PLAIN = {"one_hot": 0.5, "statistics": 10.0, "prototype": 0.0, "consistency": 0.0}
SEEKING = {"disagreement": 1.0, "realism": 0.1}
GROUPS: dict[str, dict[str, Settings]] = {
    "plain": {"as given": {}},
    "terms": {
        "soft_targets": {},
        "standardized_targets": {
            **terms(**KL, standardized_targets=9.0), "training.temperature": 2.0,  # as published
        },
        "decoupled": terms(**KL, decoupled_target=1.0, decoupled_others=2.0),
        "decoupled, as published": {
            **terms(**KL, decoupled_target=1.0, decoupled_others=8.0), "training.temperature": 4.0,
        },
        "correlations": terms(**KL, class_correlation=2.0, image_correlation=2.0),
        "logit_l1": terms(**KL, logit_l1=1.0),
        "votes": terms(**KL, votes=1.0),
        "+ votes": terms(votes=0.5),
        "+ smoothed_votes": terms(smoothed_votes=0.5),
        "+ attention": terms(attention=250.0),
        "+ hint": terms(hint=1.0),
        "+ 10 hint": terms(hint=10.0),
        "+ cross_attention": terms(cross_attention=1.0),
        "+ transport": terms(transport=1.0),
        "+ sliced_transport": terms(sliced_transport=1.0),
        "+ projection": terms(projection=1.0),
        "+ 10 projection": terms(projection=10.0),
        "+ relational": terms(relational_distance=25.0, relational_angle=50.0),
        "+ similarity": terms(similarity=3000.0),
        "+ neighbours": terms(neighbours=100.0),
        "+ instance_contrast": terms(instance_contrast=0.8),
        "+ memory_contrast": terms(memory_contrast=0.8),
    },
    "weights": {
        kind: {**terms(hint=1.0), "training.weighting": kind}
        for kind in ("fixed", "capacity", "uncertainty", "gradnorm", "agreement")
    },
    "temperature": {
        **{f"constant {t}": {"training.temperature": t} for t in (1, 4, 8, 20)},
        "linear 20 to 4": {"training.temperature": 20, "training.temperature_schedule": "linear"},
        "cosine 20 to 4": {"training.temperature": 20, "training.temperature_schedule": "cosine"},
        "linear 5 to 1": {"training.temperature": 5, "training.temperature_end": 1,
                          "training.temperature_schedule": "linear"},
        "adaptive 20 to 1": {"training.temperature": 20, "training.temperature_end": 1,
                             "training.temperature_schedule": "adaptive"},
    },
    "replay": {
        "even": {},
        "prioritised": {"memory.priority": 0.6},
        "prioritised, uncorrected": {"memory.priority": 0.6, "memory.priority_correction": 0.0},
        "easy first": {"memory.curriculum": True},
        "boundary": {"memory.boundary": 0.5},
        "recalibrated": {"training.recalibrate": True},
        "without averages": {"training.ema": 0.0},
    },
    "ablation": {
        "basic": {
            "training.terms": {"soft_targets": 1.0, "hint": 0.0}, "training.weighting": "fixed",
            "training.temperature_schedule": "constant", "memory.priority": 0.0,
            "teaching.average_weight": 0.0, **FIXED,
        },
        "+ dynamic weights": {"memory.priority": 0.0, "teaching.average_weight": 0.0, **FIXED},
        "+ own average": {"memory.priority": 0.0, **FIXED},
        "+ prioritised replay": FIXED,
        "all": {},
    },
    "teaching": {
        "teacher": {},
        "own average 0.3": {"teaching.average_weight": 0.3},
        "born again": {"teaching.assistants": "resnet8"},
        "assistant": {"teaching.assistants": "resnet14"},
        "assistant of 20 layers": {"teaching.assistants": "resnet20"},
        "assistant and teacher": {
            "teaching.assistants": "resnet14", "teaching.assistant_weight": 0.5,
        },
        "assistant, promoted at 95 %": {
            "teaching.assistants": "resnet14", "teaching.promote_at": 0.95,
            "teaching.rollback": 0.05,
        },
        "peer": {"teaching.peer": "resnet8"},
        "larger peer": {"teaching.peer": "resnet14"},
    },
    "generation": {
        "gan": {},
        "no spectral norm": {"discriminator.spectral_norm": False},
        "no curriculum": FIXED,
        "neither": {"discriminator.spectral_norm": False, **FIXED},
        "no semantic consistency": {
            "stage.pregenerate.terms": PLAIN, "stage.joint.terms": {**PLAIN, **SEEKING},
        },
        "float32": {"run.precision": "float32"},
        "no clipping": {"training.clip": 0.0, "generator.clip": 0.0},
        "float32, no clipping": {
            "run.precision": "float32", "training.clip": 0.0, "generator.clip": 0.0,
        },
    },
    "stages": {
        "all": {},
        **{f"without {left}": {"run.stages": tuple(s for s in STAGES if s != left)}
           for left in STAGES},
        "joint alone": {"run.stages": ("joint",)},
    },
    "mix": {f"{ratio:g} synthetic": {"data.mix_ratio": ratio} for ratio in (0, 0.25, 0.5, 0.75, 1)},
}  # fmt: skip
RATED = ("terms",)  # groups whose variants try rates


def parted(words: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the first `--`, and what after it.

    >>> parted(["OUT", "mix", "--", "--teacher", "demo"]), parted(["OUT", "mix"])
    ((['OUT', 'mix'], ['--teacher', 'demo']), (['OUT', 'mix'], []))
    """
    place = words.index("--") if "--" in words else len(words)
    return words[:place], words[place + 1 :]


def flags_of(words: list[str]) -> dict[str, Any]:
    """Flags of `synthkd distill` as settings by dotted name; one without a value is a switch.

    >>> flags_of(["--teacher", "resnet20", "--trust-code", "--training.learning-rate=0.1"])
    {'teacher.spec': 'resnet20', 'run.trust_code': 'true', 'training.learning_rate': '0.1'}
    """
    short = {setting.flag: setting.key for setting in recipes.settings() if setting.flag}
    found: dict[str, Any] = {}
    waiting = ""  # the flag that the next word may be the value of
    for word in words:
        if not word.startswith("--"):
            if not waiting:
                raise SystemExit(f"{word}: flags of synthkd distill begin with --")
            found[waiting], waiting = word, ""
            continue
        flag, given, value = word.partition("=")
        key = short.get(flag, flag.removeprefix("--").replace("-", "_"))
        found[key] = value if given else "true"
        waiting = "" if given else key
    return found


def lab_of(settings: Settings, rate: float, seed: int, seconds: float) -> Lab:
    """The lab of a variant."""
    base = recipes.from_settings({**settings, "run.seed": seed})
    training = base.training.model_copy(
        update={"learning_rate": base.training.learning_rate * rate}
    )
    run = base.run.model_copy(update={"trust_code": True})
    if base.data.synthetic:
        run = run.model_copy(update={"stages": ("study",)})
    budget = base.budget.model_copy(update={"images": None, "minutes": seconds / 60})
    return build(base.model_copy(update={"training": training, "run": run, "budget": budget}))


def run(
    settings: Settings, test: str, seconds: float, rate: float, seed: int, copies: str = ""
) -> dict[str, Any]:
    """One student: scores and costs, or why there is none."""
    try:
        lab = lab_of(settings, rate, seed, seconds)
    except synthkd.InputError as error:
        return {"refused": str(error)}
    lab.limit(seconds)
    began, kept = time.perf_counter(), []
    try:
        for _ in rounds(lab):
            assert lab.learner is not None
            passed = time.perf_counter() - began
            final = lab.chain is None or lab.chain.last
            if final and lab.learner.steps and passed > seconds * (len(kept) + 1) / MOMENTS:
                state = lab.learner.average or lab.learner.student.state_dict()
                kept.append((passed, {k: v.clone() for k, v in state.items()}))
    except synthkd.InputError as error:  # after the last round: there was not enough time
        return {"refused" if lab.finished else "diverged": str(error)}
    chosen, _ = select_final_weights(lab)
    assert lab.learner is not None
    student, images = lab.learner.student, images_for(lab.recipe, test, lab.teacher, labelled=True)
    scored = compare(student, lab.teacher, images)
    found = {
        "held_out": chosen["held_out_agreement"], "steps": lab.learner.steps,
        "images": lab.progress.images_seen, "accuracy": scored.student_accuracy,
        "ms": 1000 * lab.seconds["student"] / max(1, lab.learner.steps),
        "teacher_ms": 1000 * lab.seconds["labelling"] / max(1, lab.learner.steps),
        "agreement": scored.agreement, "transfer": scored.transfer_efficiency,
    }  # fmt: skip
    if copies:
        lesser = images_for(lab.recipe, copies, lab.teacher, labelled=True)
        found["copies"] = compare(student, lab.teacher, lesser).student_accuracy
    few, curve = first_of(images, ASKED), []
    goal = 0.95 * (compare(student, lab.teacher, few).student_accuracy or 0.0)
    for passed, state in kept:
        lab.learner.use(state)
        accuracy = compare(student, lab.teacher, few).student_accuracy
        curve.append((passed, accuracy))
    times = [passed for passed, accuracy in curve if accuracy is not None and accuracy >= goal]
    return {
        **found, "curve": curve, "to_95": min(times, default=seconds),
        "made": {} if lab.recipe.data.synthetic else quality(lab),
    }  # fmt: skip


def first_of(images: Images, count: int) -> Images:
    """The first images of a set, with their labels."""
    labels = None if images.labels is None else images.labels[:count]
    return images._replace(pixels=images.pixels[:count], labels=labels)


def quality(lab: Lab) -> dict[str, float | None]:
    """What the teacher says of the images in the memory: balance, consistency, diversity."""
    if not len(lab.memory):
        return {}
    order = torch.randperm(len(lab.memory), generator=torch.Generator().manual_seed(0))
    sample = lab.memory.everything().take(order[:SAMPLED])
    scores, _ = score_by_teacher(sample.images, lab.teacher)
    return {name: score.value for name, score in scores.items()}


def table(done: dict[str, Any], names: list[str]) -> None:
    """A row for each variant."""
    print("| variant | rate | ms a step, and teacher's | accuracy % | of copies | stability "
          "| agreement % | transfer | held-out % | s to 95 % | n |")  # fmt: skip
    print("|---" * 11 + "|")
    for name in names:
        runs = done.get(name, {})
        refused = [value["refused"] for value in runs.values() if "refused" in value]
        if refused:
            print(f"| {name} | refused: {refused[0]} | | | | | | | | | |")
            continue
        if not runs:
            continue
        lost = [value["diverged"] for value in runs.values() if "diverged" in value]
        best = best_rate(runs)
        if best is None:
            print(f"| {name} | diverged: {lost[0] if lost else ''} | | | | | | | | | |")
            continue
        taken = [
            value for key, value in runs.items()
            if key.startswith(f"{best} ") and "held_out" in value
        ]  # fmt: skip

        def told(key: str, scale: float = 1.0, taken: list[Any] = taken) -> str:
            return spread([each[key] * scale for each in taken if each.get(key) is not None], 2)

        scores = [each["accuracy"] for each in taken]
        stable = 1 - statistics.stdev(scores) / statistics.fmean(scores) if len(scores) > 1 else 1
        print(f"| {name} | {best} | {told('ms')}, {told('teacher_ms')} | {told('accuracy', 100)} "
              f"| {told('copies', 100)} | {stable:.3f} | {told('agreement', 100)} "
              f"| {told('transfer')} | {told('held_out', 100)} | {told('to_95')} | {len(taken)}"
              f"{f', {len(lost)} diverged' if lost else ''} |")  # fmt: skip


def table_of_images(done: dict[str, Any], names: list[str]) -> None:
    """Of variants that made images: what the teacher says of these."""
    rows = {
        name: [run["made"] for run in done.get(name, {}).values() if run.get("made")]
        for name in names
    }
    scores = next((list(made[0]) for made in rows.values() if made), [])
    if not scores:
        return
    print(f"\n| variant | {' | '.join(scores)} | n |")
    print("|---" * (len(scores) + 2) + "|")
    for name, made in rows.items():
        cells = []
        for score in scores:
            values = [each[score] for each in made if each.get(score) is not None]
            more = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.3f}{more}" if values else "-")
        print(f"| {name} | {' | '.join(cells)} | {len(made)} |")


def best_rate(runs: dict[str, Any]) -> float | None:
    """The rate whose student of seed 0 agreed most often on held-out images; None where there is
    no student.

    >>> best_rate({"1.0 0": {"held_out": 0.8}, "2.0 0": {"diverged": "…"}})
    1.0
    """
    tried = [
        float(key.removesuffix(" 0")) for key, found in runs.items()
        if key.endswith(" 0") and "held_out" in found
    ]  # fmt: skip
    return max(tried, key=lambda rate: float(runs[f"{rate} 0"]["held_out"]), default=None)


def leading(done: dict[str, Any], names: list[str], count: int | None) -> list[str]:
    """The first variant, and the others whose students of seed 0 agree most often on held-out
    images at their best rate: so many, in the order of `names` (None: all that have a student).

    >>> done = {n: {"1.0 0": {"held_out": v}} for n, v in (("a", 0.1), ("b", 0.3), ("c", 0.2))}
    >>> leading(done, ["a", "b", "c"], 1), leading(done, ["a", "b", "c"], None)
    (['a', 'b'], ['a', 'b', 'c'])
    """
    scores = {
        name: float(done[name][f"{rate} 0"]["held_out"])
        for name in names if (rate := best_rate(done.get(name, {}))) is not None
    }  # fmt: skip
    others = sorted((n for n in scores if n != names[0]), key=lambda name: -scores[name])
    kept = {names[0], *others[:count]}
    return [name for name in names if name in scores and name in kept]


def main() -> None:
    """Runs what is not done yet, and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--test", default="")
    parser.add_argument("--copies", default="")
    parser.add_argument("--seconds", type=float, default=45)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", default="0.5,1,2", help="of groups that try rates")
    parser.add_argument("--best", type=int, help="variants that get more than seed 0 (all)")
    parser.add_argument("--only", default="")
    parser.add_argument("--table", action="store_true")
    own, words = parted(sys.argv[1:])
    given = parser.parse_args(own)
    done: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    names = [
        name for name in GROUPS[given.group] if not given.only or name in given.only.split(",")
    ]
    if given.table:
        table(done, names)
        table_of_images(done, names)
        return
    if not given.test:
        parser.error("--test: a data path with labels")
    torch.set_num_threads(2)
    flags = flags_of(words)
    begun_with(given.out.with_suffix(".begun.json"), {
        "group": given.group, "seconds": given.seconds, "test": given.test,
        "copies": given.copies, "flags": flags,
    })  # fmt: skip

    def once(name: str, rate: float, seed: int) -> None:
        runs, key = done.setdefault(name, {}), f"{rate} {seed}"
        if key in runs or any("refused" in found for found in runs.values()):
            return
        settings = {**flags, **GROUPS[given.group][name]}
        runs[key] = run(settings, given.test, given.seconds, rate, seed, given.copies)
        write_json(given.out, done)
        brief = {k: v for k, v in runs[key].items() if k != "curve"}
        print(f"{name}, rate {rate}, seed {seed}: {brief}", flush=True)

    rates = list(map(float, given.rates.split(","))) if given.group in RATED else [1.0]
    for name in names:
        for rate in rates:
            once(name, rate, 0)
    for seed in range(1, given.seeds):
        for name in leading(done, names, given.best):
            rate = best_rate(done[name])
            assert rate is not None
            once(name, rate, seed)
    table(done, names)
    table_of_images(done, names)


if __name__ == "__main__":
    main()
