"""What a run will take, before it begins: seconds, images and memory, from speeds measured here.

`measure` tries every part of a round for a moment, with few images, on copies: nothing of the run
is changed by it. `predict` is arithmetic on what was measured. B images, C H W their size.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from types import MappingProxyType

import torch
from torch import Tensor, nn

from synthkd.core.allocator import give_back_freed_memory
from synthkd.core.images import to_float
from synthkd.core.states import PART
from synthkd.engine.held_out import LOOKED_AT
from synthkd.engine.loop import HELD_OUT, Lab
from synthkd.engine.progress import Budget
from synthkd.engine.synthesizing import synthesize
from synthkd.engine.teaching import REFITTING
from synthkd.images.augment import augmented
from synthkd.networks.activations import activations
from synthkd.networks.classifier import Classifier
from synthkd.networks.refitting import looked_at, timed
from synthkd.recipe import Recipe, Stage
from synthkd.replay.memory import images_held
from synthkd.synthesis import GENERATORS
from synthkd.synthesis.context import HELD_BACK
from synthkd.synthesis.resolution import mean_area
from synthkd.teachers.protocol import Seen, Teacher, asked_freely

TRIED = 2**17  # pixels in a batch that is tried: as many as a CPU's caches hold well
TRIAL = 0.3  # seconds of a trial with a larger batch
WHOLE = 8.0  # seconds that one trial of a whole batch may take: what takes so long is in a long run
HELD_PIXELS = 2**24  # of the noise that stands for remembered images
SAVED = 3e8  # bytes a second, at which a checkpoint is written and read back


@dataclass(frozen=True)
class RoundCost:
    """What one round of a stage takes, and gives."""

    synthesis: float  # seconds
    labelling: float  # seconds: answers to fresh images
    student: float  # seconds: views, the teacher's answers to them, steps
    synthesized: float = 0.0  # images offered to the memory
    trained: float = 0.0  # images of the generator's training that the budget counts
    seen: float = 0.0  # images that the student learns from

    @property
    def seconds(self) -> float:
        """Of the whole round."""
        return self.synthesis + self.labelling + self.student


@dataclass(frozen=True)
class StageEstimate:
    """What a stage will take."""

    name: str
    rounds: float
    round_seconds: float
    seconds: float
    synthesized: float  # images
    seen: float  # images


@dataclass(frozen=True)
class Estimate:
    """What a run will take, from its first round to its last; `after` are the seconds for what is
    done once, refitting a student that was cut out of its teacher and choosing weights, and
    `memory` the most bytes at once."""

    stages: tuple[StageEstimate, ...]
    after: float
    memory: float

    @property
    def seconds(self) -> float:
        """In all."""
        return sum(stage.seconds for stage in self.stages) + self.after

    @property
    def seen(self) -> float:
        """Images that the student learns from."""
        return sum(stage.seen for stage in self.stages)


def predict(
    stages: Sequence[Stage], budget: Budget, costs: Mapping[str, RoundCost]
) -> tuple[StageEstimate, ...]:
    """Rounds, seconds and images of every stage.

    A stage ends when its quota is used up, and a round is never cut: of a budget in images

        rounds = ⌈ quota / images that count in a round ⌉

    and of one in minutes the quota divided by what a round takes, at least one.

    >>> from synthkd.engine.progress import Budget
    >>> cost = {"a": RoundCost(1.0, 0.5, 0.5, synthesized=256, seen=1280)}
    >>> predict([Stage(name="a")], Budget(False, (2560.0,), 2560.0), cost)[0].seconds
    4.0
    >>> predict([Stage(name="a")], Budget(True, (60.0,), 60.0), cost)[0].seen
    38400.0
    """
    found = []
    for stage, quota in zip(stages, budget.quotas, strict=True):
        cost = costs[stage.name]
        each = max(cost.seconds, 1e-9)
        if budget.timed:
            rounds = max(1.0, quota / each)
        else:
            counts = cost.seen if stage.student_steps else max(cost.trained, cost.synthesized)
            whole = -(-quota // counts) if counts else 1.0
            # the last round of a teaching stage takes what is left of its quota
            rounds = min(whole, quota / counts + 0.0) if stage.student_steps and counts else whole
        seen = rounds * cost.seen
        found.append(
            StageEstimate(
                stage.name, rounds, each, rounds * each, rounds * cost.synthesized,
                seen if budget.timed else min(seen, quota) if stage.student_steps else 0.0,
            )
        )  # fmt: skip
    return tuple(found)


def shared(cost: RoundCost, count: int, *, steps: int = 0, exchange: float = 0.0) -> RoundCost:
    """What a round takes and gives if n = `count` processes do it together, from what it takes one
    alone: each makes as many images as one alone would, and learns its part of every batch; a
    student step takes `exchange` seconds more, for the gradients.

        student ← student / n + steps · exchange;    synthesized, trained ← n times as many

    So a run with a budget in images takes

        (synthesis + labelling + student) / n + steps · exchange

    >>> of_four = shared(RoundCost(2.0, 1.0, 8.0, 100.0, 50.0, 640.0), 4, steps=5, exchange=0.1)
    >>> of_four.student, of_four.synthesized, of_four.trained, of_four.seen
    (2.5, 400.0, 200.0, 640.0)
    """
    return replace(
        cost, student=cost.student / count + steps * exchange,
        synthesized=cost.synthesized * count, trained=cost.trained * count,
    )  # fmt: skip


def estimate_writing(lab: Lab, offering: Stage, count: int, *, before: int) -> Estimate:
    """What a data set of `count` images will take: the first `before` stages, then rounds of the
    stage `offering`, if the teacher agrees with every image."""
    costs, _ = measure(lab, [*lab.stages, offering.model_copy(update={"name": "write"})])
    cost = costs["write"]
    rounds = -(-count // max(1.0, cost.synthesized))
    writing = StageEstimate(
        "write", rounds, cost.seconds, rounds * cost.seconds, rounds * cost.synthesized, 0.0
    )
    earlier = predict(lab.stages, lab.budget, costs)[:before]
    return Estimate((*earlier, writing), 0.0, _memory(lab, 0.0))


def estimate(lab: Lab) -> Estimate:
    """What the run of a fresh `lab` will take on this machine, by trying its parts; of several
    processes each tries them at the same time."""
    costs, answer = measure(lab)
    if (count := lab.processes.count) > 1:
        exchange = _exchange(lab)
        steps = {s.name: s.student_steps * lab.recipe.training.repeats for s in lab.stages}
        costs = {
            name: shared(cost, count, steps=steps[name], exchange=exchange)
            for name, cost in costs.items()
        }
    refitting = _refitting(lab)
    stages = predict(lab.stages, _without(lab, refitting), costs)
    synthesized = sum(stage.synthesized for stage in stages)
    kept = min(float(lab.recipe.memory.capacity), synthesized)
    saving = 0.0
    if lab.learner is not None:
        every = lab.recipe.run.checkpoint_seconds
        saving = sum(s.seconds for s in stages) / every * kept / 2 * row_bytes(lab.teacher) / SAVED
    held = min(HELD_OUT, synthesized / HELD_BACK)
    weights = 2 if lab.learner is not None and lab.learner.average is not None else 1
    after = weights * held * answer + saving + refitting
    return Estimate(stages, after, _memory(lab, kept))


def _refitting(lab: Lab) -> float:
    """Seconds of refitting a student that was cut out of its teacher, and its peer."""
    seconds, whole = 0.0, lab.teacher.network
    for learner in filter(None, (lab.shipped, lab.peer)):
        if learner.student.kept and isinstance(whole, Classifier):
            some = torch.zeros(8, *lab.teacher.spec.shape, device=lab.device)
            with whole.guard():
                found = timed(learner.student.body, whole.body, learner.student.kept, some)
            most = REFITTING * sum(lab.budget.quotas) if lab.budget.timed else inf
            seconds += found.seconds(count) if (count := found.count(most)) else 0.0
    return seconds


def _without(lab: Lab, seconds: float) -> Budget:
    """The budget without so many seconds of the first stage that teaches."""
    budget, quotas = lab.budget, list(lab.budget.quotas)
    teaching = [k for k, stage in enumerate(lab.stages) if stage.student_steps]
    if budget.timed and teaching:
        quotas[teaching[0]] = max(0.0, quotas[teaching[0]] - seconds)
    return replace(budget, quotas=tuple(quotas))


def _memory(lab: Lab, remembered: float) -> float:
    """Bytes of all processes."""
    student, count = lab.shipped.student if lab.shipped is not None else None, lab.processes.count
    return count * memory_of(
        lab.teacher, lab.stages, student, batch=-(-lab.recipe.training.batch // count),
        remembered=remembered / count, bfloat16=lab.bfloat16,
        shown={k: v for each in lab.learners for k, v in each.objective.teacher_shapes.items()},
        repeats=lab.recipe.training.repeats,
    )  # fmt: skip


def _exchange(lab: Lab) -> float:
    """Seconds of averaging gradients of the student's size over the processes."""
    if lab.shipped is None:
        return 0.0
    gradients = [torch.zeros_like(p) for p in lab.shipped.student.parameters()]
    lab.processes.mean_(gradients)  # the first one joins them
    return _timed(lambda: lab.processes.mean_(gradients), 3, lab.device)


