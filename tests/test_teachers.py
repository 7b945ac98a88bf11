"""The teacher: frozen to the last bit, and observed as plain torch would observe it."""

import copy

import pytest
import torch
from torch import Tensor, nn

from synthkd.checks.inspection import costs
from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec
from synthkd.networks import build_network
from synthkd.networks.answers import recognise
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, Stage, TeacherTable
from synthkd.specs import load_teacher
from synthkd.synthesis.context import SynthesisContext
from synthkd.synthesis.gan import Gan
from synthkd.teachers.features import features_of, resolution_layers
from synthkd.teachers.frozen import FrozenTeacher, digest_of
from synthkd.teachers.moments import Moments, moments

SPEC = ImageSpec(3, 8, 8, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def small(name: str = "resnet8-w4", classes: int = 5, spec: ImageSpec = SPEC) -> FrozenTeacher:
    """A teacher whose BatchNorm layers have seen something."""
    body = build_network(name, channels=spec.channels, size=spec.height, classes=classes)
    body.train()
    for _ in range(3):
        body(torch.randn(16, *spec.shape))
    return FrozenTeacher(Classifier(body, spec, classes))


@pytest.fixture
def teacher() -> FrozenTeacher:
    return small()


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def assert_same(before: dict[str, Tensor], module: nn.Module) -> None:
    after = module.state_dict()
    assert list(before) == list(after)
    for key, value in before.items():
        assert torch.equal(value, after[key]), key


def hooks(module: nn.Module) -> int:
    """Every hook on any of its layers."""
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in module.modules()
    )


# --- moments ---


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_moments_is_that_of_finite_differences(layout):
    x = (
        torch.randn(3, 2, 4, 5, dtype=torch.float64)
        .contiguous(memory_format=layout)
        .requires_grad_()
    )
    assert torch.autograd.gradcheck(Moments.apply, (x,))
    weights = torch.randn(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda y: (Moments.apply(y)[2] * weights).sum(), (x,)
    )  # one output alone


