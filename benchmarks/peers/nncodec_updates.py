"""Fraunhofer's NNCodec (ISO/IEC 15938-17), set as its own federated learning code does for differential updates.

The defaults are those of `nncodec.fl.nncargs`: step size by qp -26, 60 % unstructured sparsity, then structured sparsification
with gain 0.9, and temporal context adaptation, in which the last update of the device is the context of the next. That code also
accumulates errors; here the loop does (`feedback`). Two dials are turned for fewer bytes in a row of its own.
"""

import contextlib
import importlib
import io
import sys
import types
from typing import Any
from unittest.mock import MagicMock

import numpy as np
from perceptron import Parameters


def _import(name: str) -> Any:
    """A module of NNCodec, which imports torchvision for data sets that are not used here.

    Where torchvision does not load, as beside a torch of another build, an empty stand-in serves.
    """
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        for module in [module for module in sys.modules if module.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        vision: Any = types.ModuleType("torchvision")
        vision.datasets, vision.transforms = types.ModuleType("torchvision.datasets"), MagicMock()
        vision.datasets.ImageFolder = object
        for module in (vision, vision.datasets):
            sys.modules[module.__name__] = module
    return importlib.import_module(name)


nnc = _import("nncodec.nnc")
sparsification = _import("nncodec.framework.applications.utils.sparsification")


class Codec:
    """An encoder of updates with the context that both sides keep.

    Args:
        device: number of the device.
        sparsity: the least fraction of zeros; 0.6 is NNCodec's default for federated learning.
        qp: quantisation parameter of the weights; larger is coarser.
        nonweight_qp: of the biases.
        structured: gain of the structured sparsification; 0 leaves it out.
    """

    def __init__(
        self, device: int, sparsity: float = 0.6, qp: int = -26, nonweight_qp: int = -75, structured: float = 0.9
    ) -> None:
        self._device, self._sparsity, self._qp, self._nonweight_qp = device, sparsity, qp, nonweight_qp
        self._structured = structured
        self._context: dict[str, Any] = {"parameters": {}, "put_node_depth": {}, "device_id": device, "parameter_id": {}}

    def send(self, delta: Parameters) -> tuple[int, Parameters]:
        """Bytes of the bitstream, and what the decoder reads from it."""
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
            sparse = sparsification.apply_unstruct_spars_v2(
                self._qp, delta, target_sparsity=self._sparsity, qp_density=np.int32(2)
            )
            if self._structured > 0.0:
                sparse = sparsification.apply_struct_spars_v2(sparse, gain=self._structured)
            bitstream = nnc.compress(
                {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in sparse.items()},
                bitstream_path=None,
                qp=self._qp,
                nonweight_qp=self._nonweight_qp,
                use_dq=False,
                param_opt=True,
                tca=True,
                compress_differences=True,
                approx_param_base=self._context,
                device_id=self._device,
                return_bitstream=True,
            )
            read = nnc.decompress(bitstream, approx_param_base=self._context, update_base_param=True)
        return len(bitstream), {name: np.asarray(read[name], dtype=np.float32).reshape(delta[name].shape) for name in delta}
