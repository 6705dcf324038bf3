"""A model's parameters as one flat float32 vector, and a variant as a view of its parent.

Model: a `Layout` is an ordered list of named tensors; parameter i of the flat vector belongs to exactly one of them. Weights
cross every boundary (engine, codec, wire, aggregator, store) as such a vector. A narrower variant of a model is a *view*: an
index map that says, for each of its coordinates, which coordinate of the parent it is (HeteroFL, Diao et al., ICLR 2021,
https://arxiv.org/abs/2010.01264: nested widths are the leading corner of each tensor).

Rules: row-major order inside a tensor; tensors in the order of the list, without gaps; float32 only. A tensor is trained by
gradient, frozen, or state that the forward pass updates (BatchNorm's running statistics). A personal tensor lives on each
device: its values never leave it. What an update carries are the coordinates that are neither frozen nor personal.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edgefl.errors import ModelError

Float32 = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]

MAX_TENSORS = 4096
MAX_PARAMETERS = 1 << 28
"""1 GiB of float32; beyond anything that a board of the supported classes trains."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Extent = Annotated[int, msgspec.Meta(ge=1, le=MAX_PARAMETERS)]
Shape = Annotated[tuple[Extent, ...], msgspec.Meta(max_length=8)]


Role = Literal["trained", "frozen", "state"]


class Tensor(msgspec.Struct, frozen=True, array_like=True):
    """One named tensor of a model.

    Attributes:
        name: as torch names it.
        shape: of its values.
        role: `trained` by gradient, `frozen`, or `state` that the training step's forward pass replaces.
        personal: whether each device keeps its own values.
    """

    name: Name
    shape: Shape
    role: Role = "trained"
    personal: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def shared(self) -> bool:
        """Whether updates carry it."""
        return self.role != "frozen" and not self.personal


class Layout(msgspec.Struct, frozen=True, array_like=True):
    """Names, shapes and therefore offsets of a flat parameter vector."""

    tensors: Annotated[tuple[Tensor, ...], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)]

    @property
    def size(self) -> int:
        """Number of parameters of the whole vector."""
        return sum(t.size for t in self.tensors)

    def digest(self) -> str:
        """Sixteen hex digits that two layouts share exactly if they are equal.

        Roles count only where they are not the default, so that the digests of before there were roles stay what they were.
        """
        plain = [(t.name, t.shape) if t.role == "trained" and not t.personal else t for t in self.tensors]
        return hashlib.sha256(msgspec.msgpack.encode([plain])).hexdigest()[:16]

    @property
    def trained(self) -> "tuple[Tensor, ...]":
        """The tensors that a gradient step changes."""
        return tuple(t for t in self.tensors if t.role == "trained")

    @property
    def carried(self) -> int:
        """Number of parameters that an update carries."""
        return sum(t.size for t in self.tensors if t.shared)

    def shared(self) -> Index | None:
        """int64, ascending: the coordinates that an update carries; None if it carries all."""
        if all(t.shared for t in self.tensors):
            return None
        return self._places([t.shared for t in self.tensors])

    def personal(self) -> Index:
        """int64, ascending: the coordinates whose values each device keeps for itself."""
        return self._places([t.personal for t in self.tensors])

    def _places(self, chosen: Sequence[bool]) -> Index:
        parts = [np.arange(p.start, p.stop, dtype=np.int64) for (_, p), c in zip(self.slices(), chosen, strict=True) if c]
        return np.concatenate([np.empty(0, dtype=np.int64), *parts])

    def slices(self) -> Iterator[tuple[Tensor, slice]]:
        """Each tensor with its place in the flat vector."""
        start = 0
        for tensor in self.tensors:
            yield tensor, slice(start, start + tensor.size)
            start += tensor.size

    def views(self, flat: Float32) -> dict[str, Float32]:
        """The tensors of a flat vector, by name, without copying: writing to a view writes to the vector.

        Raises:
            ModelError: the vector does not have this layout's length.
        """
        if flat.shape != (self.size,):
            raise ModelError(
                "a flat parameter vector does not match its layout",
                expected=f"{self.size} values",
                found=f"an array of shape {flat.shape}",
            )
        return {tensor.name: flat[place].reshape(tensor.shape) for tensor, place in self.slices()}

    def flatten(self, tensors: Mapping[str, npt.NDArray[np.generic]]) -> Float32:
        """A new flat vector from named tensors.

        Raises:
            ModelError: a tensor is missing, unknown, or of another shape.
        """
        unknown = set(tensors) - {t.name for t in self.tensors}
        if unknown:
            raise ModelError("tensors that the model does not have", found=", ".join(sorted(unknown)[:5]))
        flat = np.empty(self.size, dtype=np.float32)
        for tensor, place in self.slices():
            value = tensors.get(tensor.name)
            if value is None or value.shape != tensor.shape:
                raise ModelError(
                    f"tensor {tensor.name!r} does not match the model",
                    expected=f"shape {tensor.shape}",
                    found="nothing" if value is None else f"shape {value.shape}",
                )
            flat[place] = value.reshape(-1)
        return flat


def index_map(parent: Layout, child: Layout, axes: Mapping[str, tuple[Index, ...]]) -> Index:
    """The parent coordinate of each of the child's coordinates.

    Args:
        parent: the full model.
        child: the variant; each tensor has a tensor of the same name and rank in the parent.
        axes: for each tensor name, one array per axis that names the parent's rows, columns, ... that the child keeps.

    Returns:
        int64 array of `child.size` distinct values in `[0, parent.size)`.

    Raises:
        ModelError: a child tensor is no sub-tensor of the parent's.
    """
    places = {tensor.name: (tensor, place.start) for tensor, place in parent.slices()}
    parts: list[Index] = []
    for tensor in child.tensors:
        if tensor.name not in places:
            raise ModelError(f"the variant's tensor {tensor.name!r} does not exist in the parent model")
        whole, start = places[tensor.name]
        kept = axes[tensor.name]
        fits = len(whole.shape) == len(tensor.shape) == len(kept) and all(
            len(k) == n and (n == 0 or (k.min() >= 0 and k.max() < m))
            for k, n, m in zip(kept, tensor.shape, whole.shape, strict=True)
        )
        if not fits:
            raise ModelError(
                f"the variant's tensor {tensor.name!r} is no part of the parent's",
                expected=f"at most {whole.shape}",
                found=f"{tensor.shape}",
                remedy="Make the factory's tensors grow with its width on every axis",
            )
        strides = [math.prod(whole.shape[i + 1 :]) for i in range(len(whole.shape))]
        grid = np.zeros(tensor.shape, dtype=np.int64)
        for axis, (rows, stride) in enumerate(zip(kept, strides, strict=True)):
            grid += (rows * stride).reshape([-1 if i == axis else 1 for i in range(len(kept))])
        parts.append(grid.reshape(-1) + start)
    return np.concatenate(parts)


def nested_index(parent: Layout, child: Layout) -> Index:
    """The index map of a narrower model whose tensors are the leading corner of the parent's."""
    axes = {t.name: tuple(np.arange(n, dtype=np.int64) for n in t.shape) for t in child.tensors}
    return index_map(parent, child, axes)