@pytest.mark.parametrize(
    "shape", [(6, 3, 4, 5), (1, 3, 7, 7), (2, 3, 1, 1), (50, 3), (9, 3, 4), (2, 3, 2, 3, 4)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_are_the_mean_and_the_biased_variance_of_a_channel(shape, dtype):
    x = torch.randn(shape, dtype=dtype) * 3 + 7
    passed, mean, var = moments(x)
    assert torch.equal(passed, x)
    for c in range(3):
        values = x[:, c].flatten().double().tolist()
        middle = sum(values) / len(values)
        assert mean[c].item() == pytest.approx(middle, rel=1e-5)
        assert var[c].item() == pytest.approx(
            sum((v - middle) ** 2 for v in values) / len(values), rel=1e-3, abs=1e-6
        )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_equal_var_mean_forward_and_backward(layout):
    base = (torch.randn(8, 6, 5, 7) * 2 + 1).contiguous(memory_format=layout)
    ours, plain = base.clone().requires_grad_(), base.clone().requires_grad_()
    x, mean, var = Moments.apply(ours)
    expected_var, expected_mean = torch.var_mean(plain, [0, 2, 3], correction=0)
    assert torch.allclose(mean, expected_mean, atol=1e-5)
    assert torch.allclose(var, expected_var, atol=1e-4)
    weights = torch.rand(3, 6)
    (x.relu().mean((0, 2, 3)) * weights[0] + mean * weights[1] + var * weights[2]).sum().backward()
    (
        plain.relu().mean((0, 2, 3)) * weights[0]
        + expected_mean * weights[1]
        + expected_var * weights[2]
    ).sum().backward()
    assert torch.allclose(ours.grad, plain.grad, atol=1e-6)


def test_a_mean_far_from_zero_does_not_spoil_the_variance():
    x = torch.randn(64, 2, 8, 8) + 300
    assert torch.allclose(moments(x)[2], x.double().var((0, 2, 3), correction=0).float(), rtol=1e-3)


# --- frozen ---


def test_a_gan_step_moves_no_bit_of_the_teacher():
    teacher = load_teacher(TeacherTable())
    before, digest = snapshot(teacher), teacher.digest
    terms = dict.fromkeys(
        (
            "one_hot",
            "statistics",
            "prototype",
            "consistency",
            "balance",
            "smoothness",
            "activation",
        ),
        1.0,
    )
    stage = Stage(name="x", synthesis_steps=2, synthesis_batch=8, fresh=4)
    recipe = Recipe.model_validate({"generator": {"width": 4, "latent": 8}, "stage": [stage]})
    gan = Gan(recipe, teacher)
    start = snapshot(gan.decoder)
    context = SynthesisContext(
        teacher, teacher, stage, terms, recipe.augment, lambda count, rng: None, False
    )
    gan.synthesize(context, torch.Generator().manual_seed(0))
    assert not torch.equal(start["conv1.weight"], gan.decoder.conv1.weight)  # the decoder did learn
    assert_same(before, teacher)
    assert digest_of(teacher.classifier) == digest
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(m.training for m in teacher.modules())


def test_train_does_nothing(teacher):
    assert teacher.train() is teacher
    assert teacher.train(True) is teacher
    assert not any(m.training for m in teacher.modules())
    before = snapshot(teacher)
    teacher(torch.rand(4, *SPEC.shape))
    assert_same(before, teacher)


def test_a_network_that_comes_in_training_mode_is_put_to_rest():
    body = build_network("resnet8-w4", channels=3, size=8, classes=5).train()
    teacher = FrozenTeacher(Classifier(body, SPEC, 5))
    assert not any(m.training for m in body.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("what", ["logits", "features", "moments"])
def test_gradients_reach_the_images_and_no_weight(teacher, what):
    images = torch.rand(4, *SPEC.shape, requires_grad=True)
    seen = teacher.observe(images)
    if what == "moments":
        sum(mean.square().sum() + var.square().sum() for mean, var in seen.moments).backward()
    else:
        getattr(seen, what).square().sum().backward()
    assert (images.grad.abs().amax((1, 2, 3)) > 0).all()
    assert all(p.grad is None for p in teacher.parameters())


def test_no_hook_is_left_after_observing(teacher):
    assert hooks(teacher) == 0
    teacher.observe(torch.rand(2, *SPEC.shape))
    assert hooks(teacher) == 0
    with pytest.raises(RuntimeError):
        teacher.observe(torch.rand(2, 7, 8, 8))
    assert hooks(teacher) == 0


def test_observing_changes_no_answer(teacher):
    images = torch.rand(4, *SPEC.shape)
    assert torch.equal(teacher(images), teacher.observe(images).logits)
    plain = teacher.classifier.body((images - teacher.classifier.mean) / teacher.classifier.std)
    assert torch.allclose(teacher(images), plain, atol=1e-5)


# --- a faster copy ---


def half(name: str = "resnet8-w4", **others: object) -> FrozenTeacher:
    """A teacher that may compute in bfloat16."""
    teacher = small(name, **others)
    teacher.low_precision = True
    return teacher


@pytest.mark.parametrize("name", ["resnet8-w4", "lenet5"])
def test_the_folded_copy_answers_as_the_teacher_does(name):
    spec = SPEC if name != "lenet5" else ImageSpec(1, 32, 32, (0.1,), (0.3,))
    teacher = half(name, spec=spec)
    images = torch.rand(32, *spec.shape)
    exact = teacher.classifier(images)
    assert (teacher.fast, teacher.folded_reason) == (False, "")
    with torch.no_grad():
        found = teacher(images)
    assert teacher.fast
    assert "same votes" in teacher.folded_reason
    if teacher.norms:
        assert not torch.equal(
            found, teacher.forward_network(images)
        )  # another way of computing it
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 0.02 * exact.abs().max()


def test_the_copy_leaves_the_teacher_as_it_was():
    teacher = half()
    before, digest, parts = snapshot(teacher), teacher.digest, len(list(teacher.modules()))
    teacher(torch.rand(4, *SPEC.shape))
    assert teacher.fast
    assert_same(before, teacher)
    assert digest_of(teacher.classifier) == digest
    assert len(list(teacher.modules())) == parts
    assert {m.weight.dtype for m in teacher.norms} == {torch.float32}
    assert len(teacher.norms) == 7  # not folded


def test_who_wants_gradients_or_observations_asks_the_teacher_itself():
    teacher = half()
    images = torch.rand(8, *SPEC.shape)
    with torch.no_grad():
        teacher(images)
        assert teacher.fast
        seen = teacher.observe(images)
        assert len(seen.moments) == 7
        assert torch.equal(seen.logits, teacher.forward_network(images))
    wanted = images.clone().requires_grad_()
    logits = teacher(wanted)
    assert torch.equal(logits, teacher.forward_network(images))
    logits.sum().backward()
    assert wanted.grad.abs().max() > 0


def test_in_full_precision_no_copy_is_made(teacher):
    images = torch.rand(4, *SPEC.shape)
    with torch.no_grad():
        assert torch.equal(teacher(images), teacher.forward_network(images))
    assert not teacher.fast
    assert teacher.folded_reason == ""


class Deciding(nn.Module):
    """What cannot be followed without images."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)) if x.sum() < 1e9 else x.flatten(1)[:, :5]


class Fragile(Deciding):
    """In bfloat16 nothing is left of an image after 4096 was added and taken away."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear((x + 4096 - 4096).flatten(1))


@pytest.mark.parametrize(
    ("body", "words"), [(Deciding(), "no folded copy: TraceError"), (Fragile(), "% off")]
)
def test_a_copy_that_cannot_be_made_or_answers_otherwise_is_not_used(body, words):
    teacher = FrozenTeacher(Classifier(body, SPEC, 5))
    teacher.low_precision = True
    images = torch.rand(4, *SPEC.shape)
    with torch.no_grad():
        assert torch.equal(teacher(images), teacher.forward_network(images))
    assert not teacher.fast
    assert words in teacher.folded_reason
    assert teacher.low_precision


@pytest.mark.parametrize("answers", ["probabilities", "log-probabilities"])
def test_the_copy_answers_in_logits_whatever_the_body_answers_in(answers):
    network = build_network("resnet8-w4", channels=3, size=8, classes=5).eval()
    last = nn.Softmax(1) if answers == "probabilities" else nn.LogSoftmax(1)
    teacher = FrozenTeacher(Classifier(nn.Sequential(network, last), SPEC, 5, answers))
    teacher.low_precision = True
    images = torch.rand(16, *SPEC.shape)
    with torch.no_grad():
        found, exact = teacher(images), teacher.classifier(images)
    assert teacher.fast
    assert torch.allclose(found.softmax(1), exact.softmax(1), atol=0.02)


class Vast(nn.Module):
    """What a folded copy that lost its numbers would answer."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 5), torch.nan)


def test_what_the_folded_copy_answers_is_checked_like_the_networks_own_answers():
    teacher, images = half(), torch.rand(4, *SPEC.shape)
    with torch.no_grad():
        teacher(images)
        assert teacher.fast
        teacher._folded = Vast()
        with pytest.raises(InputError, match="answers NaN or infinity"):
            teacher(images)


class Late(Tensor):
    """A tensor that says it lies on a device of its own, whose values nobody may wait for."""

    device = torch.device("cuda")
    waited = False

    def __bool__(self) -> bool:
        Late.waited = True
        return bool(self.as_subclass(Tensor))


def test_numbers_on_a_device_are_judged_there_and_refused_once_a_round(teacher):
    images = torch.rand(2, *SPEC.shape)
    sound, broken = torch.zeros(2, 5), torch.full((2, 5), torch.inf)
    for logits, given in ((sound, images), (broken, images / 0), (broken, images), (sound, images)):
        teacher._check_answer(given, logits.as_subclass(Late))
    assert not Late.waited
    with pytest.raises(InputError, match="answers NaN or infinity"):
        teacher.check()
    assert Late.waited
    teacher.check()  # what was said once is not said again
    teacher._check_answer(images / 0, broken.as_subclass(Late))  # its images are to blame
    teacher.check()


# --- the last layer ---


class Auxiliary(nn.Module):
    """A head that is declared last, and rests in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 5)
        self.auxiliary = nn.Linear(192, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.linear(x) + (self.auxiliary(x) if self.training else 0)


class Tokens(nn.Module):
    """A head that is asked for every token [B, T, D], of which the answers are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1, 2)).mean(1)


class Named(Auxiliary):
    """A head whose input is given by name."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(input=x.flatten(1))


def test_the_head_is_the_last_linear_layer_that_images_pass():
    body = Auxiliary()
    teacher, images = FrozenTeacher(Classifier(body, SPEC, 5)), torch.rand(3, *SPEC.shape)
    assert teacher.head is teacher.classifier.body.linear
    assert torch.equal(teacher.prototypes, body.linear.weight) and teacher.feature_size == 192
    normal = (images - teacher.classifier.mean) / teacher.classifier.std
    assert torch.equal(teacher.observe(images).features, normal.flatten(1))


@pytest.mark.parametrize("body", [Tokens(), Named()])
def test_a_head_that_is_not_given_a_vector_an_image_shows_no_features(body):
    teacher = FrozenTeacher(Classifier(body, SPEC, 5))
    assert (teacher.head, teacher.prototypes, teacher.feature_size) == (None, None, None)
    assert teacher.observe(torch.rand(3, *SPEC.shape)).features is None


# --- maps ---


@pytest.mark.parametrize("low_precision", [False, True])
def test_the_maps_of_a_resnet_are_the_outputs_of_its_groups(low_precision):
    teacher, images = small(), torch.rand(4, *SPEC.shape)
    teacher.low_precision = low_precision
    layers = resolution_layers(teacher.classifier.body, teacher.normalise(images))
    assert layers == ("layer1", "layer2", "layer3")
    logits, maps = teacher.teach(images, layers)
    body = teacher.classifier.body
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
        normal = (images - teacher.classifier.mean) / teacher.classifier.std
        h = torch.relu(body.bn1(body.conv1(normal.contiguous(memory_format=torch.channels_last))))
        for size, group in ((8, body.layer1), (4, body.layer2), (2, body.layer3)):
            h = group(h)
            assert h.shape[2] == size
            assert torch.equal(maps[layers[(8, 4, 2).index(size)]], h)
    assert torch.equal(logits, teacher.forward_network(images))
    assert not any(m.requires_grad for m in (logits, *maps.values()))
    assert hooks(teacher) == 0


def test_the_maps_of_a_lenet_are_after_the_activation_and_after_pooling():
    body = build_network("lenet5", channels=1, size=32, classes=5)
    images = torch.rand(2, 1, 32, 32)
    layers = resolution_layers(body, images)
    with features_of(body, layers) as seen:
        body(images)
    first = body.convnet.c1(images).relu()
    pooled = torch.nn.functional.max_pool2d(first, 2)
    assert [seen[layer].shape[2] for layer in layers] == [28, 14, 10, 5, 1]
    assert torch.equal(seen[layers[0]], first)
    assert torch.equal(seen[layers[1]], pooled)


class Twice(nn.Module):
    """One activation used at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3, stride=2), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.b(self.act(self.a(x)))).mean((2, 3))


def test_a_module_that_is_called_twice_stands_for_no_resolution_and_modes_are_put_back():
    body = Twice().train()
    body.b.eval()
    assert resolution_layers(body, torch.rand(1, 1, 9, 9)) == ("a", "b")
    assert (body.training, body.a.training, body.b.training) == (True, True, False)


def test_tokens_and_vectors_are_features_too_and_an_unknown_layer_is_named():
    body = nn.Sequential(
        nn.Flatten(2), nn.Linear(64, 6), nn.LayerNorm(6), nn.Flatten(), nn.Linear(6, 5)
    )
    with features_of(body, ["2", "3"]) as seen:
        body(torch.rand(2, 1, 8, 8))
    assert [list(value.shape) for value in seen.values()] == [[2, 1, 6], [2, 6]]
    assert not any(module._forward_hooks for module in body.modules())
    with (
        pytest.raises(InputError, match=r"'layer9': no such module"),
        features_of(small().classifier.body, ["layer9"]),
    ):
        pass


def test_hooks_leave_even_when_the_network_fails():
    body = nn.Sequential(nn.Conv2d(1, 2, 3))
    with pytest.raises(RuntimeError), features_of(body, ["0"]):
        body(torch.rand(2, 3, 8, 8))
    assert not body[0]._forward_hooks


def test_teaching_without_layers_is_asking_without_gradients(teacher):
    images = torch.rand(4, *SPEC.shape, requires_grad=True)
    logits, maps = teacher.teach(images)
    assert torch.equal(logits, teacher(images))
    assert not logits.requires_grad
    assert maps == {}


# --- observed ---


def test_features_are_what_the_last_layer_makes_logits_of(teacher):
    seen = teacher.observe(torch.rand(4, *SPEC.shape))
    head = teacher.classifier.body.linear
    assert seen.features.shape == (4, teacher.feature_size) == (4, 16)
    assert torch.allclose(seen.features @ teacher.prototypes.T + head.bias, seen.logits, atol=1e-5)


def test_what_is_not_asked_for_is_not_observed(teacher):
    seen = teacher.observe(torch.rand(2, *SPEC.shape), features=False, statistics=False)
    assert seen.features is None
    assert seen.moments == ()


def test_observed_moments_are_those_of_the_input_of_each_norm():
    teacher = small()
    images = torch.rand(6, *SPEC.shape)
    body = teacher.classifier.body
    first = body.conv1((images - teacher.classifier.mean) / teacher.classifier.std)
    mean, var = teacher.observe(images).moments[0]
    assert torch.allclose(mean, first.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(var, first.var((0, 2, 3), correction=0), atol=1e-5)


def test_stored_moments_are_those_that_a_batch_in_training_mode_would_leave():
    """With momentum 1 running statistics become the moments of the batch (variance unbiased)."""
    body = build_network("resnet8-w4", channels=3, size=8, classes=5).train()
    for m in body.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0
    spec = ImageSpec(3, 8, 8, (0.0,) * 3, (1.0,) * 3)
    images = torch.rand(32, 3, 8, 8)
    body(images)
    teacher = FrozenTeacher(Classifier(body, spec, 5))
    mean, var = teacher.observe(images).moments[
        0
    ]  # the first norm sees the same input in both modes
    assert torch.allclose(teacher.stored[0][0], mean, atol=1e-5)
    assert torch.allclose(teacher.stored[0][1], var, rtol=1e-2)


class Crossed(nn.Module):
    """Norms written down in another order than images pass them, and one that never works."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.BatchNorm2d(4)
        self.resting = nn.BatchNorm2d(9)
        self.first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.last(self.conv(self.first(x))).mean((2, 3)))


def test_moments_and_stored_moments_belong_to_the_same_norm_whatever_their_order():
    body = Crossed()
    for value, norm in enumerate((body.first, body.last, body.resting)):
        norm.running_mean.fill_(value)
    teacher = FrozenTeacher(Classifier(body, SPEC, 5))
    seen = teacher.observe(torch.rand(2, *SPEC.shape))
    assert (
        [len(mean) for mean, _ in seen.moments]
        == [len(mean) for mean, _ in teacher.stored]
        == [3, 4]
    )
    assert [mean[0].item() for mean, _ in teacher.stored] == [0, 1]


def test_a_norm_without_running_statistics_counts_as_absent():
    body = nn.Sequential(
        nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(192, 5)
    )
    assert FrozenTeacher(Classifier(body, SPEC, 5)).stored == ()


def test_a_headless_network_has_neither_features_nor_prototypes():
    body = nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten())
    teacher = FrozenTeacher(Classifier(body, SPEC, 5))
    assert teacher.head is None
    assert teacher.feature_size is None
    assert teacher.prototypes is None
    seen = teacher.observe(torch.rand(2, *SPEC.shape))
    assert seen.features is None
    assert seen.logits.shape == (2, 5)


def test_in_low_precision_the_answer_is_float32_and_nearly_the_same(teacher):
    images = torch.rand(8, *SPEC.shape)
    exact = teacher(images)
    teacher.low_precision = True
    rough = teacher(images)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert torch.allclose(rough, exact, atol=0.05 * exact.abs().max().item())


def test_a_teacher_tells_its_sizes(teacher):
    assert (teacher.classes, teacher.spec, teacher.names) == (5, SPEC, ("0", "1", "2", "3", "4"))
    assert teacher.parameters_count == sum(p.numel() for p in teacher.classifier.body.parameters())


# --- digest ---


def test_equal_teachers_have_equal_digests_and_any_change_shows(teacher):
    twin = FrozenTeacher(copy.deepcopy(teacher.classifier))
    assert twin.digest == teacher.digest
    changes = []
    for key in ("linear.bias", "bn1.running_var", "bn1.num_batches_tracked"):
        other = copy.deepcopy(teacher.classifier)
        other.body.state_dict()[key].view(-1)[0] += 1
        changes.append(digest_of(other))
    other = copy.deepcopy(teacher.classifier)
    other.spec = ImageSpec(3, 8, 8, (0.4, 0.5, 0.5), SPEC.std)
    changes.append(digest_of(other))
    assert len({teacher.digest, *changes}) == 5


# --- recognise ---


class Answering(nn.Module):
    """Logits from pixels, through any function."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 5)
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(self.linear(x.flatten(1)))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("function", "answers"),
    [
        (lambda z: z, "logits"),
        (lambda z: z.relu(), "logits"),
        (lambda z: z - 100, "logits"),
        (lambda z: z.softmax(1), "probabilities"),
        (lambda z: (9 * z).softmax(1), "probabilities"),
        (lambda z: z.log_softmax(1), "log-probabilities"),
        (lambda z: z.sigmoid(), "multilabel-probabilities"),
        (lambda z: z.double(), "logits"),
    ],
)
def test_a_network_is_recognised_by_what_it_answers_to_noise(function, answers):
    body = Answering(function)
    count, found = recognise(body, SPEC, None)
    assert (count, found) == recognise(body, SPEC, 5)
    assert (count, found.kind) == (5, answers)


@pytest.mark.parametrize(
    ("function", "classes", "words"),
    [
        (lambda z: z * float("nan"), None, "NaN or infinity"),
        (lambda z: z / 0, None, "NaN or infinity"),
        (lambda z: z, 7, "the network has 5 classes"),
        (lambda z: z[:, :, None].expand(-1, -1, 2), None, r"\(32, 5, 2\)"),
        (lambda z: {"logits": z[0]}, None, "got dict"),
        (lambda z: z.mean(0, keepdim=True), None, r"\(1, 5\)"),
        (lambda z: z[:, :1], 3, "a score for two classes"),
        (lambda z: z @ z, None, "does not take images of 3 x 8 x 8"),
    ],
)
def test_what_is_no_classifier_is_one_line_for_the_user(function, classes, words):
    with pytest.raises(InputError, match=words) as caught:
        recognise(Answering(function), SPEC, classes)
    assert "\n" not in str(caught.value)


def test_recognising_leaves_weights_statistics_and_random_numbers_alone():
    body = build_network("resnet8-w4", channels=3, size=8, classes=5).train()
    before, state = snapshot(body), torch.get_rng_state()
    recognise(body, SPEC, None)
    assert_same(before, body)
    assert torch.equal(state, torch.get_rng_state())


def test_probabilities_and_logits_teach_the_same():
    plain = Answering(lambda z: z)
    soft = copy.deepcopy(plain)
    soft.function = lambda z: z.softmax(1)
    _, answers = recognise(soft, SPEC, None)
    images = torch.rand(4, *SPEC.shape)
    a = FrozenTeacher(Classifier(plain, SPEC, 5))(images).softmax(1)
    b = FrozenTeacher(Classifier(soft, SPEC, 5, answers))(images).softmax(1)
    assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("access", ["full", "logits"])
def test_operations_are_counted_where_one_may_look_inside(teacher, access):
    """Of the first convolution alone, 2 operations for each of 3 · 9 weights, 8 · 8 places and 4
    channels."""
    found = costs(FrozenTeacher(teacher.classifier, access=access), seconds=0.001)
    assert found.flops is None if access == "logits" else found.flops > 2 * 27 * 64 * 4
    assert (found.gradient is None) == (access == "logits")


@pytest.mark.parametrize(("access", "calls"), [("full", 3), ("logits", 1)])
def test_a_batch_is_cut_for_the_caches_but_a_black_box_is_asked_once(access, calls):
    teacher = small(spec=ImageSpec(3, 64, 64, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    teacher = FrozenTeacher(teacher.classifier, access=access)
    images, asked = torch.rand(70, 3, 64, 64), []
    whole = teacher.forward_network(images)
    teacher.queries = 0
    teacher.classifier.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    answers = teacher(images)
    assert (len(asked), sum(asked), teacher.queries) == (calls, 70, 70)
    torch.testing.assert_close(answers, whole, rtol=1e-4, atol=1e-5)
