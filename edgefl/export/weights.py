"""Weights from a file: safetensors, or a torch checkpoint of plain tensors.

Rule: nothing that is loaded can run code. A torch checkpoint is read with `weights_only=True`, which refuses every pickled
object that is no tensor or plain container; safetensors holds nothing but tensors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch

from edgefl.errors import ModelError
from edgefl.layout import Float32, Layout

REMEDY_SAVE = "Save it with safetensors.torch.save_file(model.state_dict(), path)"


def load_weights(path: Path, layout: Layout) -> Float32:
    """The flat vector that a file holds, without negative zeros, which would mean more here (`edgefl.codec.marks`).

    Args:
        path: `*.safetensors`, or a checkpoint that `torch.save` wrote: a state dict, or a dict with one under `state_dict`.
        layout: of the model.

    Raises:
        ModelError: the file is missing, damaged or holds code; a tensor is missing, unknown, of another shape, no
            floating-point tensor, or not finite.
    """
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}")
    found = _safetensors(path) if path.suffix == ".safetensors" else _checkpoint(path)
    arrays = {}
    for name, value in found.items():
        if name.endswith("num_batches_tracked"):  # BatchNorm's counter, which nothing here reads
            continue
        if not value.is_floating_point():
            raise ModelError(
                f"tensor {name!r} of {path.name} cannot be used", expected="floating-point values", found=str(value.dtype)
            )
        arrays[name] = value.detach().to(torch.float32).numpy()
    flat = layout.flatten(arrays)
    flat += np.float32(0.0)
    if not np.isfinite(flat).all():
        raise ModelError(
            f"the weights in {path.name} hold NaN or infinite values", remedy="Train the model again before pushing it"
        )
    return flat


def _safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    import safetensors  # noqa: PLC0415  needed by this format only
    import safetensors.torch  # noqa: PLC0415

    try:
        tensors: Mapping[str, torch.Tensor] = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path.name} is no safetensors file", found=str(error), remedy=REMEDY_SAVE) from error
    return tensors


def _checkpoint(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        found: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"{path.name} is no torch checkpoint of plain tensors",
            expected="a state dict, without pickled objects",
            found=(str(error).strip() or type(error).__name__).splitlines()[0][:200],
            remedy=REMEDY_SAVE,
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in found.items()):
        raise ModelError(f"{path.name} holds no state dict", expected="tensors by parameter name", remedy=REMEDY_SAVE)
    return cast("Mapping[str, torch.Tensor]", found)
