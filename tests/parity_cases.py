"""The models with which both engines are compared with torch, and from which the list of supported operators is made.

They are the kinds of networks that boards train: dense, convolutional, depthwise-separable, one-dimensional, recurrent,
attention, autoencoders, and networks with BatchNorm. Layers whose bias a normalisation or a softmax takes out again have none:
its gradient is nothing but rounding, and AdamW would make full steps of it, in torch as well as here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgefl.export.architectures import MnistCNN, MnistExits
from edgefl.recipe import Loss

BOTH = ("portable", "ort-training")


@dataclass(frozen=True)
class Case:
    """A model to compare.

    Attributes:
        build: the module.
        shape: of one example.
        outputs: how many.
        loss: of its recipe.
        engines: that can train it.
        exits: of the module; 0 for none.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    outputs: int
    loss: Loss = "cross-entropy"
    engines: tuple[str, ...] = BOTH
    exits: int = 0


def dense() -> nn.Module:
    """The 2NN of the literature, narrower."""
    return nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 10))


def separable(channels: int, out: int, stride: int) -> list[nn.Module]:
    """A depthwise-separable convolution as in MobileNet."""
    return [
        nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False),
        nn.GroupNorm(channels // 4, channels),
        nn.ReLU6(),
        nn.Conv2d(channels, out, 1, bias=False),
        nn.GroupNorm(out // 4, out),
        nn.Hardswish(),
    ]


def mobile() -> nn.Module:
    """Depthwise-separable convolutions with group normalisation."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.GroupNorm(2, 8), nn.Hardswish(),
        *separable(8, 16, 1), *separable(16, 24, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


def sensor_cnn() -> nn.Module:
    """One-dimensional convolutions on a window of readings."""
    return nn.Sequential(
        nn.Conv1d(6, 16, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(16, 24, 3, padding=1), nn.GroupNorm(3, 24), nn.SiLU(), nn.AvgPool1d(2),
        nn.Flatten(), nn.Linear(24 * 6, 6),
    )  # fmt: skip


class Recurrent(nn.Module):
    """A recurrent layer over a window of readings; the last state is classified."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.hidden_size * (2 if layer.bidirectional else 1), 6)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of `(n, t, channels)`."""
        states: Tensor = self.layer(x)[0]
        logits: Tensor = self.head(states[:, -1])
        return logits


class Attention(nn.Module):
    """A transformer block over a window: self-attention, layer normalisation, GELU, mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.place = nn.Parameter(0.1 * torch.randn(12, 16))
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True, bias=False)
        self.feed = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of `(n, 12, 6)`."""
        x = self.embed(x) + self.place
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.feed(self.norm2(x))
        logits: Tensor = self.head(x.mean(1))
        return logits


def autoencoder() -> nn.Module:
    """Reconstructs a window of readings through a narrow layer."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(6 * 20, 24), nn.Tanh(), nn.Linear(24, 6), nn.Tanh(), nn.Linear(6, 24), nn.Tanh(),
        nn.Linear(24, 6 * 20), nn.Unflatten(1, (6, 20)),
    )  # fmt: skip


def batch_normalised() -> nn.Module:
    """Convolutions with BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12, momentum=0.3), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(12 * 9, 16, bias=False), nn.BatchNorm1d(16), nn.LeakyReLU(), nn.Linear(16, 5),
    )  # fmt: skip


def alarms() -> nn.Module:
    """Several yes-or-no answers about a window."""
    return nn.Sequential(nn.Linear(20, 16), nn.ELU(), nn.Linear(16, 16), nn.Softplus(), nn.Linear(16, 3))


CASES: dict[str, Case] = {
    "2NN": Case(dense, (64,), 10),
    "McMahan CNN": Case(lambda: MnistCNN(0.25), (1, 28, 28), 10),
    "depthwise-separable CNN": Case(mobile, (3, 16, 16), 5),
    "1-D CNN": Case(sensor_cnn, (6, 48), 6),
    "GRU": Case(lambda: Recurrent(nn.GRU(6, 16, batch_first=True)), (12, 6), 6),
    "LSTM": Case(lambda: Recurrent(nn.LSTM(6, 16, batch_first=True, bidirectional=True)), (8, 6), 6),
    "attention block": Case(Attention, (12, 6), 6),
    "autoencoder": Case(autoencoder, (6, 20), 120, "mse"),
    "yes-or-no outputs": Case(alarms, (20,), 3, "bce"),
    "masked classes": Case(dense, (64,), 10, "masked-cross-entropy", engines=("portable",)),
    "CNN with exits": Case(lambda: MnistExits(0.5), (1, 28, 28), 10, "self-distillation", engines=("portable",), exits=4),
    "CNN with BatchNorm": Case(batch_normalised, (1, 12, 12), 5, engines=("portable",)),
}


