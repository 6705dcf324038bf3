"""The built-in models: small classifiers with the sizes that the federated learning literature uses.

Rules: `width` scales hidden layers only; every hidden tensor of a narrower model is the leading corner of the full one's.
Normalisation is by group, with a fixed number of channels per group, so that the groups of a narrower model are the leading
groups of the full one and keep their statistics.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

GROUP = 8
"""Channels per normalisation group."""


def scaled(units: int, width: float, multiple: int = 1) -> int:
    """`units * width`, rounded to a multiple, at least one multiple, at most `units`."""
    return min(units, max(1, round(units * width / multiple)) * multiple)


class Mnist2NN(nn.Module):
    """Two hidden layers of 200 units: 199,210 parameters (McMahan et al., https://arxiv.org/abs/1602.05629)."""

    input_shape = (784,)

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        hidden = scaled(200, width)
        self.fc1 = nn.Linear(784, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, 10)` of `(n, 784)`."""
        x = self.fc1(x).relu()
        x = self.fc2(x).relu()
        logits: Tensor = self.fc3(x)
        return logits


class MnistCNN(nn.Module):
    """Two 5x5 convolutions with pooling and a dense layer: 1,663,370 parameters (McMahan et al.)."""

    input_shape = (1, 28, 28)

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        first, second, dense = scaled(32, width), scaled(64, width), scaled(512, width)
        self.conv1 = nn.Conv2d(1, first, 5, padding=2)
        self.conv2 = nn.Conv2d(first, second, 5, padding=2)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(second * 7 * 7, dense)
        self.fc2 = nn.Linear(dense, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, 10)` of `(n, 1, 28, 28)`."""
        x = self.pool(self.conv1(x).relu())
        x = self.pool(self.conv2(x).relu())
        x = self.fc1(x.flatten(1)).relu()
        logits: Tensor = self.fc2(x)
        return logits


class HarCNN1d(nn.Module):
    """Activity from a window of 128 readings of six inertial channels; 1-D convolutions, group normalisation, 6 classes."""

    input_shape = (6, 128)

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        narrow, wide = scaled(64, width, GROUP), scaled(128, width, GROUP)
        self.conv1 = nn.Conv1d(6, narrow, 5, padding=2)
        self.norm1 = nn.GroupNorm(narrow // GROUP, narrow)
        self.conv2 = nn.Conv1d(narrow, narrow, 5, padding=2)
        self.norm2 = nn.GroupNorm(narrow // GROUP, narrow)
        self.conv3 = nn.Conv1d(narrow, wide, 3, padding=1)
        self.norm3 = nn.GroupNorm(wide // GROUP, wide)
        self.pool = nn.MaxPool1d(2)
        self.mean = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(wide, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, 6)` of `(n, 6, 128)`."""
        x = self.pool(self.norm1(self.conv1(x)).relu())
        x = self.pool(self.norm2(self.conv2(x)).relu())
        x = self.norm3(self.conv3(x)).relu()
        logits: Tensor = self.head(self.mean(x).flatten(1))
        return logits


class MnistExits(nn.Module):
    """Four convolutions with an exit behind each, of which a board may hold the first few: 72,440 parameters in all.

    With 1, 2, 3 and 4 exits it has 3,002, 12,804, 34,414 and 72,440 parameters.
    """

    input_shape = (1, 28, 28)

    def __init__(self, width: float = 1.0, exits: int = 4) -> None:
        super().__init__()
        channels = [scaled(count, width, GROUP) for count in (16, 32, 48, 64)]
        stages = (
            _stage(1, channels[0], 5, stride=2, padding=4),
            _stage(channels[0], channels[1], 3, stride=2, padding=1),
            _stage(channels[1], channels[2], 3, stride=1, padding=1),
            _stage(channels[2], channels[3], 3, stride=2, padding=1),
        )
        self.stages = nn.ModuleList(stages[:exits])
        self.exits = nn.ModuleList(_exit(count) for count in channels[:exits])

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, exits, 10)` of `(n, 1, 28, 28)`."""
        logits = []
        for stage, way_out in zip(self.stages, self.exits, strict=True):
            x = stage(x)
            logits.append(way_out(x))
        return torch.stack(logits, 1)


def _stage(inputs: int, outputs: int, kernel: int, *, stride: int, padding: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(outputs // GROUP, outputs), nn.ReLU())


def _exit(channels: int) -> nn.Module:
    """A classifier of what is seen in each of 4 x 4 parts of the image."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(channels * 16, 10))


BUILT_IN: dict[str, Callable[[float], nn.Module]] = {
    "mnist-2nn": Mnist2NN,
    "mnist-cnn": MnistCNN,
    "har-cnn1d": HarCNN1d,
    "mnist-exits": MnistExits,
}
