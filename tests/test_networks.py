"""Networks: sizes that can be counted by hand, and what each promises about its answers."""

import pytest
import torch
from torch import Tensor, nn

from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec
from synthkd.networks import NAMES, build_network, is_known, is_named
from synthkd.networks.classifier import Classifier
from synthkd.networks.critic import Critic
from synthkd.networks.decoder import ConditionalNorm, Decoder


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def resnet_by_hand(depth: int, width: int, channels: int, classes: int) -> int:
    """Convolutions without bias, two numbers per normalised channel, shortcuts without weights."""
    total = channels * width * 9 + 2 * width
    before = width
    for out in (width, 2 * width, 4 * width):
        for _ in range((depth - 2) // 6):
            total += before * out * 9 + 2 * out + out * out * 9 + 2 * out
            before = out
    return total + before * classes + classes


# --- classifiers ---


@pytest.mark.parametrize(
    ("name", "channels", "count"),
    [
        ("resnet20", 3, 269_722),
        ("resnet14", 1, 172_218),
        ("lenet5", 1, 61_706),
        ("lenet5-half", 1, 15_738),
        ("wrn-16-1", 3, 175_066),
        ("wrn-16-2", 3, 691_674),
        ("wrn-40-2", 3, 2_243_546),
    ],
)
def test_the_published_numbers_of_parameters(name, channels, count):
    assert size(build_network(name, channels=channels, size=32, classes=10)) == count


@pytest.mark.parametrize(
    ("depth", "width"), [(8, 2), (8, 4), (8, 16), (14, 8), (32, 16), (44, 3), (56, 16)]
)
@pytest.mark.parametrize(("channels", "classes"), [(1, 10), (3, 100)])
def test_a_resnet_has_as_many_parameters_as_a_count_by_hand(depth, width, channels, classes):
    name = f"resnet{depth}" if width == 16 else f"resnet{depth}-w{width}"
    network = build_network(name, channels=channels, size=32, classes=classes)
    assert size(network) == resnet_by_hand(depth, width, channels, classes)


@pytest.mark.parametrize("name", [*NAMES, "resnet8-w4"])
@pytest.mark.parametrize(("channels", "classes"), [(1, 10), (3, 7)])
def test_every_named_network_answers_with_one_row_per_image(name, channels, classes):
    network = build_network(name, channels=channels, size=32, classes=classes).eval()
    answer = network(torch.rand(2, channels, 32, 32))
    assert answer.shape == (2, classes)
    assert answer.isfinite().all()
    assert is_named(name)


@pytest.mark.parametrize("pixels", [8, 15, 16, 28, 30, 33])
def test_a_resnet_takes_images_of_any_size(pixels):
    network = build_network("resnet8-w4", channels=1, size=pixels, classes=5).eval()
    assert network(torch.rand(2, 1, pixels, pixels)).shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet8-w4", "lenet5"])
def test_in_eval_mode_an_answer_does_not_depend_on_the_rest_of_the_batch(name):
    network = build_network(name, channels=1, size=32, classes=5).eval()
    images = torch.rand(6, 1, 32, 32)
    alone = torch.cat([network(image[None]) for image in images])
    assert torch.allclose(network(images), alone, atol=1e-5)


def test_a_shortcut_passes_its_input_on_subsampled_and_padded_with_empty_channels():
    block = build_network("resnet8-w4", channels=1, size=8, classes=2).layer2[0].eval()
    for norm in (block.bn1, block.bn2):
        nn.init.zeros_(norm.weight)  # the residual branch says nothing
    x = torch.rand(2, 4, 6, 6)
    out = block(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any()
    assert not out[:, 6:].any()


@pytest.mark.parametrize("name", ["resnet9", "resnet20-w1", "resnet20-w513", "lenet", "resnet2O"])
def test_an_unknown_name_is_told(name):
    with pytest.raises(InputError, match="no network is called"):
        build_network(name, channels=1, size=32, classes=10)


def test_a_misspelt_name_is_corrected():
    with pytest.raises(InputError, match="did you mean 'lenet5-half'"):
        build_network("lenet5-hafl", channels=1, size=32, classes=10)


def test_lenet_says_which_size_it_wants():
    with pytest.raises(InputError, match="--image-size 32"):
        build_network("lenet5", channels=1, size=28, classes=10)


@pytest.mark.parametrize(
    "spec", ["nets/mine.py:make", "package.module:make", "./runs/x", "runs/x", "a.py", "Net"]
)
def test_paths_and_modules_are_no_names(spec):
    assert not is_named(spec)


@pytest.mark.parametrize("answers", ["logits", "probabilities", "log-probabilities"])
def test_a_classifier_normalises_each_channel_and_answers_in_logits(answers):
    class Means(nn.Module):
        """The mean of each channel as logits, dressed as `answers`."""

        def forward(self, x: Tensor) -> Tensor:
            logits = x.mean((2, 3))
            dressed = {"logits": logits, "probabilities": logits.softmax(1)}
            return dressed.get(answers, logits.log_softmax(1))

    spec = ImageSpec(2, 3, 3, (0.5, 0.25), (0.5, 0.125))
    images = torch.rand(4, 2, 3, 3)
    expected = torch.stack(
        [(images[:, 0].mean((1, 2)) - 0.5) / 0.5, (images[:, 1].mean((1, 2)) - 0.25) / 0.125], 1
    )
    found = Classifier(Means(), spec, 2, answers)(images)
    assert torch.allclose(found.softmax(1), expected.softmax(1), atol=1e-5)
    if answers == "logits":
        assert torch.allclose(found, expected, atol=1e-5)


def test_the_normalisation_is_no_weight():
    classifier = Classifier(nn.Flatten(), ImageSpec(1, 1, 2, (0.5,), (0.5,)), 2)
    assert list(classifier.state_dict()) == []


# --- generator ---


@pytest.mark.parametrize("pixels", [16, 28, 30, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_decoder_makes_images_of_the_size_it_is_told(pixels, channels):
    decoder = Decoder(latent=7, width=8, classes=4, shape=(channels, pixels, pixels))
    images = decoder(torch.randn(5, 7), torch.tensor([0, 1, 2, 3, 0]))
    assert images.shape == (5, channels, pixels, pixels)
    assert images.min() >= 0
    assert images.max() <= 1


def test_a_decoder_makes_oblong_images():
    decoder = Decoder(latent=7, width=8, classes=4, shape=(2, 13, 30))
    assert decoder(torch.randn(2, 7), torch.tensor([0, 3])).shape == (2, 2, 13, 30)


def test_a_decoder_heeds_noise_and_class():
    decoder = Decoder(latent=7, width=8, classes=4, shape=(1, 16, 16)).eval()
    z = torch.randn(1, 7).repeat(2, 1)
    other_class = decoder(z, torch.tensor([0, 1]))
    assert (other_class[0] - other_class[1]).abs().max() > 1e-3
    other_noise = decoder(torch.randn(2, 7), torch.tensor([2, 2]))
    assert (other_noise[0] - other_noise[1]).abs().max() > 1e-3


def test_gradients_reach_all_of_a_decoder():
    decoder = Decoder(latent=7, width=8, classes=2, shape=(1, 16, 16))
    weights = torch.rand(6, 1, 16, 16)
    (decoder(torch.randn(6, 7), torch.tensor([0, 1] * 3)) * weights).sum().backward()
    for name, p in decoder.named_parameters():
        assert p.grad is not None, name
        if (
            name != "linear.bias"
        ):  # the norm behind it takes a shift of the whole map away, not all of this one
            assert p.grad.abs().max() > 0, name


def test_a_conditional_norm_has_the_mean_and_the_deviation_of_its_class():
    norm = ConditionalNorm(3, 2)
    norm.scale.weight.data[:] = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    norm.shift.weight.data[:] = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    x, labels = torch.randn(40, 3, 5, 5) * 7 + 2, torch.tensor([0, 1] * 20)
    plain = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True, correction=0)
    out = norm(x, labels)
    for i in (0, 1):
        scale, shift = norm.scale.weight[i], norm.shift.weight[i]
        expected = plain[i] * scale[:, None, None] + shift[:, None, None]
        assert torch.allclose(out[i], expected, atol=1e-4)


# --- critic ---


@pytest.mark.parametrize("pixels", [16, 28, 30, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_critic_has_one_opinion_per_image(pixels, channels):
    critic = Critic(channels=channels, classes=4, width=4, normed=True)
    validity = critic(torch.rand(5, channels, pixels, pixels), torch.tensor([0, 1, 2, 3, 0]))
    assert validity.shape == (5,)


def test_a_critics_opinion_depends_on_the_class():
    critic = Critic(channels=1, classes=4, width=4, normed=True).eval()
    found = critic(torch.rand(1, 1, 16, 16).expand(4, -1, -1, -1), torch.arange(4))
    assert len(set(found.tolist())) == 4


def largest_singular_values(critic: Critic) -> list[float]:
    """Of each layer's weight as a matrix with one row per output."""
    layers = [*critic.convolutions, critic.head, critic.embedding]
    return [
        torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item() for layer in layers
    ]


def used(critic: Critic) -> Critic:
    """After some steps in training mode, one power iteration each."""
    for _ in range(60):
        critic(torch.rand(2, 3, 16, 16), torch.tensor([0, 1]))
    return critic.eval()


def test_spectral_norm_makes_the_largest_singular_value_of_every_layer_one():
    torch.manual_seed(0)
    assert largest_singular_values(
        used(Critic(channels=3, classes=10, width=8, normed=True))
    ) == pytest.approx([1.0] * 5, rel=0.02)


def test_without_spectral_norm_the_singular_values_are_what_they_were():
    torch.manual_seed(0)
    critic = Critic(channels=3, classes=10, width=8, normed=False)
    before = largest_singular_values(critic)
    assert largest_singular_values(used(critic)) == before
    assert all(abs(value - 1) > 0.02 for value in before)


def test_the_bound_holds_however_large_the_weights_grow():
    critic = Critic(channels=3, classes=10, width=8, normed=True)
    for name, p in critic.named_parameters():
        if "original" in name:
            p.data *= 50
    assert largest_singular_values(used(critic)) == pytest.approx([1.0] * 5, rel=0.02)


@pytest.mark.parametrize("stem", ["", "-stem2", "-stem4"])
@pytest.mark.parametrize(
    "name", ["resnet8", "resnet20-w8", "wrn-16-1", "mobilenet-0.5", "mobilenet"]
)
def test_a_stem_makes_the_maps_smaller_and_nothing_else(name, stem):
    """The same weights, by name; and the name is one of ours wherever it is read."""
    plain, made = (
        build_network(text, channels=1, size=64, classes=3).eval() for text in (name, name + stem)
    )
    made.load_state_dict(plain.state_dict())
    seen = []
    first = made.layer1 if hasattr(made, "layer1") else made.blocks
    first.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[2:])))
    images = torch.rand(2, 1, 64, 64)
    answers = made(images)
    side = 64 // int(stem[-1] if stem else 1)
    assert answers.shape == (2, 3) and seen == [(side, side)]
    assert torch.equal(answers, plain(images)) == (not stem)
    assert is_named(name + stem) and is_known(name + stem)


@pytest.mark.parametrize(
    "name", ["lenet5-stem2", "resnet8-stem", "resnet8-stem3", "resnet8-stem04"]
)
def test_a_stem_that_there_is_not_is_refused(name):
    with pytest.raises(InputError, match="no network is called"):
        build_network(name, channels=1, size=64, classes=3)
