"""A model small enough that a fleet of it lives and dies many times a second."""

from torch import Tensor, nn


class Tiny(nn.Module):
    """A perceptron 784-8-10 for scikit-learn's digits: 6,370 parameters."""

    input_shape = (784,)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, 10)` of `(n, 784)`."""
        logits: Tensor = self.layers(x)
        return logits
