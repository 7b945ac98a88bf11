"""A search for the student: many short trainings on one fixed set of synthetic images, then one
long one.

    OUT/set/              the images that all candidates learn from
    OUT/trials.jsonl      a line for each candidate
    OUT/optuna.journal    the same for optuna and its dashboard
    OUT/front.json        those that no other beats in agreement and time, and the one chosen
    OUT/front.png         the picture
    OUT/student/          the run of the chosen one
    OUT/weights/          those of candidates, from which they learn on; gone at the end
    OUT/progress.json     how long the search had worked, for a later sitting, how many candidates
                          its first generation has, and the times of the reference that others are
                          timed beside
    OUT/report.html       all of it to look at (synthkd report)

The aims are the agreement with the teacher on images of the set that nobody learned from, and the
milliseconds of one image on this machine. NSGA-II proposes candidates (Deb et al. 2002; optuna's
sampler), but for the teacher itself cut by some ratios, which is tried first; the better half of a
generation learns on from three times as many images in the next, which has fewer places (successive
halving), so that seconds go to those that are worth them. All of a generation learn from as many
images, not for as long: after some seconds the smallest ones lead, which learn fastest and end
lowest. The chosen one too goes on from the weights that it has.
"""

import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from synthkd.core import files
from synthkd.core.errors import InputError, quoted
from synthkd.core.images import ImageSpec
from synthkd.core.seeds import derived, globally
from synthkd.core.states import packed
from synthkd.data.store import MANIFEST, Writer
from synthkd.engine.build import build, build_synthesis, open_data
from synthkd.engine.held_out import select_final_weights
from synthkd.engine.loop import Lab, rounds
from synthkd.engine.reporter import Reporter, Silent
from synthkd.jobs.distillation import Distillation, Result
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.networks.pruned import is_pruned
from synthkd.recipe import Recipe, trusted
from synthkd.replay import Memory, Replay
from synthkd.reports.record import number
from synthkd.reports.search import (
    FRONT,
    SEARCH,
    STUDENT,
    TRIALS,
    Trial,
    best_of,
    draw,
    read_search,
    read_trials,
)
from synthkd.runs.directory import Run, held
from synthkd.students import latency
from synthkd.students.pareto import chosen, front
from synthkd.synthesis.diffusion.diffusers_io import promise_of
from synthkd.teachers.protocol import Teacher

if TYPE_CHECKING:
    import optuna

MAKING, TRYING = 0.25, 0.25  # shares of the time for the images and for the candidates
POPULATION, GENERATIONS = 8, 3  # candidates of the first generation, and how many there are
LONGER = 3  # times the images of the generation before
LEARNING = 0.5  # of the time for candidates, which is learning at least: there are fewer otherwise
LEAST = 0.25  # of what the first candidates would learn if nothing else took time: they learn that
MOST = 3  # times the seconds that are planned for a candidate, after which it stops
AFTER = 1.5  # times what the first candidate takes before it learns, each is taken to need in all
FIRST = (0.5, 0.7, 0.3)  # ratios of pruning that are tried first
PROGRESS, WEIGHTS = "progress.json", "weights"
ASKED = 10  # candidates that are asked for, for each that can learn: others take too long
LOOK, SURE = 0.15, 1.0  # seconds for the time of a candidate, and of one that is close or chosen
CLOSE = 1.5  # times the limit
REFERENCE = "resnet8-w16"  # is timed by turns with every candidate
LARGE = 64  # pixels from which students begin with a stride, or are cut out of the teacher
DEPTHS, WIDTHS = (8, 14, 20, 32), tuple(range(4, 33, 4))
MULTIPLES = ("0.25", "0.5", "1")  # of a MobileNet's width
RATIOS = tuple(k / 10 for k in range(2, 10))


@dataclass(frozen=True)
class Found:
    """What a search leaves."""

    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]  # of the longest trainings, the fastest first
    chosen: Trial
    milliseconds: float  # of the chosen one, measured again at the end
    longer: Mapping[str, float]  # of those that were timed for longer before one was chosen
    result: Result
    out: Path