@dataclass(frozen=True)
class Layer:
    """A layer to compare, followed by a linear one.

    Attributes:
        build: the layer or a few of them.
        shape: of one example.
        engines: that can train it.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    engines: tuple[str, ...] = BOTH

    def network(self) -> nn.Module:
        """The layer between two linear ones where it has nothing to train itself, and its outputs classified."""
        torch.manual_seed(0)
        layer = self.build()
        first = [] if any(True for _ in layer.parameters()) else [nn.Linear(self.shape[-1], self.shape[-1])]
        body = nn.Sequential(*first, layer, nn.Flatten())
        with torch.no_grad():
            outputs = body.eval()(torch.zeros(2, *self.shape)).shape[1]
        return nn.Sequential(*body, nn.Linear(outputs, 4))


class Arithmetic(nn.Module):
    """Operators that models write out: sums, products, roots, comparisons, cutting and joining."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        """As many values as came in."""
        a, b = (x * self.scale).chunk(2, 1)
        c = torch.cat([a.exp(), (b.abs() + 1.0).sqrt()], 1)
        d = torch.where(x > 0.0, c, 1.0 - c) / (1.0 + x.square()).log1p()
        return d.clamp(-2.0, 2.0) + x.mean(1, keepdim=True) - x.amax(1, keepdim=True)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind
    for kind in (
        nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
        nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softplus, nn.Softsign,
    )
}  # fmt: skip

LAYERS: dict[str, Layer] = {
    "Linear": Layer(lambda: nn.Linear(8, 6), (8,)),
    **{name: Layer(build, (8,)) for name, build in ACTIVATIONS.items()},
    "Softmax": Layer(lambda: nn.Softmax(1), (8,)),
    "LogSoftmax": Layer(lambda: nn.LogSoftmax(1), (8,)),
    "Conv1d": Layer(lambda: nn.Conv1d(3, 4, 3, stride=2, dilation=2, padding=1), (3, 16)),
    "Conv2d": Layer(lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1), (2, 9, 9)),
    "Conv2d, groups": Layer(lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same"), (4, 6, 6)),
    "ConvTranspose2d": Layer(lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 4, 4), ()),
    "MaxPool1d": Layer(lambda: nn.MaxPool1d(2), (2, 12)),
    "MaxPool2d": Layer(lambda: nn.MaxPool2d(3, stride=2, padding=1), (2, 8, 8)),
    "AvgPool1d": Layer(lambda: nn.AvgPool1d(2), (2, 12)),
    "AvgPool2d": Layer(lambda: nn.AvgPool2d(2), (2, 8, 8)),
    "AdaptiveAvgPool1d": Layer(lambda: nn.AdaptiveAvgPool1d(3), (2, 12)),
    "AdaptiveAvgPool2d": Layer(lambda: nn.AdaptiveAvgPool2d(2), (2, 8, 8)),
    "AdaptiveMaxPool2d": Layer(lambda: nn.AdaptiveMaxPool2d(2), (2, 8, 8), ("ort-training",)),
    "Upsample": Layer(lambda: nn.Upsample(scale_factor=2), (2, 4, 4), ("portable",)),
    "ZeroPad2d": Layer(lambda: nn.ZeroPad2d(1), (2, 4, 4)),
    "GroupNorm": Layer(lambda: nn.GroupNorm(2, 8), (8, 5)),
    "LayerNorm": Layer(lambda: nn.LayerNorm(8), (8,)),
    "RMSNorm": Layer(lambda: nn.RMSNorm(8), (8,)),
    "BatchNorm1d": Layer(lambda: nn.BatchNorm1d(4), (4, 6), ("portable",)),
    "BatchNorm2d": Layer(lambda: nn.BatchNorm2d(2), (2, 4, 4), ("portable",)),
    "InstanceNorm1d": Layer(lambda: nn.InstanceNorm1d(3, affine=True), (3, 8), ("portable",)),
    "RNN": Layer(lambda: Recurrent(nn.RNN(4, 6, batch_first=True)), (5, 4)),
    "GRU": Layer(lambda: Recurrent(nn.GRU(4, 6, num_layers=2, batch_first=True)), (5, 4)),
    "LSTM": Layer(lambda: Recurrent(nn.LSTM(4, 6, batch_first=True)), (5, 4)),
    "MultiheadAttention": Layer(Attention, (12, 6)),
    "TransformerEncoderLayer": Layer(lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (5, 8)),
    "Dropout": Layer(lambda: nn.Dropout(0.5), (8,), ()),
    "PixelShuffle": Layer(lambda: nn.PixelShuffle(2), (4, 3, 3)),
    "arithmetic": Layer(Arithmetic, (8,)),
}
