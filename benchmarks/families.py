"""Three families of small classifiers for images of 28 x 28 that learn different things from the same data.

Each is scaled by its width, so that a family has a structure for every board. `classes` is 10 or 2; the functions at the end are
what an experiment names.
"""

from torch import Tensor, nn

from edgefl.export.architectures import GROUP, scaled


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
