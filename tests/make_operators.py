"""Writes docs/operators.md from `parity_cases.py`: what the tests prove to train, layer by layer, and in which engine.

Run it after a layer or a network has been added there; a test compares the file with what this gives.

    python tests/make_operators.py
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from edgefl.export.tracing import quiet
from parity_cases import CASES, LAYERS

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "operators.md"
HEAD = """# Layers and operators that boards can train

This list is made by `tests/make_operators.py` from the models in `tests/parity_cases.py`. For every line a test exports
the layer, trains it in each engine that says yes, and compares it with torch; where it says no, the test proves that the push is
refused. `edgefl push` takes the portable engine for a profile whose own engine cannot train a model, and says so.

"""
SHAPES = {"contiguous", "expand", "flatten", "permute", "reshape", "sym_size", "transpose", "view", "_assert_tensor_metadata"}
"""Operators that compute nothing, which every model may use."""
NOTES = """
## What to know

* Windows of recurrent layers are unrolled: at most 128 time steps in all layers and directions together. A convolution with a
  stride in front of the layer shortens them.
* BatchNorm's running statistics are state of the model: they are updated on the board as torch does, over the real rows of a
  partly filled batch, and are averaged with the rest unless they are personal (`edgefl push --personal '*.running_*'`). Averaging
  sends them through the same lossy codec as the weights; GroupNorm has no such state.
* Dropout and other layers that draw random numbers are refused; a dropout of probability 0 is none.
* Convolutions may have at most 121 taps (a kernel of 11 x 11). Adaptive pooling needs output sizes that divide the input's,
  upsampling whole factors.
* Losses: `cross-entropy`, `bce` (with logits), `mse`, and, with the portable engine only, `masked-cross-entropy` and
  `self-distillation`. Optimisers: `sgd`, `momentum` (0.9), `adamw` (torch's defaults).
* Models with several exits train with the portable engine only, with any loss of labels ([compression.md](compression.md)).
"""


def document() -> str:
    """The text of docs/operators.md."""
    return HEAD + "\n".join(_layers()) + "\n\n" + "\n".join(_networks()) + "\n" + NOTES


def _layers() -> Iterator[str]:
    yield "| layer | portable | ort-training | ATen operators |"
    yield "|---|---|---|---|"
    for name, layer in LAYERS.items():
        used = ", ".join(f"`{operator}`" for operator in _operators(name, layer)) if layer.engines else ""
        yield f"| {name} | {_mark('portable', layer.engines)} | {_mark('ort-training', layer.engines)} | {used} |"


def _networks() -> Iterator[str]:
    yield "| network, 55 steps | loss | portable | ort-training |"
    yield "|---|---|---|---|"
    for name, case in CASES.items():
        yield f"| {name} | {case.loss} | {_mark('portable', case.engines)} | {_mark('ort-training', case.engines)} |"


def _mark(engine: str, engines: tuple[str, ...]) -> str:
    return "yes" if engine in engines else "no"


def _operators(name: str, layer: object) -> list[str]:
    """The ATen operators of the forward pass, without those that only change shapes."""
    module: torch.nn.Module = layer.network()  # type: ignore[attr-defined]  # a Layer of parity_cases
    with quiet():
        program = torch.export.export(module.eval(), (torch.zeros(2, *layer.shape),), strict=False)  # type: ignore[attr-defined]  # as above
    graph = program.graph
    names = {str(node.target).split(".")[1] for node in graph.nodes if str(node.target).startswith("aten.")}
    return sorted(names - SHAPES - ({"linear"} if name != "Linear" else set()))


if __name__ == "__main__":
    DOCUMENT.write_text(document())
