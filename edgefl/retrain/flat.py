"""A torch module whose trained parameters are views of one vector, so that masks and shared values are arrays beside it."""

import torch
from torch import nn

from edgefl.export.tensors import layout_of, tensors_of
from edgefl.layout import Layout


class FlatModule:
    """A module and its layout's vector.

    Values and gradients of trained parameters are views of `values` and `gradients`: writing to one writes to the other. The
    coordinates of other tensors are there but not connected to them; their gradients stay zero.

    Args:
        module: of which there is one only; it is changed.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.layout: Layout = layout_of(module)
        self.values = torch.zeros(self.layout.size)
        self.gradients = torch.zeros(self.layout.size)
        tensors = tensors_of(module)
        for tensor, place in self.layout.slices():
            value = tensors[tensor.name]
            self.values[place] = value.detach().reshape(-1)
            if tensor.role == "trained":
                value.data = self.values[place].view(tensor.shape)
                value.grad = self.gradients[place].view(tensor.shape)

    def backward(self, loss: torch.Tensor) -> None:
        """Replace the gradients by those of a loss."""
        self.gradients.zero_()
        torch.autograd.backward(loss)
