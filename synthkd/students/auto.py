"""`--student auto`: the largest network that a user's limits allow; and whether a student is worth
having beside its teacher.

A time is that of the exported file (`synthkd.students.latency`), or of torch itself without the
extra onnx.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from synthkd.core.errors import InputError
from synthkd.core.findings import Finding
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.networks.lenet import LeNet5
from synthkd.networks.pruned import Pruned, pruned_teacher
from synthkd.recipe import StudentTable
from synthkd.students import latency
from synthkd.students.latency import Conditions
from synthkd.teachers.protocol import Teacher

# of ours, by family, the smallest first
CANDIDATES: dict[str, tuple[str, ...]] = {
    "resnet": (
        "resnet8-w4", "resnet8-w8", "resnet8-w12", "resnet8", "resnet14", "resnet20", "resnet32",
        "resnet56", "resnet20-w32",
    ),
    "lenet": ("lenet5-half", "lenet5"),
    "wide": ("wrn-16-1", "wrn-40-1", "wrn-16-2", "wrn-40-2"),
    "mobilenet": ("mobilenet-0.25", "mobilenet-0.5", "mobilenet"),
}  # fmt: skip
# of others, for larger images: they begin with a stride and have BatchNorm; built without download
STRIDED = (
    "timm:lcnet_035", "timm:lcnet_050", "timm:lcnet_075", "timm:lcnet_100", "timm:lcnet_150",
    "timm:mobilenetv3_small_050", "timm:mobilenetv3_small_075", "timm:mobilenetv3_small_100",
    "timm:mobilenetv3_large_075", "timm:mobilenetv3_large_100", "timm:mobilenetv4_conv_small_035",
    "timm:mobilenetv4_conv_small_050", "timm:mobilenetv4_conv_small",
    "timm:mobilenetv4_conv_medium", "timm:mobilenetv2_035", "timm:mobilenetv2_050",
    "timm:mobilenetv2_100", "timm:mnasnet_small", "timm:tinynet_e", "timm:tinynet_d",
    "timm:efficientnet_lite0", "timm:regnetx_002", "timm:regnetx_004",
    "torchvision:shufflenet_v2_x0_5", "torchvision:shufflenet_v2_x1_0",
    "timm:resnet10t", "timm:resnet14t", "timm:resnet18",
)  # fmt: skip
STRIDED_FROM, STRIDED_FIRST = 64, 96  # pixels: tried beside ours, tried before ours
CUT, CUT_SMALL = 0.75, 0.4  # what a student that is cut out of its teacher costs less
SMALL_TEACHER = 1_000_000  # weights, under which a teacher has few to spare
SHARE = 0.25  # of the teacher's weights, where no limit is given
UNKNOWN = 50_000  # weights, where the teacher's are unknown
MARGIN = 1.1  # a limit of so many times the time measured is promised
ABOUT, SURELY = 0.15, 1.0  # seconds for a first look at a time, and for the one that is promised
SEARCH = 15.0  # seconds after which the rest is tried no more
SLOWER = 1.1  # times the teacher's, which is called slower


@dataclass(frozen=True)
class Candidate:
    """A student that might do, and what it costs."""

    name: str
    params: int
    flops: float  # per image
    latency_ms: float | None = None  # of a single image; None: not asked for
    conditions: Conditions | None = None  # of that time
    findings: tuple[Finding, ...] = ()


def best_student(
    table: StudentTable, teacher: Teacher, cut: Callable[[float], Pruned] | None = None
) -> Candidate:
    """The candidate with the most weights within the limits. Without a limit it has at most a
    quarter of the teacher's weights; of images of 64 pixels and more it is then cut out of the
    teacher itself, where that can be done (`networks.pruned`; `cut` does it for a ratio), which
    leaves a small teacher more; where it cannot, a finding says why.

    Of images below 96 pixels, networks of ours of the teacher's own family come first, since they
    can start from its layers; of larger ones those whose first layers have a stride. One with
    fewer weights than the teacher, and no slower, goes before all others; where there is none, a
    finding says so. A limit of milliseconds is kept with a margin of a tenth.

    Raises InputError, with what the smallest or the fastest costs, where none is within the limits.
    """
    limit, doubts = table.max_params, tuple[Finding, ...]()
    if limit is None and table.max_flops is None and table.max_latency_ms is None:
        own = _own(teacher, cut)
        if isinstance(own, Candidate):
            return own
        if own is not None:
            why = str(own).removesuffix(": name a --student")
            said = f"the student is not cut out of its teacher, as for other large images: {why}"
            doubts = (Finding("not-cut", said, "name a --student"),)
        # of a black box nobody knows the weights: then a student as large as our demo's
        limit = int(SHARE * teacher.parameters_count) or UNKNOWN
    groups = [_sketches(names, teacher) for names in _groups(teacher)]
    known = [one for group in groups for one in group]
    fitting = [
        [one for one in group if (limit is None or one.params <= limit)
         and (table.max_flops is None or one.flops <= table.max_flops)]
        for group in groups
    ]  # fmt: skip
    if not any(fitting):
        smallest = min(known, key=lambda one: one.params, default=None)
        raise _nothing(known, smallest.candidate() if smallest else None, "smallest")
    if table.max_latency_ms is not None:
        return _Search(table.max_latency_ms, teacher, fitting).best(known)
    large, work = teacher.parameters_count or math.inf, operations(teacher) or math.inf
    group = next(group for group in fitting if group)  # the largest first
    light = (one for one in group if one.params < large and one.flops <= work)
    return replace(next(light, group[0]).candidate(), findings=doubts)


def _own(teacher: Teacher, cut: Callable[[float], Pruned] | None) -> Candidate | InputError | None:
    """The teacher's own network cut to a quarter of its cost, or of a small teacher to 0.6 of it,
    where its images are large enough for first weights to be worth more than a network made for
    few operations; why it cannot be cut; None where images are small or it cannot be looked
    into."""
    spec, network = teacher.spec, teacher.network
    small = min(spec.height, spec.width) < STRIDED_FROM
    if small or teacher.access != "full" or not isinstance(network, Classifier):
        return None
    try:
        ratio = CUT if teacher.parameters_count >= SMALL_TEACHER else CUT_SMALL
        body = (cut or partial(pruned_teacher, network))(ratio).body.eval()
    except InputError as error:
        return error
    params = sum(p.numel() for p in body.parameters())
    return Candidate(f"prune:{ratio}", params, _counted(body, torch.zeros(1, *spec.shape)))


def _groups(teacher: Teacher) -> Iterator[tuple[str, ...]]:
    """Names, the group to be tried first before the others."""
    side = min(teacher.spec.height, teacher.spec.width)
    family = "lenet" if isinstance(getattr(teacher.network, "body", None), LeNet5) else "resnet"
    if side >= STRIDED_FIRST:
        yield STRIDED
    # ours begin with a stride too where images are large
    stem = "-stem4" if side >= STRIDED_FIRST else "-stem2" if side >= STRIDED_FROM else ""
    yield tuple(f"{name}{stem}" for name in CANDIDATES[family])
    others = (n for kind, names in CANDIDATES.items() if kind != family for n in names)
    yield tuple(f"{name}{stem}" for name in others)
    if STRIDED_FROM <= side < STRIDED_FIRST:
        yield STRIDED


class _Sketch:
    """A candidate without memory for its weights."""

    def __init__(self, name: str, teacher: Teacher) -> None:
        self.name = name
        self._shape = teacher.spec.shape
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._body = _body(name, teacher).eval()
            if ":" not in name:  # whether it can take such images
                self.flops  # noqa: B018
        self.params = sum(p.numel() for p in self._body.parameters())

    @cached_property
    def flops(self) -> float:
        """Operations of an image."""
        with torch.device("meta"):
            return _counted(self._body, torch.zeros(1, *self._shape))

    def candidate(self, ms: float | None = None, how: Conditions | None = None) -> Candidate:
        """What is known of it."""
        return Candidate(self.name, self.params, self.flops, ms, how)


def _sketches(names: tuple[str, ...], teacher: Teacher) -> list[_Sketch]:
    """The candidates that can take the teacher's images, the largest first."""
    found = []
    for name in names:
        with suppress(InputError, RuntimeError, ValueError, TypeError):
            found.append(_Sketch(name, teacher))
    return sorted(found, key=lambda one: -one.params)