class Search:
    """A search by a recipe with a budget in minutes, in a directory. `limit` is the most
    milliseconds of an image; `sampler` "random" proposes all candidates by chance. There are so
    many `generations`, the first of a `population` at most (`places`), in each of which candidates
    learn from about LONGER times as many images as in the one before.
    """

    def __init__(
        self, recipe: Recipe, out: Path, *, limit: float | None = None, sampler: str = "nsga2",
        population: int = POPULATION, generations: int = GENERATIONS,
        report: Reporter | None = None, started: float | None = None, by_force: bool = False,
    ) -> None:  # fmt: skip
        if not recipe.budget.minutes:
            raise InputError("a search has its budget in --minutes")
        if sampler not in ("nsga2", "random"):
            raise InputError(f"no sampler {quoted(sampler)}; known: nsga2, random")
        if limit is not None and not 0 < limit < math.inf:
            raise InputError(f"--max-latency-ms {limit:g}: give milliseconds, above 0")
        if recipe.student.max_params or recipe.student.max_flops:
            raise InputError("a search keeps no limit but --max-latency-ms: omit the others")
        if min(population, generations) < 1:
            raise InputError("a search has one candidate at least: population, generations")
        self.recipe, self.out, self.limit, self.sampler = recipe, out, limit, sampler
        self.population, self.generations = population, generations
        self.report = report or Silent()
        self.started = time.perf_counter() if started is None else started
        self.seconds = 60.0 * recipe.budget.minutes
        self.by_force, self.images = by_force, out / "set"
        needed()
        self.threads = recipe.run.threads or torch.get_num_threads()
        # from how many images a candidate learns, of the generations that have begun
        self._counts: dict[int, int] = {}
        self._first = population  # candidates of the first generation
        # by time.perf_counter: when candidates have had their time, and when the last one ended
        self._until, self._told = math.inf, 0.0
        # what candidates that learned took beside the learning, in seconds, with those before them
        # that were too slow
        self._beside: list[float] = []
        self._filled: tuple[Replay, Memory] | None = None  # the set, as the teacher labels it
        self._reference: latency.Reference | None = None
        self._past: list[float] = []  # milliseconds of the reference, of earlier sittings
        self._names: dict[int, str] = {}  # of the teacher, pruned: by its parameters
        self._longer: dict[str, float] = {}  # milliseconds of those that were timed for longer

    def run(self) -> Found:
        """Makes the images, tries candidates, trains the one that is chosen; goes on with what an
        interrupted search left. Raises InputError."""
        self._begin()
        with held(self.out, "--out"):
            trials, best, teacher = self._explore()
            told = read_search(self.out)
            self._longer |= told.longer
            taken = told.chosen or self._chosen(trials, best, teacher)
            self.report.say(
                f"chosen: {taken.student}, {taken.agreement:.2%} after {taken.images:,} images, "
                f"{taken.milliseconds:.3g} ms"
            )
            self._write(trials, best, taken, None)
            result = self._train(taken)
            measured = self._time(result.student, SURE)
            self._write(trials, best, taken, measured)
            shutil.rmtree(self.out / WEIGHTS, ignore_errors=True)
        return Found(
            tuple(trials), tuple(best), taken, measured, dict(self._longer), result, self.out
        )

    def explore(self, images: Path | None = None) -> tuple[list[Trial], list[Trial]]:
        """Makes the images and tries candidates, and no more: these, and their front. With
        `images`, the set of another search by the same teacher, they learn from that, and no longer
        than if it had been made here. Raises InputError."""
        self.images = images or self.images
        self._begin()
        if images is not None and not files.is_plain(self.out / PROGRESS):
            self.started -= MAKING * self.seconds
        with held(self.out, "--out"):
            trials, best, _ = self._explore()
        return trials, best

    def _explore(self) -> tuple[list[Trial], list[Trial], Teacher]:
        self._take_up_clock()
        teacher = self._images()
        if files.is_plain(self.out / FRONT):  # it was interrupted while the chosen one learned
            trials = [trial for trial, _ in read_trials(self.out, [])]
        else:
            self._keep_clock()
            trials = self._try(teacher)
            self._filled = None  # the chosen one has its own
        if not (best := best_of(trials)):
            raise self._none(trials)
        return trials, best, teacher

    def _chosen(
        self, trials: Sequence[Trial], best: Sequence[Trial], teacher: Teacher
    ) -> Trial:  # fmt: skip
        """The one of a front to train. With a limit it is timed for longer here: what is over the
        limit then is not taken, unless all are."""
        while True:
            times = [self._longer.get(trial.student, trial.milliseconds) for trial in best]
            points = [(trial.agreement, ms) for trial, ms in zip(best, times, strict=True)]
            place = chosen(points, self.limit)
            if place is None and not self._longer:
                raise self._none(trials)
            if place is None:
                return min(
                    (trial for trial in best if trial.student in self._longer),
                    key=lambda trial: self._longer[trial.student],
                )
            student = best[place].student
            if self.limit is None or student in self._longer:
                return best[place]
            self._longer[student] = self._time(self._made(student, teacher), SURE)

    def _none(self, trials: Sequence[Trial]) -> InputError:
        """That there is no candidate to choose."""
        if not trials or self.limit is None:
            return InputError("no candidate could be tried: give more time (--minutes)")
        return InputError(
            f"none of {len(trials)} candidates takes at most {self.limit:g} ms; the fastest takes "
            f"{min(t.milliseconds for t in trials):.3g}: give a larger --max-latency-ms"
        )

    def _begin(self) -> None:
        """Makes the directory, or finds the same search in it, unfinished."""
        told = {
            "recipe": self._plain(), "limit": self.limit, "sampler": self.sampler,
            "population": self.population, "generations": self.generations,
        }  # fmt: skip
        path = self.out / SEARCH
        if not files.is_plain(path):
            files.claim(self.out)
            files.write_json(path, told)
        where = f"--out {quoted(self.out)}"
        if files.read_table(path, where) != told:
            raise InputError(f"{where}: another search lies there; choose another directory")
        if (self.out / STUDENT / "summary.json").exists():
            raise InputError(f"{where}: this search is finished")

    def _take_up_clock(self) -> None:
        """Counts what earlier sittings took as spent."""
        path = self.out / PROGRESS
        if files.is_plain(path):
            told = files.read_table(path, f"--out {quoted(self.out)}")
            self.started -= number(told.get("seconds")) or 0.0
            past = told.get("reference_ms")
            self._past = [
                ms for ms in map(number, past if isinstance(past, list) else ()) if ms and ms > 0
            ]
            first = number(told.get("first_generation")) or self.population
            self._first = int(min(max(1, first), self.population))

    def _keep_clock(self) -> None:
        """Notes how long the search has worked."""
        files.write_json(self.out / PROGRESS, {
            "seconds": time.perf_counter() - self.started,
            "first_generation": self._first,
            "reference_ms": self._reference.past if self._reference else self._past,
        })  # fmt: skip

    def _plain(self) -> str:
        """The recipe without the directory, which may be named differently."""
        run = self.recipe.run.model_copy(update={"out": ""})
        return self.recipe.model_copy(update={"run": run}).model_dump_json()

    def _left(self) -> float:
        return self.seconds - (time.perf_counter() - self.started)

    def _images(self) -> Teacher:
        """The fixed set: what the recipe's stages synthesize in a share of the time."""
        recipe = self._with(stages=self.recipe.run.stages, minutes=MAKING * self.seconds / 60)
        lab, _ = build_synthesis(recipe, report=self.report)
        if (self.images / MANIFEST).is_file():
            return lab.teacher
        lab.limit(MAKING * self.seconds)
        for round_ in rounds(lab):
            self.report.follow(round_)
        self.report.stop()
        kept = lab.memory.everything()
        if not len(kept):
            raise InputError("a search needs images that are stored: memory.form images")
        spec, names = lab.teacher.spec, lab.teacher.names
        with Writer(
            self.images, spec, lab.teacher.classes, names, folders=False, resumed=True
        ) as writer:
            for index in torch.split(torch.arange(len(kept)), 1024):
                part = kept.take(index)
                writer.add(part.images, part.votes, part.logits)
            writer.close({
                "teacher_sha256": lab.teacher.digest,
                "promise_level": promise_of(recipe.generator.start, lab.teacher.digest),
                "real_images_read": 0, "seed": recipe.run.seed,
            })  # fmt: skip
        self.report.say(f"{len(kept):,} images for all candidates")
        return lab.teacher

    def _with(
        self, *, stages: tuple[str, ...], minutes: float, images: int | None = None,
        student: str = "", learn: bool = False, briefly: bool = False, out: str = "",
    ) -> Recipe:  # fmt: skip
        """The recipe with other stages, budget (of minutes, where no images are given) and student;
        with `learn` on the fixed set; `briefly` leaves out what takes as long as some seconds of
        learning, and assistants."""
        recipe = self.recipe
        run = recipe.run.model_copy(update={"stages": stages, "out": out})
        asked = {"images": images, "minutes": None if images else minutes}
        budget = recipe.budget.model_copy(update=asked)
        changed: dict[str, Any] = {"run": run, "budget": budget}
        if student:
            named = {"spec": student, "max_latency_ms": None}  # a limit is for --student auto
            changed["student"] = recipe.student.model_copy(update=named)
        if briefly:
            changed["training"] = recipe.training.model_copy(update={"recalibrate": False})
            changed["teaching"] = recipe.teaching.model_copy(update={"assistants": ()})
        if learn:
            changed["data"] = recipe.data.model_copy(update={"synthetic": str(self.images)})
        return recipe.model_copy(update=changed)

    def _study(self) -> tuple[str, ...]:
        """The stages that teach."""
        return tuple(stage.name for stage in self.recipe.stages if stage.student_steps)

    def _try(self, teacher: Teacher) -> list[Trial]:
        """Generations of candidates, until the time for them is over."""
        optuna = needed()
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # those of earlier versions learned for equal seconds, and are not told of images
        known = [(t, given) for t, given in read_trials(self.out, []) if t.images or not t.seconds]
        trials = [trial for trial, _ in known]
        params = {trial.student: given for trial, given in known}
        seed = derived(self.recipe.run.seed, "search", len(trials)) % 2**31
        samplers = optuna.samplers
        sampler = (
            samplers.NSGAIISampler(population_size=max(2, self.population), seed=seed)
            if self.sampler == "nsga2" else samplers.RandomSampler(seed=seed)
        )  # fmt: skip
        journal = self.out / "optuna.journal"
        # a search that was killed may have left optuna's lock, which nobody would ever release
        journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
        study = optuna.create_study(
            study_name="search", sampler=sampler, load_if_exists=True,
            storage=JournalStorage(JournalFileBackend(str(journal))),
            directions=["maximize", "minimize"],
        )  # fmt: skip
        self._prepare(teacher)
        left = self._left() - (1 - MAKING - TRYING) * self.seconds
        self._told = time.perf_counter()
        self._until = self._told + min(TRYING * self.seconds, left)
        for t in reversed(trials):
            if is_pruned(t.student):
                self._names[t.parameters] = t.student
            if t.images:
                self._counts[t.generation] = max(t.images, self._counts.get(t.generation, 0))
        for generation in range(max(self._counts, default=0), self.generations):
            _clear(study)
            for student in self._better_half(trials, generation) if generation else ():
                if student not in {t.student for t in _learned(trials, generation)}:
                    study.enqueue_trial(params[student])
            for ratio in self._ratios(trials, teacher) if not generation else ():
                study.enqueue_trial({
                    "family": "prune", "ratio": ratio, "multiple": MULTIPLES[0],
                    "depth": DEPTHS[0], "width": WIDTHS[0], "stem": stems(teacher.spec)[0],
                })  # fmt: skip
            for _ in range(ASKED * self.population):
                many = places(self._first, self.generations)[generation]
                if len(_learned(trials, generation)) >= many:
                    break
                soon = self._counts.get(generation, self._counts.get(generation - 1, 0))
                if time.perf_counter() + soon / _speed(trials) / 2 > self._until and trials:
                    return trials
                trial = study.ask()
                found = self._trial(suggested(trial, teacher), generation, teacher, trials)
                if found is None:
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    continue
                study.tell(trial, list(found.point))
                if found in trials:
                    continue
                trials.append(found)
                params[found.student] = trial.params
                line = asdict(found) | {"params": trial.params}
                files.append_line(self.out / TRIALS, json.dumps(line, allow_nan=False))
                self._keep_clock()
                self.report.say(
                    f"{found.student}: agreement {found.agreement:.2%} after "
                    f"{found.images:,} images ({found.seconds:.0f} s), "
                    f"{found.milliseconds:.3g} ms"
                    if found.seconds
                    else f"{found.student}: {found.milliseconds:.3g} ms, too slow"
                )
        return trials

    def _ratios(self, trials: Sequence[Trial], teacher: Teacher) -> list[float]:
        """By which the teacher is cut before anything is proposed: such students begin with weights
        that say something, so a search should not miss them by chance."""
        if self.sampler == "random" or teacher.access != "full":
            return []
        there = {t.student for t in trials}
        return [ratio for ratio in FIRST if f"prune:{ratio:g}" not in there]

    def _better_half(self, trials: Sequence[Trial], generation: int) -> list[str]:
        """The better half of the generation before: fronts first, of a front the best first."""
        rest = {t.student: t for t in _learned(trials, generation - 1)}
        kept, half = list[str](), len(rest) // 2
        while rest and len(kept) < half:
            names = list(rest)
            kept += [names[place] for place in front([rest[name].point for name in names])][::-1]
            rest = {name: t for name, t in rest.items() if name not in kept}
        return kept[:half]

    def _trial(
        self, student: str, generation: int, teacher: Teacher, trials: Sequence[Trial]
    ) -> Trial | None:
        """A candidate's short training, or the one that it had in this generation, or that it takes
        too long; None for one that cannot be made."""
        for t in trials:
            if t.student == student and (t.generation == generation or not t.seconds):
                return t
        began = time.perf_counter()
        many = places(self.population, self.generations)
        usual = shared_seconds(TRYING * self.seconds, 0.0, many)  # of the very first one
        if generation and generation not in self._counts:
            self._counts[generation] = self._planned(generation, trials)
        count = self._counts.get(generation)
        recipe = self._with(
            stages=self._study(), minutes=usual / 60, images=count, student=student, learn=True,
            briefly=True,
        )  # fmt: skip
        try:
            milliseconds = None
            if not is_pruned(student):  # made in no time
                network = _network(student, teacher.spec, teacher.classes)
                milliseconds, size = self._look(network), _size(network)
                if self._is_slow(milliseconds):
                    return Trial(student, 0.0, 0.0, milliseconds, size, generation)
            lab = build(recipe, teacher=teacher, data=False)
            assert lab.learner is not None
            size = _size(lab.learner.student)
            if milliseconds is None:
                name = self._names.setdefault(size, student)
                if name != student:  # cut to the same channels by another ratio
                    return self._trial(name, generation, teacher, trials)
                milliseconds = self._look(lab.learner.student)
                if self._is_slow(milliseconds):
                    return Trial(student, 0.0, 0.0, milliseconds, size, generation)
            self._fill(lab)
            if begun := self._learned_by(student, generation - 1):
                lab.learner.begin_with(begun)
            if not count:
                lab.limit(self._first_seconds(AFTER * (time.perf_counter() - began)))
            seconds = _learn(lab, MOST * count / _speed(trials) if count else math.inf)
            seen = lab.progress.images_seen
            self._counts.setdefault(generation, max(1, seen))
            _, held_out = select_final_weights(lab)
            self._keep(student, generation, lab.learner.student)
        except InputError as error:
            self.report.say(f"{student}: {error}")
            return None
        now = time.perf_counter()
        self._beside.append(max(0.0, now - self._told - seconds))
        self._told = now
        return Trial(student, seconds, held_out.agreement, milliseconds, size, generation, seen)

    def _weights(self, student: str, generation: int) -> Path:
        """Where the weights are that a candidate had after a generation."""
        return self.out / WEIGHTS / f"{student.replace(':', '-')}-{generation}.safetensors"

    def _keep(self, student: str, generation: int, network: Classifier) -> None:
        """Keeps what a candidate has learned, in the place of what it had before the generation."""
        path = self._weights(student, generation)
        path.parent.mkdir(exist_ok=True)
        files.write_atomic(path, packed(network.state_dict()), sync=False)
        self._weights(student, generation - 2).unlink(missing_ok=True)

    def _learned_by(self, student: str, generation: int) -> dict[str, Tensor] | None:
        """The weights that a candidate had after a generation; None where it took no part, or where
        they cannot be read."""
        try:
            return load_file(self._weights(student, generation))
        except (OSError, SafetensorError):
            return None

    def _first_seconds(self, beside: float) -> float:
        """How long the very first candidate learns, which settles from how many images the others
        of its generation do, if each needs so many seconds `beside`: as long as the time that is
        left allows. It also settles how many they are."""
        left = self._until - time.perf_counter()
        self._first = fitting(self.population, self.generations, left, beside)
        many = places(self._first, self.generations)
        # also where an earlier sitting has left no time
        least = LEAST * shared_seconds(TRYING * self.seconds, 0.0, many)
        return max(shared_seconds(left, beside, many), least)

    def _planned(self, generation: int, trials: Sequence[Trial]) -> int:
        """From how many images candidates of a later generation learn: as many as the time that is
        left allows if they are as fast as those before them, but no fewer than in the generation
        before."""
        beside = sum(self._beside) / len(self._beside) if self._beside else 0.0
        many = places(self._first, self.generations)[generation:]
        seconds = shared_seconds(self._until - time.perf_counter(), beside, many)
        return max(int(seconds * _speed(trials)), self._counts.get(generation - 1, 1))

    def _prepare(self, teacher: Teacher) -> None:
        """Lets the teacher label the set, and makes a student that is not tried: what is done for
        the first time takes longer, and would count against one candidate."""
        recipe = self._with(
            stages=self._study(), minutes=TRYING * self.seconds / 60, learn=True,
            student=f"resnet{DEPTHS[0]}-w{WIDTHS[0]}{_stem(stems(teacher.spec)[0])}",
        )  # fmt: skip
        lab = build(recipe, teacher=teacher, data=False)
        assert lab.learner is not None
        self._time(lab.learner.student, LOOK)
        if not recipe.memory.priority:
            self._fill(lab)

    def _fill(self, lab: Lab) -> None:
        """Puts the set into a lab, as the teacher labelled it once for all candidates, unless they
        give its images priorities."""
        if self._filled is None:
            open_data(lab)
            if not lab.recipe.memory.priority:
                self._filled = lab.memory, lab.held_out
        else:
            lab.memory, lab.held_out = self._filled

    def _time(self, network: Classifier, seconds: float) -> float:
        """Milliseconds of one image on the CPU, by the network's ONNX file, or else by torch, and
        beside the reference."""
        if self._reference is None:
            name = f"{REFERENCE}{_stem(stems(network.spec)[0])}"
            other = _network(name, network.spec, network.classes)
            self._reference = latency.Reference(self._work(other), self.threads, self._past)
        work = self._work(copy.deepcopy(network).cpu())
        return self._reference.milliseconds(work, seconds=seconds)

    def _made(self, student: str, teacher: Teacher) -> Classifier:
        """A candidate that need not learn: one that is named has any weights."""
        if not is_pruned(student):
            return _network(student, teacher.spec, teacher.classes)
        recipe = self._with(stages=self._study(), minutes=1, student=student, learn=True)
        lab = build(recipe, teacher=teacher, data=False)
        assert lab.learner is not None
        return lab.learner.student

    def _look(self, network: Classifier) -> float:
        """The same for a candidate: at a glance, and for longer where it is close to the limit."""
        found = self._time(network, LOOK)
        if self.limit is not None and self.limit < found <= CLOSE * self.limit:
            found = min(found, self._time(network, SURE))
        return found

    def _is_slow(self, milliseconds: float) -> bool:
        return self.limit is not None and milliseconds > self.limit

    def _work(self, network: Classifier) -> Callable[[], object]:
        """One image put to a network, as work to be timed."""
        if latency.has_onnx():
            return latency.image_work(network, self.threads)
        return latency.alone(network.eval(), network.spec.shape)

    def _train(self, taken: Trial) -> Result:
        """The chosen student, for the time that is left, and for half of its share at least."""
        place = self.out / STUDENT
        if (place / "manifest.json").is_file():  # it was interrupted in this
            the_run, begun = Run.resume(place)
            if the_run.newest() is not None:
                trust = self.recipe.run.trust_code
                recipe = trusted(begun, trust_code=trust, anyway=self.recipe.run.anyway)
                return self._distillation(recipe, taken).resume(place)
        if place.exists():  # it was killed before its first checkpoint
            shutil.rmtree(place)
        least = (1 - MAKING - TRYING) / 2 * self.seconds
        minutes = max(least, self._left()) / 60
        recipe = self._with(
            stages=self._study(), minutes=minutes, student=taken.student, learn=True,
            out=str(place),
        )  # fmt: skip
        return self._distillation(recipe, taken).start()

    def _distillation(self, recipe: Recipe, taken: Trial) -> Distillation:
        """That of the chosen one, which goes on from what it learned when it was tried."""
        begin_with = self._learned_by(taken.student, taken.generation)
        return Distillation(
            recipe, begin_with=begin_with, report=self.report, by_force=self.by_force
        )

    def _write(
        self, trials: Sequence[Trial], best: Sequence[Trial], taken: Trial, measured: float | None
    ) -> None:
        """front.json and its picture; the time that is `measured` again comes at the end."""
        data = {
            "chosen": asdict(taken), "milliseconds": measured, "limit": self.limit,
            "conditions": str(latency.conditions(self.threads, exported=latency.has_onnx())),
            "timed_for_longer": self._longer,
            "front": [asdict(t) for t in best], "trials": [asdict(t) for t in trials],
        }  # fmt: skip
        files.write_json(self.out / FRONT, data)
        files.write_atomic(
            self.out / "front.png", draw(trials, best, taken, self.limit), sync=False
        )