def memory_of(
    teacher: Teacher, stages: Sequence[Stage], student: nn.Module | None, *, batch: int,
    remembered: float, bfloat16: bool, shown: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    repeats: int = 1,
) -> float:  # fmt: skip
    """Bytes: what this process holds now, what a batch keeps for its gradients, or the refit of a
    student that was cut out of its teacher takes, and the images `remembered`: themselves, unless
    they lie in a file, and three times those of one file of a checkpoint, which is written from a
    copy and read back. A student also holds what the teacher has `shown` of a batch, features of
    these shapes by layer; with `repeats` above 1 also those of all batches of a round, and their
    views: twice while they are put together, before it learns."""
    width = 2 if bfloat16 else 4
    whole = remembered * row_bytes(teacher)
    filed = remembered > images_held(teacher.spec.shape)
    held = 2.0 * remembered * teacher.classes if filed else whole
    learned = refined = refitted = 0.0
    if student is not None:
        learned = width * batch * activations(student, teacher.spec.shape)
        features = width * sum(prod(shape) for shape in shown.values())
        learned += batch * features
        if repeats > 1:  # views are float32 before they are put together, and uint8 afterwards
            count = batch * max((s.student_steps for s in stages), default=0)
            views = prod(teacher.spec.shape)
            learned += count * (features + views)
            learned = max(learned, count * (2 * features + (4 + 1 + 1) * views))
        if isinstance(student, Classifier) and student.kept:
            blank = torch.zeros(1, *teacher.spec.shape, device=student.mean.device)
            found = looked_at(student.body, student.kept, blank)
            refitted = found.memory(found.count())
    if teacher.access == "full" and any(s.terms for s in stages):
        count = max(s.synthesis_batch for s in stages if s.terms)
        refined = width * count * activations(teacher.network, teacher.spec.shape)
    return resident() + max(learned, refined, refitted) + held + 3 * min(whole, PART)