def _nothing(tried: list[_Sketch], one: Candidate | None, what: str) -> InputError:
    """That none will do, and what the smallest or the fastest costs."""
    ours = not any(":" in candidate.name for candidate in tried)
    told = ""
    if one is not None:
        told = (
            f"; the {what}, {one.name}, has {one.params:,} weights and takes {one.flops:,.0f} "
            "operations an image"
        )
        if one.latency_ms is not None:
            told += f", {one.latency_ms:.3g} ms ({one.conditions})"
    kind = "network of ours" if ours else "network that is tried"
    return InputError(f"--student auto: no {kind} is within these limits{told}")


def _body(name: str, teacher: Teacher) -> nn.Module:
    """A candidate with random weights."""
    spec, classes = teacher.spec, teacher.classes
    kind, _, rest = name.partition(":")
    if not rest:
        return build_network(name, channels=spec.channels, size=spec.shape[1:], classes=classes)
    made: nn.Module
    if kind == "timm":
        import timm

        made = timm.create_model(
            rest, pretrained=False, num_classes=classes, in_chans=spec.channels
        )
    else:
        from torchvision import models

        if spec.channels != 3:
            raise InputError(f"{name} takes colour alone")
        made = models.get_model(rest, weights=None, num_classes=classes)
    return made


def _counted(network: nn.Module, images: torch.Tensor) -> float:
    """Operations of a network on these images."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    return float(counter.get_total_flops())


def operations(teacher: Teacher) -> float:
    """Operations of one of the teacher's answers; 0 where they cannot be counted, or where looking
    inside is forbidden."""
    if teacher.access != "full":
        return 0.0
    try:
        blank = torch.zeros(1, *teacher.spec.shape, device=teacher.device)
        return _counted(teacher.network, blank)
    except Exception:  # graphs are not all countable
        return 0.0


class _Search:
    """The largest candidate within a limit of milliseconds, measured one by one."""

    def __init__(self, limit: float, teacher: Teacher, groups: list[list[_Sketch]]) -> None:
        self.limit, self.teacher, self.groups = limit, teacher, groups
        self.exported = latency.has_onnx()
        self.conditions = latency.conditions(exported=self.exported)
        self.measured: dict[str, float] = {}
        self.sure: set[str] = set()  # names whose time may be promised
        self.speed = 0.0  # operations in a ms of the network that does most
        self.teacher_ms = teacher_ms(teacher, exported=self.exported)
        if self.teacher_ms:
            self.speed = operations(teacher) / self.teacher_ms
        self.until = time.perf_counter() + SEARCH

    def best(self, known: list[_Sketch]) -> Candidate:
        """The one, with its time."""
        large = self.teacher.parameters_count or math.inf
        least = min(self.limit, self.teacher_ms or math.inf)
        for most_ms, most_params in ((least, large), (self.limit, math.inf)):
            fitting = [one for group in self.groups for one in group if one.params < most_params]
            for one in fitting:
                if self._holds(one, most_ms):
                    return self._measured(one)
            for one in sorted(fitting, key=lambda one: one.flops)[:2]:  # when time has run out
                if self._holds(one, most_ms, late=True):
                    return self._measured(one)
        for one in sorted(known, key=lambda one: one.flops)[:3]:  # the fastest, to be named
            if one.name not in self.measured:
                self._time(one, sure=False)
        timed = [self._measured(one) for one in known if one.name in self.measured]
        fastest = min(timed, key=lambda one: one.latency_ms or math.inf, default=None)
        raise _nothing(known, fastest, "fastest found")

    def _measured(self, one: _Sketch) -> Candidate:
        ms = self.measured[one.name]
        seen = _compared(one.params, self.teacher, ms, self.teacher_ms, str(self.conditions))
        return replace(one.candidate(ms, self.conditions), findings=tuple(seen))

    def _holds(self, one: _Sketch, most: float, *, late: bool = False) -> bool:
        """Whether it is within `most` ms with the margin, and will be when it is measured again."""
        within = most / MARGIN
        if one.name not in self.measured:
            # none is taken to do more in a ms than the best so far
            hopeless = self.speed and one.flops / self.speed > most
            if hopeless or (time.perf_counter() > self.until and not late):
                return False
            self._time(one, sure=False, most=most)
        if self.measured[one.name] > within:
            return False
        if one.name not in self.sure:
            self._time(one, sure=True, most=most)
        return self.measured[one.name] <= within

    def _time(self, one: _Sketch, *, sure: bool, most: float = math.inf) -> None:
        """Measures it; by the file that `synthkd export` writes where it has to be `sure`. One
        that cannot be exported takes for ever."""
        spec = self.teacher.spec
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                network = Classifier(_body(one.name, self.teacher), spec, self.teacher.classes)
            ms = _ms(network, SURELY if sure else ABOUT, self.exported, final=sure, most=most)
        except Exception:  # what the exporters raise at a network
            ms = math.inf
        self.measured[one.name] = ms
        self.speed = max(self.speed, one.flops / ms)
        if sure:
            self.sure.add(one.name)


def _ms(
    network: Classifier, seconds: float, exported: bool, *, final: bool = False,
    most: float = math.inf,
) -> float:  # fmt: skip
    """Milliseconds of one image, by the exported file or by torch itself."""
    network.eval()
    if exported:
        return latency.network_ms(network, seconds=seconds, final=final, most=most)
    work = latency.alone(network, network.spec.shape)
    return latency.milliseconds({"": work}, seconds=seconds, most=most)[""]


def teacher_ms(teacher: Teacher, *, exported: bool) -> float | None:
    """The teacher's time for one image, measured as a student's; None where it cannot be."""
    if teacher.access != "full" or teacher.device.type != "cpu":
        return None
    try:
        return _ms(teacher.network, 2 * ABOUT, exported)
    except Exception:  # what the exporters raise at a network
        return None


def against_teacher(student: Classifier, teacher: Teacher) -> list[Finding]:
    """Whether a student has more weights than its teacher, or takes longer for an image.

    Times are first taken by torch, which costs little; where the student then seems slower, both
    are measured as exported files, where that can be done.
    """
    count = sum(p.numel() for p in student.parameters())
    devices = {p.device.type for p in student.parameters()} | {teacher.device.type}
    ms = large = None
    how = str(latency.conditions(exported=False))
    if teacher.access == "full" and devices == {"cpu"}:
        mode = student.training
        student.eval()
        try:
            with torch.random.fork_rng(devices=[]):  # some draw when they are asked
                ms, large = _side_by_side(student, teacher.network)
                if ms > SLOWER * large and latency.has_onnx():
                    exported = teacher_ms(teacher, exported=True)
                    if exported is not None:
                        large, ms = exported, _ms(student, 2 * ABOUT, True)
                        how = str(latency.conditions())
        except Exception:  # whatever other people's networks raise
            pass
        finally:
            student.train(mode)
    return _compared(count, teacher, ms, large, how)


def _side_by_side(student: Classifier, teacher: Classifier) -> tuple[float, float]:
    """Milliseconds of one image of each, by torch, in turns."""
    works: dict[str, Callable[[], object]] = {
        name: latency.alone(network, network.spec.shape)
        for name, network in (("student", student), ("teacher", teacher))
    }
    found = latency.milliseconds(works, seconds=0.1)
    return found["student"], found["teacher"]


def _compared(
    count: int, teacher: Teacher, ms: float | None, large_ms: float | None, how: str
) -> list[Finding]:
    """What there is to say of a student of so many weights and ms."""
    found = []
    large = teacher.parameters_count if teacher.access == "full" else 0
    if large and count > large:
        found.append(Finding(
            "student-larger", f"the student has {count:,} weights, its teacher {large:,}",
            "give a smaller --student, or --student auto",
        ))  # fmt: skip
    if ms is not None and large_ms is not None and ms > SLOWER * large_ms:
        found.append(Finding(
            "student-slower",
            f"the student takes {ms:.3g} ms for an image, its teacher {large_ms:.3g} ms ({how})",
            "give a faster --student (networks of ours have -stem2 and -stem4 for larger images: "
            "resnet20-stem4), or --student auto with --max-latency-ms",
        ))  # fmt: skip
    return found
