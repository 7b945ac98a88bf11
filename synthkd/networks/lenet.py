"""LeNet-5 with ReLU and max pooling, whole and with half of its widths."""

from collections import OrderedDict

from torch import Tensor, nn

from synthkd.core.errors import InputError


class LeNet5(nn.Module):
    """LeCun et al. 1998, with today's activations: 5x5 convolutions 6, 16, 120, then 84 and K
    units.

    At 32 pixels the whole network has 61,706 parameters for 10 classes, the half one 15,738.
    """

    def __init__(
        self, *, channels: int = 1, size: int | tuple[int, int] = 32, classes: int = 10,
        half: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if size not in (32, (32, 32)):
            got = size if isinstance(size, int) else "x".join(str(side) for side in size)
            raise InputError(f"lenet5 takes images of 32 pixels; got {got}: give --image-size 32")
        a, b, c, d = (3, 8, 60, 42) if half else (6, 16, 120, 84)
        self.convnet = nn.Sequential(
            OrderedDict(
                c1=nn.Conv2d(channels, a, 5),
                relu1=nn.ReLU(),
                s2=nn.MaxPool2d(2),
                c3=nn.Conv2d(a, b, 5),
                relu3=nn.ReLU(),
                s4=nn.MaxPool2d(2),
                c5=nn.Conv2d(b, c, 5),
                relu5=nn.ReLU(),
            )
        )
        self.fc = nn.Sequential(
            OrderedDict(f6=nn.Linear(c, d), relu6=nn.ReLU(), f7=nn.Linear(d, classes))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B, C, 32, 32] to logits [B, K]."""
        logits: Tensor = self.fc(self.convnet(x).flatten(1))
        return logits
