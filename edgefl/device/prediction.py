"""What a model says of some inputs, and what follows from it. Pure."""

from dataclasses import dataclass

import numpy as np

from edgefl.layout import Float32, Index


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one request; all of it comes from the same version and weights.

    Attributes:
        logits: float32, shape `(n, classes)`: outputs before any activation of the loss.
        loss: one of `edgefl.recipe.LOSSES`.
        version: of the model.
        round: whose weights these were; 0 for those that came with the version.
        quantised: whether the version's int8 graph has computed it.
    """

    logits: Float32
    loss: str
    version: int
    round: int
    quantised: bool

    @property
    def probabilities(self) -> Float32:
        """Float32, shape `(n, classes)`: softmax for cross-entropy, a sigmoid of each output for bce, the outputs for mse."""
        if self.loss == "mse":
            return self.logits
        if self.loss == "bce":
            sigmoid: Float32 = np.float32(0.5) * (np.float32(1.0) + np.tanh(np.float32(0.5) * self.logits))
            return sigmoid
        powers = np.exp(self.logits - self.logits.max(1, keepdims=True))
        shares: Float32 = powers / powers.sum(1, keepdims=True)
        return shares

    @property
    def classes(self) -> Index:
        """Int64, shape `(n,)`: the output with the largest value of each input; of a single output whether it is above 0."""
        if self.logits.shape[1] == 1:
            return (self.logits[:, 0] > 0.0).astype(np.int64)
        largest: Index = self.logits.argmax(1).astype(np.int64)
        return largest
