"""What each profile could have had, as a picture: accuracy against bytes of storage, one panel for each profile."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgefl.errors import StoreError
from edgefl.server.explained import Explanation
from edgefl.simulate.plots import DPI, HEIGHT, WIDTH, check_plots, pyplot


def check_drawing() -> None:
    """Raises MachineError when pictures cannot be drawn here; better known before a push than after it."""
    check_plots()


def draw_explanations(explained: Sequence[Explanation], path: Path) -> None:
    """Draw the frontier of each profile, its budget and the choice.

    Args:
        explained: at least one.
        path: PNG file, is replaced.

    Raises:
        MachineError: matplotlib is not installed.
        StoreError: the file cannot be written.
    """
    plt = pyplot()
    figure, panels = plt.subplots(
        len(explained), 1, figsize=(WIDTH, HEIGHT * len(explained)), layout="constrained", squeeze=False
    )
    try:
        for axes, one in zip(panels[:, 0], explained, strict=True):
            _panel(axes, one)
        figure.savefig(path, dpi=DPI, format="png")
    except OSError as error:
        raise StoreError(f"the picture cannot be written to {path}", found=error.strerror or str(error)) from error
    finally:
        plt.close(figure)


def _panel(axes: Any, one: Explanation) -> None:
    """Accuracy is predicted; without predictions the place in the order of preference stands for it."""
    known = all(row.predicted is not None for row in one.frontier)
    heights = [100 * (row.predicted or 0.0) if known else len(one.frontier) - place for place, row in enumerate(one.frontier)]
    axes.plot([row.storage / 1e6 for row in one.frontier], heights, marker=".", linewidth=0.8, label="frontier")
    for row, height in zip(one.frontier, heights, strict=True):
        if row.chosen:
            axes.plot([row.storage / 1e6], [height], marker="*", markersize=14, linestyle="", label=row.variant)
        if row.measured is not None and known:
            axes.plot([row.storage / 1e6], [100 * row.measured], marker="x", linestyle="", color="black")
    axes.axvline(one.storage / 1e6, color="red", linewidth=0.8, label="storage allowed")
    axes.set_xscale("log")
    axes.set_xlabel("storage on the board, MB")
    axes.set_ylabel("accuracy, % (x: measured)" if known else "order of preference")
    axes.set_title(f"{one.profile}: {one.reason}", fontsize="x-small", wrap=True)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
