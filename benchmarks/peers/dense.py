"""No codec: every parameter as float32. What plain federated averaging reaches, and what it would send at the least."""

from perceptron import Parameters


class Codec:
    """Four bytes per parameter."""

    def __init__(self, device: int) -> None:
        self.device = device

    def send(self, delta: Parameters) -> tuple[int, Parameters]:
        """Bytes of the delta, and the delta itself."""
        return sum(value.nbytes for value in delta.values()), delta
