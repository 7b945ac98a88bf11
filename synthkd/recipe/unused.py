"""Settings that were given and do nothing in this run: each is named, so nobody relies on it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from synthkd.core.findings import Finding
from synthkd.recipe import Recipe, Stage, sources_of


def given_keys(*layers: Mapping[str, Any]) -> frozenset[str]:
    """The dotted keys that a user's own settings name: of a config file, of flags; stages by their
    names.

    >>> sorted(given_keys({"run": {"seed": 1}}, {"pipeline": "gan"}, {"stage": {"joint": {}}}))
    ['pipeline', 'run.seed', 'stage.joint']
    """
    found = set()
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping):
                found |= {f"{key}.{leaf}" for leaf in value}
            else:
                found.add(key)
    return frozenset(found)


def ignored(
    recipe: Recipe,
    stages: Sequence[Stage],
    given: Collection[str],
    readers: Mapping[str, Collection[str]],
    *,
    student: bool = True,
    slimmable: bool = False,
) -> list[Finding]:
    """A finding for each of the `given` keys that changes nothing, by the recipe and the stages
    that will run, with a student or without one. `readers` are the generators that read a table,
    by its name, where not every run does; `slimmable` says that a network of several widths
    learns."""
    from synthkd.losses.distillation import SHIPPED, SOFTENED, TERMS  # not for --help: torch

    sources = sources_of(recipe, student=student)
    generators = {stage.generator for stage in stages}
    training, teaching, memory = recipe.training, recipe.teaching, recipe.memory
    hardened = recipe.augment.affine or recipe.augment.jitter or recipe.augment.erase
    terms = {name for name, weight in training.terms.items() if weight}
    # what terms of one's own read of a view is not known
    softened = SOFTENED & terms or terms - SHIPPED or teaching.peer or slimmable
    layered = any("features" in TERMS[name].needs for name in terms if name in TERMS)
    fresh = [stage.synthesizes for stage in stages if stage.student_steps and student]
    stored = sources.synthetic and bool(memory.capacity or recipe.data.synthetic)
    told = memory.form == "images" and not recipe.data.synthetic  # who made an image
    # a batch without fresh images comes from the memory alone
    replays = stored and any(memory.replayed or not new for new in fresh)
    idle = [
        ("data.real", not sources.real,
         "--real-data is not used at --mix-ratio 1.0", "give --mix-ratio 0.5 to mix, or omit it"),
        ("data.synthetic", not sources.synthetic,
         "--synthetic is not used at --mix-ratio 0", "give a larger --mix-ratio, or omit it"),
        ("training.momentum", training.optimizer != "sgd",
         f"training.momentum is for sgd, and the optimizer is {training.optimizer}", "omit it"),
        ("training.temperature", not softened,
         "training.temperature is for terms that soften answers (soft_targets), and training.terms "
         "lack them", "omit it"),
        ("training.widths", student and not slimmable,
         "training.widths is for a student of several widths", "give --student slim:resnet20, or "
         "omit it"),
        ("training.temperature_end", training.temperature_schedule == "constant",
         "training.temperature_end is for a course of the temperature, and it is constant",
         "give --training.temperature_schedule cosine, or omit it"),
        *((f"training.{key}", not layered,
           f"training.{key} is for terms that compare layers (hint), and training.terms lack them",
           "give --training.terms soft_targets=1,hint=1, or omit it")
          for key in ("student_layers", "teacher_layers")),
        ("memory.replayed", not stored or not any(fresh),
         "memory.replayed is the share of remembered images beside fresh ones, and no stage of "
         "this run teaches with both", "omit it"),
        *((f"memory.{key}", not replays,
           f"memory.{key} chooses among remembered images, and the student sees none of them",
           "give --memory.replayed 0.5, or omit it" if stored else "omit it")
          for key in ("priority", "curriculum", "boundary")),
        ("memory.shares", not (told and stored and fresh),
         "memory.shares divides remembered images by their generators, and in this run none are "
         "remembered with theirs", "omit it"),
        ("difficulty.per_image", not hardened or not replays,
         "difficulty.per_image changes augment.affine, jitter and erase of remembered images, and "
         "there are none", "give --augment.jitter 0.3, or omit it"),
        ("memory.priority_correction", not memory.priority or not replays,
         "memory.priority_correction makes up for priorities, and there are none",
         "give --memory.priority 0.6, or omit it"),
        *((f"teaching.{key}", not teaching.assistants,
           f"teaching.{key} is for assistants, and there are none",
           "give --teaching.assistants NAME, or omit it")
          for key in ("assistants_share", "assistant_weight", "promote_at", "rollback")),
        ("teaching.peer_weight", not teaching.peer,
         "teaching.peer_weight is for a peer, and there is none",
         "give --teaching.peer NAME, or omit it"),
        ("training.milestones", training.schedule != "steps",
         f"training.milestones are for the schedule steps, and this one is {training.schedule}",
         "omit them"),
    ]  # fmt: skip
    fixed = {"enabled", "start", "per_image"}  # of [difficulty]: they need no scheduler
    found = [
        Finding("ignored-setting", seen, remedy)
        for key, unused, seen, remedy in idle
        if key in given and unused
    ]
    running = [stage.name for stage in stages]
    changed = {key.split(".")[1] for key in given if key.startswith("stage.")}
    found += [
        Finding(
            "ignored-setting",
            f"--stage.{name} is not used: the stages of this run are {', '.join(running)}",
            "omit it, or choose other stages (--run.stages)",
        )
        for name in sorted(changed.difference(running))
    ]
    for key in sorted(given):
        table, _, leaf = key.partition(".")
        known = readers.get(table, ())
        if key == "generator.kind":
            if all(stage.generator != "auto" for stage in recipe.stages):
                found.append(
                    Finding(
                        "ignored-setting",
                        f"every stage of the pipeline {recipe.pipeline} names its own generator: "
                        "--generator is not used",
                        "omit it, or choose another --pipeline",
                    )
                )
        elif known and not generators & set(known) and key != "generator.start":
            found.append(
                Finding(
                    "ignored-setting",
                    f"{key} is for the generator{'s' if len(known) > 1 else ''} "
                    f"{', '.join(known)}, and no stage of this run has one",
                    "omit it, or choose another --pipeline",
                )
            )
        if table == "difficulty" and leaf not in fixed and not recipe.difficulty.enabled:
            found.append(
                Finding(
                    "ignored-setting", f"{key} is not used while difficulty.enabled is false",
                    "give --difficulty.enabled true, or omit it",
                )
            )  # fmt: skip
    return found
