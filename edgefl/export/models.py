"""Where a model comes from: built-in architectures, or a factory that the operator names.

Model: a *factory* is a callable `factory(width) -> nn.Module`; `width` in (0, 1] scales the hidden layers, never input or
output. The module, or its class, carries `input_shape`. The parameters of a narrower model are the leading corner of the full
model's (HeteroFL, https://arxiv.org/abs/2010.01264), so that one fleet can train several widths of one model.

Rules: a factory is code that the operator names on his own machine (`package.module:factory`), never code that travels. Every
way in which it can be wrong has its own words. Models with buffers (running statistics) are refused: a buffer is neither
trained nor averaged by a gradient step, and would silently differ between boards.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from edgefl.errors import ModelError
from edgefl.export.architectures import BUILT_IN
from edgefl.layout import Float32, Layout, Tensor, nested_index

RESERVED_NAMES = frozenset({"x", "y", "w", "lr", "loss", "logits"})
"""Names of the training step's other inputs and outputs; a parameter cannot have one of them."""
REMEDY_FACTORY = "Name a built-in model ({}) or package.module:factory".format(", ".join(BUILT_IN))

Factory = Callable[[float], nn.Module]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that can be built at any width.

    Attributes:
        name: as the operator gave it.
        factory: builds an untrained module for a width in (0, 1].
        input_shape: of one example.
        classes: number of outputs.
        scalable: whether widths below 1 are possible.
    """

    name: str
    factory: Factory
    input_shape: tuple[int, ...]
    classes: int
    scalable: bool

    def build(self, width: float = 1.0, *, seed: int = 0) -> nn.Module:
        """A freshly initialised module in training mode; equal seeds give equal weights.

        Raises:
            ModelError: width out of range or not supported, or the factory fails.
        """
        if not 0.0 < width <= 1.0:
            raise ModelError(f"model {self.name!r} cannot have this width", expected="above 0, at most 1", found=f"{width}")
        if width != 1.0 and not self.scalable:
            raise ModelError(
                f"the factory of model {self.name!r} takes no width",
                expected="width 1",
                found=f"{width}",
                remedy="Give the factory a width argument that scales its hidden layers, or use profiles that hold it whole",
            )
        return _built(self.name, self.factory, width, seed)


def load_factory(name: str) -> ModelSource:
    """The model of this name, built once at full width and run once on zeros to see that it works.

    Args:
        name: a built-in name or `package.module:factory`, looked up with the current directory on the path.

    Raises:
        ModelError: no such module or attribute; not callable; raises; returns no module; no input shape; has buffers, frozen
            or non-float32 parameters; does not give `(n, classes)`; or its narrower form is no part of the full one.
    """
    if name in BUILT_IN:
        factory, scalable = BUILT_IN[name], True
    else:
        factory, scalable = _adapted(name, _find(name))
    module = _built(name, factory, 1.0, seed=0)
    shape = _input_shape(name, module)
    classes = _classes(name, module, shape)
    source = ModelSource(name, factory, shape, classes, scalable)
    if scalable:
        _check_nesting(source, layout_of(module))
    return source


def layout_of(module: nn.Module) -> Layout:
    """Layout of the module's parameters, in the order in which torch lists them; a shared parameter counts once."""
    return Layout(tuple(Tensor(name, tuple(value.shape)) for name, value in module.named_parameters()))


def vector_of(module: nn.Module) -> Float32:
    """The module's parameters as one new flat vector."""
    parts = [value.detach().reshape(-1).numpy() for value in module.parameters()]
    return np.concatenate(parts).astype(np.float32, copy=False)


def load_vector(module: nn.Module, flat: Float32) -> None:
    """Overwrite the module's parameters.

    Raises:
        ModelError: the vector's length is not the module's.
    """
    views = layout_of(module).views(flat)
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(torch.from_numpy(views[name].copy()))


