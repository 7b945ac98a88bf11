"""Which networks may not learn with images laid out channels last."""

from torch import nn

BLOCK = 8  # channels that a vector of AVX2 holds


def may_learn_channels_last(network: nn.Module) -> bool:
    """Whether its weights get the right gradients on a CPU whose images lie channels last.

    oneDNN (3.12 in torch 2.14) computes the gradient of a 1 x 1 convolution with a stride in a
    workspace that is too small where 2 to 7 channels go in and they lie last, on CPUs that have
    AVX2 and not AVX-512: the gradient is wrong, memory is overwritten, or the threads wait for each
    other for ever (https://github.com/uxlfoundation/oneDNN/issues/6035). The first block of RepVGG
    and of MobileOne has such a layer. In the usual layout the gradient is right.

    >>> may_learn_channels_last(nn.Conv2d(3, 8, 1, stride=2))
    False
    >>> may_learn_channels_last(nn.Conv2d(3, 8, 3, stride=2))
    True
    """
    return not any(
        isinstance(layer, nn.Conv2d) and layer.weight.requires_grad
        and set(layer.kernel_size) == {1} and max(layer.stride) > 1
        and 1 < layer.in_channels // layer.groups < BLOCK
        for layer in network.modules()
    )  # fmt: skip
