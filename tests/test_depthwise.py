"""Depthwise convolutions in bfloat16: what is computed in float32, and that it is the same."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.core.images import ImageSpec
from synthkd.networks.classifier import Classifier
from synthkd.networks.depthwise import DepthwiseInFloat32, gradients, slow_in_bfloat16


class Padded(nn.Conv2d):
    """A convolution of somebody's, that pads on two sides alone."""

    def forward(self, input: Tensor) -> Tensor:
        """As TensorFlow pads."""
        padded = F.pad(input, (0, 1, 0, 1))
        return F.conv2d(padded, self.weight, self.bias, self.stride, groups=self.groups)


LAYERS = {
    "strided": lambda: nn.Conv2d(8, 8, 3, 2, 1, groups=8),
    "strided one way": lambda: nn.Conv2d(8, 8, 3, (1, 2), 1, groups=8, bias=False),
    "more channels out": lambda: nn.Conv2d(8, 16, 3, 2, 1, groups=8),
    "own padding": lambda: Padded(8, 8, 3, 2, groups=8),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradient_is_that_of_float32(name: str) -> None:
    """The gradient of the input is exactly float32's of the same rounded numbers."""
    torch.manual_seed(0)
    layer = LAYERS[name]().requires_grad_(False)
    x = torch.randn(4, 8, 12, 12).bfloat16()
    wide, narrow = x.float().requires_grad_(), x.clone().requires_grad_()
    exact = layer(wide)
    with torch.autocast("cpu", torch.bfloat16), DepthwiseInFloat32():
        found = layer(narrow)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())
    towards = torch.randn_like(found)
    found.backward(towards)
    exact.backward(towards.float())
    assert narrow.grad is not None and wide.grad is not None
    assert torch.equal(narrow.grad, wide.grad.bfloat16())


def test_large_kernel_that_learns_is_exact_as_well() -> None:
    """The gradient of a 5 x 5 kernel is float32's, to the last bit."""
    torch.manual_seed(0)
    layer, x = nn.Conv2d(8, 8, 5, 1, 2, groups=8), torch.randn(4, 8, 12, 12)
    layer(x).backward(torch.ones(4, 8, 12, 12))
    assert layer.weight.grad is not None
    exact, layer.weight.grad = layer.weight.grad.clone(), None
    with torch.autocast("cpu", torch.bfloat16), DepthwiseInFloat32():
        layer(x).backward(torch.ones(4, 8, 12, 12, dtype=torch.bfloat16))
    assert torch.equal(layer.weight.grad, exact)


def test_what_is_fast_stays_in_bfloat16() -> None:
    """Full, grouped and pointwise convolutions, frozen kernels without a stride, and images that
    want no gradient."""
    x = torch.zeros(2, 8, 6, 6, requires_grad=True)
    kernel = torch.zeros(8, 1, 3, 3)
    assert slow_in_bfloat16(x, kernel, None, (2, 2), 0, 1, 8)
    assert not slow_in_bfloat16(x, kernel, None, (1, 1), 0, 1, 8)
    assert not slow_in_bfloat16(x.detach(), kernel, None, 2, 0, 1, 8)
    assert not slow_in_bfloat16(x, torch.zeros(8, 8, 3, 3), stride=2)
    assert not slow_in_bfloat16(x, torch.zeros(8, 4, 3, 3), stride=2, groups=2)
    large = torch.zeros(8, 1, 5, 5)
    assert not slow_in_bfloat16(x, large, groups=8)
    assert slow_in_bfloat16(x.detach(), large.requires_grad_(), groups=8)


def test_entered_where_it_is_of_use_alone() -> None:
    """In autocast, with gradients, for a network with depthwise convolutions."""
    depthwise, full = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3)
    assert isinstance(gradients(depthwise), nullcontext)  # in float32
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(gradients(depthwise), DepthwiseInFloat32)
        assert isinstance(gradients(full), nullcontext)
        with torch.no_grad():
            assert isinstance(gradients(depthwise), nullcontext)


def test_classifier_computes_so() -> None:
    """Of a classifier under autocast the depthwise convolution with a stride alone is float32."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    classifier = Classifier(body, ImageSpec(1, 12, 12, (0.5,), (0.5,)), 3).requires_grad_(False)
    seen: list[torch.dtype] = []
    images = torch.rand(4, 1, 12, 12, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = classifier.eval()(images)
    todo = [out.grad_fn]
    for node in todo:  # grows: a walk backwards through the graph
        if type(node).__name__ == "ConvolutionBackward0":
            seen.append(node._saved_input.dtype)
        todo += [following for following, _ in node.next_functions if following is not None]
    assert seen == [torch.float32, torch.bfloat16]