def row_bytes(teacher: Teacher) -> float:
    """Bytes of a remembered image with the teacher's answer."""
    return float(prod(teacher.spec.shape) + 2 * teacher.classes)


def resident() -> float:
    """Bytes that this process holds now, without what it has freed: 0 where the system does not
    tell."""
    give_back_freed_memory()
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            pages = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    import resource

    return float(pages * resource.getpagesize())


def measure(lab: Lab, stages: Sequence[Stage] | None = None) -> tuple[dict[str, RoundCost], float]:
    """What a round of every stage takes, by stage (of others than the run's where `stages` are
    given), and the seconds of one answer of the student.

    Tried with copies of student and generators and with noise in the place of remembered images;
    of the run nothing changes. A black box is asked about few images, and is counted as asked.
    """
    teacher, recipe = lab.teacher, lab.recipe
    before = teacher.queries
    few = max(4, min(recipe.training.batch, TRIED // (teacher.spec.height * teacher.spec.width)))
    if not asked_freely(teacher):
        few = 4
    patient = asked_freely(teacher)
    student = copy.deepcopy(lab.shipped.student) if lab.shipped is not None else None
    wide = max((s.synthesis_batch for s in stages or lab.stages if s.synthesis_steps), default=0)
    held = 8 * few
    if patient:  # enough for a large batch to begin with, where that is not too much
        held = max(held, min(4 * wide, HELD_PIXELS // (teacher.spec.height * teacher.spec.width)))
    small = recipe.model_copy(
        update={
            "memory": recipe.memory.model_copy(
                update={"capacity": held if recipe.memory.capacity else 0, "form": "images"}
            ),
            "pixels": recipe.pixels.model_copy(update={"scales": {}}),  # see `_round`
        }
    )
    tried = Lab(
        small,
        lab.stages,
        teacher,
        student,
        device=lab.device,
        bfloat16=lab.bfloat16,
        sources=lab.sources,
    )
    rng = torch.Generator().manual_seed(0)
    shape = teacher.spec.shape
    most = recipe.training.batch if patient else few
    noise = torch.randint(256, (8 * few, *shape), dtype=torch.uint8, generator=rng)
    pixels = noise.repeat(-(-max(held, most) // len(noise)), 1, 1, 1)
    labels = torch.arange(held) % teacher.classes
    tried.memory.add(
        pixels[:held], labels, torch.randn(held, teacher.classes, generator=rng), "data"
    )
    if lab.real is not None:
        tried.real = lab.real[: 8 * few]
    repeats = 3 if patient else 1
    teacher.teach(to_float(pixels[:few].to(lab.device)))  # what is prepared once: a copy, caches

    def label_some(count: int, repeats: int) -> float:
        views = to_float(pixels[:count].to(lab.device))
        return _timed(lambda: teacher.teach(views), repeats, lab.device) / count

    label = _in_large(label_some, few, most, repeats)
    step = answer = 0.0
    if tried.learner is not None:
        learner = tried.learner
        views = to_float(pixels[:few].to(lab.device))
        taught = teacher.teach(views, learner.objective.teacher_layers)

        def learn_some(count: int, repeats: int) -> float:
            many = -(-count // few)
            views = to_float(pixels[:count].to(lab.device))
            shown = {k: _repeated(v, many, count) for k, v in taught.features.items()}
            seen = Seen(_repeated(taught.logits, many, count), shown)

            def learn() -> None:
                view = augmented(views, recipe.augment, 0.0, rng)
                learner.step(view, seen, 0.5)

            if repeats > 1:
                learn()
            return _timed(learn, repeats, lab.device) / count

        step = _in_large(learn_some, few, most, repeats)
        answer = _timed(lambda: learner.answer(views), repeats, lab.device) / few
        if lab.peer is not None:  # taken to be as large: it learns too, and each asks the other
            step = 2 * (step + answer)
        if recipe.teaching.average_weight:
            label += answer
    costs = {
        stage.name: _round(tried, stage, few, label, step, answer, recipe, rng)
        for stage in stages or lab.stages
    }
    if asked_freely(teacher):
        teacher.queries = before  # asked about nothing of the run
    return costs, answer


def _round(
    lab: Lab, stage: Stage, few: int, label: float, step: float, answer: float, recipe: Recipe,
    rng: torch.Generator,
) -> RoundCost:  # fmt: skip
    """One round of a stage, from what its parts take for an image of full size; a smaller one takes
    its share of the area."""
    table, student, seen = recipe.training, 0.0, 0.0
    if step:
        answered = float(stage.student_steps * table.batch)
        seen = answered * table.repeats
        student = answered * label + seen * step * mean_area(table.scales)
    if stage.student_steps:
        student += LOOKED_AT * answer
    if not stage.synthesizes:
        return RoundCost(0.0, 0.0, student, seen=seen)
    many, fresh = min(stage.synthesis_batch, few), min(stage.fresh, max(1, few // 2))

    def turn(steps: int) -> tuple[float, float, int]:
        tried = stage.model_copy(
            update={"synthesis_steps": steps, "synthesis_batch": many, "fresh": fresh}
        )
        started = time.perf_counter()
        made = synthesize(lab, tried, rng)
        _synchronised(lab.device)
        return time.perf_counter() - started, float(made.trained), len(made.batch.images)

    steps = stage.synthesis_steps
    turn(min(steps, 1))
    first = [turn(min(steps, 1)) for _ in range(2)]
    if steps > 1 and lab.teacher.access == "full":  # large batches are slower for their size
        taken = min(t for t, _, _ in first)
        larger = min(stage.synthesis_batch, int(many * TRIAL / max(taken, 1e-6)))
        if larger > many:
            many = larger
            first = [turn(1)]
    once, trained, offered = sum(t for t, _, _ in first) / len(first), first[0][1], first[0][2]
    whole = 0.0  # seconds of a step of the whole batch, where that is not too long
    if steps > 1 and lab.teacher.access == "full" and many < stage.synthesis_batch:
        part, many = many, stage.synthesis_batch
        if once * many / part < WHOLE:
            whole = turn(1)[0]
        many = part
    wide = stage.synthesis_batch / many
    more = stage.fresh / fresh if fresh else 0.0
    if steps > 1:
        longer, trained_more, _ = turn(3)
        each, trains = max(0.0, longer - once) / 2, (trained_more - trained) / 2
    else:
        each, trains = (once, trained) if steps else (0.0, 0.0)
    scale = wide if offered == many and offered != fresh else more
    rest = max(0.0, once - each) * max(scale, wide if steps > 1 else 0.0, 1.0)
    if steps <= 1:  # a single step, or drawings: all of it grows with what is made
        synthesis = once * max(scale, wide if trains else 0.0, 1.0)
    else:
        synthesis = steps * each * wide + rest
        if whole:  # as the parts predict it: once; what a large batch costs more is in every step
            synthesis *= max(1.0, whole / (once * wide))
    if GENERATORS[stage.generator].abilities.refines:
        synthesis *= mean_area(recipe.pixels.scales)
    synthesized = offered * scale
    counted = (trained - trains) * scale + steps * trains * wide if steps > 1 else trained * wide
    return RoundCost(synthesis, synthesized * label, student, synthesized, counted, seen)


def _in_large(trial: Callable[[int, int], float], few: int, most: int, repeats: int) -> float:
    """Seconds for an image by a `trial` of so many images, so many times: with as many of them, up
    to `most`, as take about TRIAL seconds, since large batches are slower for their size, where
    caches are full; and once with all of them where that takes less than WHOLE."""
    each = trial(few, repeats)
    larger = min(most, int(TRIAL / max(each, 1e-9)))
    if larger > few:
        each = trial(larger, repeats)
    if max(few, larger) < most and each * most < WHOLE and repeats > 1:
        each = trial(most, 1)
    return each


def _repeated(values: Tensor, times: int, count: int) -> Tensor:
    """Values of a batch for one of `count` images, made of them again and again."""
    return values.repeat(times, *([1] * (values.ndim - 1)))[:count]


def _timed(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """The mean, for what delays a trial now and then will delay the run as well."""
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    _synchronised(device)
    return (time.perf_counter() - started) / repeats


def _synchronised(device: torch.device) -> None:
    if device.type == "cuda":  # where work is only begun
        torch.cuda.synchronize(device)
