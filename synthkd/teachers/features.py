"""What passes inside a network, by layer: hooks that leave with their `with`.

B batch, C channels, H height, W width of a map, T tokens, D features.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.core.errors import InputError, quoted, suggest
from synthkd.losses.distillation.view import as_vectors
from synthkd.networks.modes import in_eval_mode

Features = dict[str, Tensor]  # by layer: maps [B, C, H, W], tokens [B, T, D] or vectors [B, D]
Note = Callable[[Any], Any]  # what it returns, unless None, takes the place of what it was given


@contextmanager
def hooked(
    *,
    inputs: Iterable[tuple[nn.Module, Note]] = (),
    outputs: Iterable[tuple[nn.Module, Note]] = (),
) -> Iterator[None]:
    """While the `with` lasts, `note` is called with the first input, or the output, of its module.

    A note may return a tensor that then takes the place of what it was called with.
    """

    def before(note: Note) -> Callable[..., Any]:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> Any:
            new = note(given[0]) if given else None  # its input may have been given by name
            return None if new is None else (new, *given[1:])

        return hook

    def after(note: Note) -> Callable[..., Any]:
        return lambda _, __, output: note(output)

    handles: list[Any] = []
    try:
        for module, note in inputs:
            handles.append(module.register_forward_pre_hook(before(note)))
        for module, note in outputs:
            handles.append(module.register_forward_hook(after(note)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def features_of(network: nn.Module, layers: Sequence[str]) -> Iterator[Features]:
    """Fills a dictionary while the `with` lasts: the output of each of `layers` by its name, as
    `network.named_modules()` has them; of several outputs the first. NAME.input is what enters the
    module NAME.

    >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.MaxPool2d(2))
    >>> with features_of(network, ["1"]) as seen:
    ...     _ = network(torch.zeros(1, 1, 8, 8))
    >>> {name: list(value.shape) for name, value in seen.items()}
    {'1': [1, 2, 3, 3]}
    >>> with features_of(network, ["1.input"]) as seen:
    ...     _ = network(torch.zeros(1, 1, 8, 8))
    >>> list(seen["1.input"].shape)
    [1, 2, 6, 6]
    """
    seen: Features = {}

    def keep(name: str) -> Note:
        def note(output: Any) -> None:
            value = first_tensor(output)
            if value is None or not 2 <= value.dim() <= 4:
                raise InputError(f"layer {quoted(name)}: its output is no map, token or vector")
            seen[name] = value

        return note

    known = dict(network.named_modules())
    inputs: list[tuple[nn.Module, Note]] = []
    outputs: list[tuple[nn.Module, Note]] = []
    for name in layers:
        module, entering = layer_named(known, name)
        (inputs if entering else outputs).append((module, keep(name)))
    with hooked(inputs=inputs, outputs=outputs):
        yield seen


INPUT = ".input"


def layer_named(known: Mapping[str, nn.Module], name: str) -> tuple[nn.Module, bool]:
    """The module of a layer's name, and whether what enters it is meant (NAME.input) rather than
    what it returns."""
    entering = name.endswith(INPUT) and name not in known
    return module_named(known, name.removesuffix(INPUT) if entering else name), entering


@torch.no_grad()
def embedding_layer(
    network: nn.Module, images: Tensor, classes: int, ask: Callable[[Tensor], Any] | None = None
) -> str:
    """The name, for `features_of`, of what enters the last linear layer; "" where there is none.

    Of the linear layers with `classes` outputs the last that one pass of `images` [B, C, H, W] in
    eval mode calls, if it is given a vector an image. The pass is that of the network, or of `ask`.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))
    >>> embedding_layer(network, torch.zeros(2, 1, 8, 8), 3)
    '3.input'
    """
    called: list[tuple[str, Tensor]] = []
    linear = [
        (module, partial(_note_call, called, name)) for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == classes
    ]  # fmt: skip
    with in_eval_mode(network), hooked(inputs=linear):
        (ask or network)(images)
    name, given = called[-1] if called else ("", images)
    return name + INPUT if name and given.dim() == 2 and len(given) == len(images) else ""


def _note_call(called: list[tuple[str, Tensor]], name: str, given: Tensor) -> None:
    called.append((name, given))


def module_named(known: Mapping[str, nn.Module], name: str) -> nn.Module:
    """The module of this name; one that is not there is an InputError with a suggestion."""
    if not name or name not in known:
        names = [each for each in known if each]
        hint = suggest(name, names)
        if len(names) >= 12 and "did you mean" not in hint:
            hint = f"; there are {', '.join(names[:7])} …"
        raise InputError(f"layer {quoted(name)}: no such module{hint}")
    return known[name]


def first_tensor(output: Any) -> Tensor | None:
    """A tensor, or the first of several outputs; None where that is none."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


@torch.no_grad()
def resolution_layers(network: nn.Module, images: Tensor) -> tuple[str, ...]:
    """The last module of each resolution (H, W) that returns a map, from large to small: of a
    ResNet the groups. Then those that return tokens, of each number of them.

    Found by one pass of `images` [B, C, H, W] in eval mode. Of modules that are called once in a
    pass; where a resolution has only others, it is left out.

    >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.MaxPool2d(2))
    >>> resolution_layers(network, torch.zeros(2, 1, 8, 8))
    ('0', '1')
    """
    last: dict[tuple[int, ...], list[str]] = {}
    calls: dict[str, int] = {}

    def keep(name: str) -> Note:
        def note(output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(output, Tensor) and output.dim() in (3, 4):
                size = output.shape[2:] if output.dim() == 4 else output.shape[1:2]
                last.setdefault(tuple(size), []).append(name)

        return note

    named = [(module, keep(name)) for name, module in network.named_modules() if name]
    with in_eval_mode(network), hooked(outputs=named):
        network(images)
    found = []
    for size in sorted(last, key=lambda size: (len(size), size), reverse=True):
        once = [name for name in last[size] if calls[name] == 1]
        found += once[-1:]
    return tuple(found)


def averaged(output: Any) -> Tensor:
    """A module's output as features [B, D] (`as_vectors`); of several outputs the first."""
    value = first_tensor(output)
    if value is None or value.dim() < 2:
        raise InputError("--teacher.features: this module's output is no tensor of features")
    return as_vectors(value)
