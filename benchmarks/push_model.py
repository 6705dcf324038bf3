"""The model whose variant is delivered: five megabytes, nearly all of it weights."""

from torch import Tensor, nn

from edgefl.export.architectures import scaled


class FiveMegabytes(nn.Module):
    """A perceptron 784-1040-400-10 with 1.24 million parameters, 4.95 MB in float32."""

    input_shape = (784,)

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        first, second = scaled(1040, width, 1), scaled(400, width, 1)
        self.layers = nn.Sequential(nn.Linear(784, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, 10)` of `(n, 784)`."""
        logits: Tensor = self.layers(x)
        return logits