def _find(name: str) -> object:
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ModelError(f"no built-in model is called {name!r}", remedy=REMEDY_FACTORY)
    with _current_directory_importable():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
                raise ModelError(f"there is no module {module_name!r}", remedy="Run in the directory that holds it") from None
            raise ModelError(f"module {module_name!r} cannot be imported", found=str(error)) from error
        except Exception as error:
            raise ModelError(f"module {module_name!r} cannot be imported", found=_said(error)) from error
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ModelError(f"module {module_name!r} has no {attribute!r}", remedy=REMEDY_FACTORY)
        found = getattr(found, part)
    return found


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _adapted(name: str, found: object) -> tuple[Factory, bool]:
    """The factory as a function of the width, and whether it heeds it."""
    if isinstance(found, nn.Module) or not callable(found):
        raise ModelError(
            f"{name!r} is no model factory",
            expected="a function or class that returns a torch module",
            found=f"an object of type {type(found).__name__}",
        )
    call = cast("Callable[..., nn.Module]", found)
    # A signature tells less than a call: classes, partials and builtins hide theirs. `inspect` is asked first all the same,
    # because a TypeError from inside the factory must not be mistaken for a missing argument.
    if _takes_width(call):
        return call, True

    def fixed(width: float) -> nn.Module:  # noqa: ARG001  the width is 1, checked by `build`
        return call()

    return fixed, False


def _takes_width(call: Callable[..., object]) -> bool:
    try:
        inspect.signature(call).bind(1.0)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def _built(name: str, factory: Factory, width: float, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = factory(width)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"the factory of model {name!r} failed at width {width:g}", found=_said(error)) from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"the factory of model {name!r} does not return a torch module", expected="nn.Module", found=type(module).__name__
        )
    _check_parameters(name, module)
    return module.train()


def _check_parameters(name: str, module: nn.Module) -> None:
    buffers = [key for key, _ in module.named_buffers()]
    if buffers:
        raise ModelError(
            f"model {name!r} has buffers, which are neither trained nor averaged",
            expected="parameters only",
            found=", ".join(buffers[:3]),
            remedy="Replace BatchNorm by GroupNorm, and other buffers by constants or parameters",
        )
    if not any(True for _ in module.parameters()):
        raise ModelError(f"model {name!r} has no parameters")
    for key, value in module.named_parameters():
        if value.dtype != torch.float32 or value.device.type != "cpu":
            raise ModelError(
                f"parameter {key!r} of model {name!r} cannot be used",
                expected="float32 on the CPU",
                found=f"{value.dtype} on {value.device}",
            )
        if not value.requires_grad:
            raise ModelError(f"parameter {key!r} of model {name!r} is frozen", remedy="Set requires_grad on all parameters")
        if key in RESERVED_NAMES:
            raise ModelError(
                f"a parameter of model {name!r} is called {key!r}, as an input of the training step is", remedy="Rename it"
            )


def _input_shape(name: str, module: nn.Module) -> tuple[int, ...]:
    shape = getattr(module, "input_shape", None)
    good = isinstance(shape, (tuple, list, torch.Size)) and len(shape) > 0 and all(isinstance(n, int) and n > 0 for n in shape)
    if not good:
        raise ModelError(
            f"model {name!r} does not say what it takes",
            expected="an attribute input_shape, a tuple of positive integers without the batch axis",
            found="none" if shape is None else repr(shape),
            remedy="Add for example `input_shape = (1, 28, 28)` to its class",
        )
    return tuple(cast("tuple[int, ...]", shape))


def _classes(name: str, module: nn.Module, shape: tuple[int, ...]) -> int:
    rows = 2
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = module(torch.zeros(rows, *shape))
    except Exception as error:
        raise ModelError(f"model {name!r} does not run on inputs of its own input_shape {shape}", found=_said(error)) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != rows or logits.shape[1] < 2:
        raise ModelError(
            f"model {name!r} does not classify",
            expected="one tensor of shape (examples, classes), at least 2 classes",
            found=f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__,
        )
    return int(logits.shape[1])


def _check_nesting(source: ModelSource, parent: Layout) -> None:
    half = source.build(0.5)
    if _classes(source.name, half, source.input_shape) != source.classes or _input_shape(source.name, half) != source.input_shape:
        raise ModelError(f"the width of model {source.name!r} changes its input or output", remedy="Scale the hidden layers only")
    child = layout_of(half)
    if len(child.tensors) != len(parent.tensors):
        raise ModelError(f"a narrower {source.name!r} has other tensors", remedy="Let the width change sizes, not the layers")
    nested_index(parent, child)


def _said(error: BaseException) -> str:
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first[:200]}"
