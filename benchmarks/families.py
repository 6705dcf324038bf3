"""Three families of small classifiers for images of 28 x 28 that learn different things from the same data.

Each is scaled by its width, so that a family has a structure for every board. `classes` is 10 or 2; the functions at the end are
what an experiment names.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgefl.export.architectures import GROUP, scaled

NARROW_GROUP = 4
"""Channels per normalisation group of the deeper networks: few, so that they can be narrow."""
NARROWEST = 1 / 16
GRID = 4
"""Parts of the image on a side that an exit tells apart."""


class Perceptron(nn.Module):
    """Two hidden layers; sees no neighbourhoods. 101,770 parameters at full width and 10 classes."""

    input_shape = (784,)

    def __init__(self, width: float = 1.0, classes: int = 10) -> None:
        super().__init__()
        first, second = scaled(120, width), scaled(60, width)
        self.fc1 = nn.Linear(784, first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(second, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of `(n, 784)`."""
        logits: Tensor = self.fc3(self.fc2(self.fc1(x).relu()).relu())
        return logits


class Image(nn.Module):
    """Two 5 x 5 convolutions with stride 2 over the image. 19,306 parameters at full width and 10 classes."""

    input_shape = (1, 28, 28)
    channels = (12, 24)

    def __init__(self, width: float = 1.0, classes: int = 10) -> None:
        super().__init__()
        first, second = (scaled(count, width) for count in self.channels)
        self.conv1 = nn.Conv2d(1, first, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(first, second, 5, stride=2, padding=2)
        self.head = nn.Linear(second * 49, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of `(n, 1, 28, 28)`."""
        x = self.conv2(self.conv1(x).relu()).relu()
        logits: Tensor = self.head(x.flatten(1))
        return logits


class Nested(nn.Module):
    """Three 3 x 3 convolutions with stride 2, each followed by group normalisation, for widths that learn together.

    Groups are of `GROUP` channels at any width, so a narrower network's activations are exactly as large as those of the same
    channels in a wider one: what HeteroFL's scaler and static batch normalisation are for. 113,610 parameters at full width.
    """

    input_shape = (1, 28, 28)

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        first, second, third = (scaled(count, width, GROUP) for count in (32, 64, 128))
        self.conv1, self.norm1 = nn.Conv2d(1, first, 3, stride=2, padding=1), nn.GroupNorm(first // GROUP, first)
        self.conv2, self.norm2 = nn.Conv2d(first, second, 3, stride=2, padding=1), nn.GroupNorm(second // GROUP, second)
        self.conv3, self.norm3 = nn.Conv2d(second, third, 3, stride=2, padding=1), nn.GroupNorm(third // GROUP, third)
        self.head = nn.Linear(third * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of `(n, 1, 28, 28)`."""
        x = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())).relu()
        logits: Tensor = self.head(self.norm3(self.conv3(x)).relu().flatten(1))
        return logits