def needed() -> Any:
    """The module optuna; InputError where it is missing."""
    try:
        import optuna
    except ImportError:
        raise InputError("a search needs the extra search: pip install 'synthkd[search]'") from None
    return optuna


def places(first: int, generations: int) -> tuple[int, ...]:
    """How many candidates generations have, the first of them so many: the better half of one goes
    on to the next, which has half as many new ones again, and one at least.

    >>> places(8, 3), places(2, 3)
    ((8, 6, 4), (2, 2, 2))
    """
    found = [first]
    while len(found) < generations:
        found.append(found[-1] // 2 + max(1, found[-1] // 4))
    return tuple(found)


def shared_seconds(seconds: float, beside: float, many: Sequence[int]) -> float:
    """How long a candidate of the first of some generations learns, if all candidates, so `many` in
    each generation, share these seconds, each takes `beside` of them for other things than
    learning, and those of a generation learn LONGER times as long as those of the one before; below
    0 where that is not possible.

    >>> shared_seconds(62.0, 0.0, (8, 6, 4)), shared_seconds(62.0, 1.0, (8, 6, 4))
    (1.0, 0.7096774193548387)
    """
    learning = seconds - beside * sum(many)
    return learning / float(sum(count * LONGER**place for place, count in enumerate(many)))


def fitting(most: int, generations: int, seconds: float, beside: float) -> int:
    """How many candidates the first generation has: `most`, or as many as leave LEARNING of the
    seconds for learning when each takes `beside` for other things, and two at least.

    >>> fitting(8, 3, 100.0, 1.0), fitting(8, 3, 100.0, 4.0), fitting(8, 3, 9.0, 9.0)
    (8, 5, 2)
    """
    for first in range(most, 2, -1):
        if beside * sum(places(first, generations)) <= (1 - LEARNING) * seconds:
            return first
    return min(most, 2)


def _learn(lab: Lab, most: float) -> float:
    """Walks the rounds of a lab, and begins no new one after so many seconds; how long it took."""
    began = time.perf_counter()
    for _ in rounds(lab):
        if time.perf_counter() - began > most:
            break
    return time.perf_counter() - began


def _speed(trials: Sequence[Trial]) -> float:
    """Images that candidates learn from in a second; without end where none is known.

    >>> _speed([Trial("a", 2.0, 0.5, 1.0, 9, 0, 600), Trial("b", 4.0, 0.5, 1.0, 9, 0, 600)])
    200.0
    """
    seconds = sum(t.seconds for t in trials if t.images)
    return sum(t.images for t in trials) / seconds if seconds else math.inf


def _learned(trials: Sequence[Trial], generation: int) -> list[Trial]:
    """The candidates of a generation that were taught."""
    return [t for t in trials if t.generation == generation and t.seconds]


def _clear(study: "optuna.study.Study") -> None:
    """Gives up what a search that was interrupted had begun, or still had to try."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.tell(study.ask(), state=TrialState.FAIL)


def _network(name: str, spec: ImageSpec, classes: int) -> Classifier:
    """A network of ours with weights that say nothing."""
    with globally(torch.Generator().manual_seed(0)):
        body = build_network(name, channels=spec.channels, size=spec.shape[1:], classes=classes)
    return Classifier(body, spec, classes)


def _size(network: Classifier) -> int:
    """Its parameters."""
    return sum(p.numel() for p in network.parameters())


def stems(spec: ImageSpec) -> tuple[int, int]:
    """By how much the first layer of a network of ours may reduce images: as suits their size, and
    another one that is tried.

    >>> [stems(ImageSpec(3, side, side, (0.0,) * 3, (1.0,) * 3)) for side in (32, 64, 224)]
    [(1, 2), (2, 4), (4, 2)]
    """
    side = min(spec.shape[1:])
    return (4, 2) if side >= 1.5 * LARGE else (2, 4) if side >= LARGE else (1, 2)


def _stem(reduction: int) -> str:
    """What the names of networks of ours end with."""
    return f"-stem{reduction}" if reduction > 1 else ""


def suggested(trial: "optuna.trial.Trial", teacher: Teacher) -> str:
    """The SPEC of the student that a trial stands for: family, depth, width, reduction of the first
    layer, or pruning ratio.

    Each trial has the parameters of every family: NSGA-II inherits those alone that all have. One
    whose parameters are given (it is tried again) gets its generation when it is asked for what it
    would inherit: without, it would be nobody's parent.
    """
    trial.relative_params  # noqa: B018
    families = ["resnet", "mobilenet"]
    if teacher.access == "full":
        families.append("prune")
    family = trial.suggest_categorical("family", families)
    ratio = trial.suggest_categorical("ratio", RATIOS)
    multiple = trial.suggest_categorical("multiple", MULTIPLES)
    depth = trial.suggest_categorical("depth", DEPTHS)
    width = trial.suggest_categorical("width", WIDTHS)
    stem = _stem(trial.suggest_categorical("stem", stems(teacher.spec)))
    if family == "prune":
        return f"prune:{ratio:g}"
    if family == "mobilenet":
        return f"mobilenet{'' if multiple == '1' else f'-{multiple}'}{stem}"
    return f"resnet{depth}-w{width}{stem}"
