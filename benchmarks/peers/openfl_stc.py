"""OpenFL's STC pipeline (sparsify, ternarise, gzip), as its collaborator uses it: one protobuf message per tensor.

OpenFL ships it without error feedback; whoever runs it here says so in the row's label.
"""

from openfl.pipelines import STCPipeline, TensorCodec
from openfl.protocols.utils import construct_named_tensor
from openfl.utilities import TensorKey
from perceptron import Parameters


class Codec:
    """OpenFL's tensor codec with its sparse ternary pipeline.

    Args:
        device: number of the device.
        sparsity: fraction of each tensor's coordinates that is kept; OpenFL's default is 0.1.
    """

    def __init__(self, device: int, sparsity: float = 0.1) -> None:
        self._origin = f"device-{device}"
        self._codec = TensorCodec(STCPipeline(p_sparsity=sparsity))
        self._round = 0

    def send(self, delta: Parameters) -> tuple[int, Parameters]:
        """Bytes of the protobuf messages of all tensors, and what OpenFL's decompression makes of them."""
        self._round += 1
        length, read = 0, {}
        for name, value in delta.items():
            key = TensorKey(name, self._origin, self._round, False, ("trained", "delta"))  # noqa: FBT003  OpenFL's own fields
            packed_key, data, metadata = self._codec.compress(key, value)
            message = construct_named_tensor(packed_key, data, metadata, lossless=False)
            length += message.ByteSize()
            read[name] = self._codec.decompress(packed_key, data, metadata)[1].reshape(value.shape)
        return length, read