class Slimmable(Nested):
    """The same network, which answers with a quarter, with half and with all of its channels: three exits.

    A device that trains them together trains what narrower devices hold as these do, so that shared channels are pulled in one
    direction (slimmable networks, Yu et al., ICLR 2019, https://arxiv.org/abs/1812.08928; in federated learning FjORD, Horvath et
    al., NeurIPS 2021, https://arxiv.org/abs/2102.13451). A step takes about a third more than of the whole alone. No part is
    narrower than `NARROWEST` of the full width.
    """

    def __init__(self, width: float = 1.0, exits: int = 3) -> None:
        super().__init__(width)
        parts = [max(share * width, NARROWEST) for share in (0.25, 0.5, 1.0)]
        self.parts = [tuple(scaled(count, part, GROUP) for count in (32, 64, 128)) for part in parts][:exits]

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, exits, 10)` of `(n, 1, 28, 28)`."""
        return torch.stack([self._part(x, channels) for channels in self.parts], 1)

    def _part(self, x: Tensor, channels: tuple[int, ...]) -> Tensor:
        stages = ((self.conv1, self.norm1), (self.conv2, self.norm2), (self.conv3, self.norm3))
        inputs = 1
        for (conv, norm), count in zip(stages, channels, strict=True):
            bias = conv.bias[:count]  # type: ignore[index]  # torch types the bias of a convolution as optional
            x = functional.conv2d(x, conv.weight[:count, :inputs], bias, stride=2, padding=1)
            x = functional.group_norm(x, count // GROUP, norm.weight[:count], norm.bias[:count]).relu()
            inputs = count
        return functional.linear(x.flatten(1), self.head.weight[:, : 16 * inputs], self.head.bias)


class Stairs(nn.Module):
    """Four 3 x 3 convolutions with group normalisation, and an exit behind each: 1,506, 5,260, 12,614 and 24,720 parameters."""

    input_shape = (1, 28, 28)
    channels = (8, 16, 24, 32)

    def __init__(self, width: float = 1.0, exits: int = 4) -> None:
        super().__init__()
        counts = [scaled(count, width, GROUP) for count in self.channels]
        self.stages = _stages(counts)[:exits]
        self.exits = nn.ModuleList(nn.Linear(count * GRID * GRID, 10) for count in counts[:exits])
        self.pool = nn.AdaptiveAvgPool2d(GRID)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, exits, 10)` of `(n, 1, 28, 28)`."""
        logits = []
        for stage, last in zip(self.stages, self.exits, strict=True):
            x = stage(x)
            logits.append(last(self.pool(x).flatten(1)))
        return torch.stack(logits, 1)


class Straight(nn.Module):
    """The same with one exit behind the last, and more channels, so that it has about as many parameters in all: 25,530."""

    input_shape = (1, 28, 28)
    channels = (8, 20, 32, 40)

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        counts = [scaled(count, width, GROUP) for count in self.channels]
        self.stages = _stages(counts)
        self.head = nn.Linear(counts[-1] * GRID * GRID, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of `(n, 1, 28, 28)`."""
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(x.flatten(1))
        return logits


def _stages(counts: list[int]) -> nn.ModuleList:
    """28 x 28 becomes 16 x 16, 8 x 8, 8 x 8 and 4 x 4."""
    stages = nn.ModuleList()
    for inputs, outputs, kernel, stride in zip([1, *counts[:-1]], counts, (5, 3, 3, 3), (2, 2, 1, 2), strict=True):
        padding = 4 if kernel == 5 else 1
        convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        stages.append(nn.Sequential(convolution, nn.GroupNorm(outputs // GROUP, outputs), nn.ReLU()))
    return stages


class Sequence(nn.Module):
    """Two one-dimensional convolutions down the image, whose columns are channels. 20,538 parameters at width 1, 10 classes."""

    input_shape = (28, 28)

    def __init__(self, width: float = 1.0, classes: int = 10) -> None:
        super().__init__()
        first, second = scaled(48, width), scaled(64, width)
        self.conv1 = nn.Conv1d(28, first, 5, stride=2, padding=2)
        self.conv2 = nn.Conv1d(first, second, 3, stride=2, padding=1)
        self.head = nn.Linear(second * 7, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of `(n, 28, 28)`."""
        # Transposed: rows of the image are time, its columns are channels.
        x = self.conv2(self.conv1(x.transpose(1, 2)).relu()).relu()
        logits: Tensor = self.head(x.flatten(1))
        return logits


def digits_perceptron(width: float = 1.0) -> nn.Module:
    """Ten classes."""
    return Perceptron(width)


def digits_image(width: float = 1.0) -> nn.Module:
    """Ten classes."""
    return Image(width)


def digits_sequence(width: float = 1.0) -> nn.Module:
    """Ten classes."""
    return Sequence(width)


def xray_perceptron(width: float = 1.0) -> nn.Module:
    """Two classes."""
    return Perceptron(width, 2)


def xray_image(width: float = 1.0) -> nn.Module:
    """Two classes."""
    return Image(width, 2)


def xray_sequence(width: float = 1.0) -> nn.Module:
    """Two classes."""
    return Sequence(width, 2)
