"""Models that are measured but not shipped."""

from torch import Tensor, nn

from edgefl.export.architectures import GROUP, scaled


class Separable(nn.Module):
    """A depthwise and a pointwise convolution, each with group normalisation and ReLU (Howard et al., https://arxiv.org/abs/1704.04861)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False)
        self.norm1 = nn.GroupNorm(inputs // GROUP, inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm2 = nn.GroupNorm(outputs // GROUP, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, outputs, h / stride, w / stride)` of `(n, inputs, h, w)`."""
        x = self.norm1(self.depthwise(x)).relu()
        value: Tensor = self.norm2(self.pointwise(x)).relu()
        return value


class SensorCNN(nn.Module):
    """Three 1-D convolutions, a dense layer: windows of 128 readings of six channels; 2,197,318 parameters at full width."""

    input_shape = (6, 128)

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        a, b, c = (scaled(units, width, GROUP) for units in (64, 128, 128))
        hidden = scaled(1024, width)
        self.conv1, self.norm1 = nn.Conv1d(6, a, 5, padding=2), nn.GroupNorm(a // GROUP, a)
        self.conv2, self.norm2 = nn.Conv1d(a, b, 5, padding=2), nn.GroupNorm(b // GROUP, b)
        self.conv3, self.norm3 = nn.Conv1d(b, c, 3, padding=1), nn.GroupNorm(c // GROUP, c)
        self.pool = nn.MaxPool1d(2)
        self.fc1 = nn.Linear(16 * c, hidden)
        self.head = nn.Linear(hidden, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, 6)` of `(n, 6, 128)`."""
        x = self.pool(self.norm1(self.conv1(x)).relu())
        x = self.pool(self.norm2(self.conv2(x)).relu())
        x = self.pool(self.norm3(self.conv3(x)).relu())
        logits: Tensor = self.head(self.fc1(x.flatten(1)).relu())
        return logits


class NormedCNN(nn.Module):
    """Two 3 x 3 convolutions with stride 2 and batch normalisation, one hidden layer: 55,386 parameters and 96 statistics."""

    input_shape = (1, 28, 28)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.hidden, self.head = nn.Linear(32 * 49, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, 10)` of `(n, 1, 28, 28)`."""
        x = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())).relu()
        logits: Tensor = self.head(self.hidden(x.flatten(1)).relu())
        return logits


class SeparableCNN(nn.Module):
    """A small MobileNet for 28x28 images: 55,210 parameters at full width."""

    input_shape = (1, 28, 28)

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        a, b, c, d = (scaled(units, width, GROUP) for units in (32, 64, 128, 256))
        self.stem = nn.Conv2d(1, a, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(a // GROUP, a)
        self.blocks = nn.Sequential(Separable(a, b, 2), Separable(b, c, 1), Separable(c, c, 2), Separable(c, d, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(d, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, 10)` of `(n, 1, 28, 28)`."""
        x = self.blocks(self.norm(self.stem(x)).relu())
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits
