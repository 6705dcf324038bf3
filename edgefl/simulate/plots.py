"""Accuracy against rounds, against bytes and against simulated time, as PNG files; several results in one plot."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgefl.errors import MachineError, StoreError
from edgefl.simulate.result import Result, Row

Place = Callable[[Row], float]
WIDTH, HEIGHT, DPI = 6.4, 4.0, 150


def draw(results: Sequence[Result], directory: Path) -> list[Path]:
    """Draw all results that classify into `rounds.png`, `bytes.png` and `uplink.png`, and into `time.png` where time passes.

    Args:
        results: at least one.
        directory: is made if it is not there; files of these names are replaced.

    Returns:
        The files.

    Raises:
        MachineError: matplotlib is not installed.
        StoreError: the files cannot be written.
    """
    plots: list[tuple[str, str, str, Place]] = [
        ("rounds.png", "rounds", "linear", lambda row: row.round),
        ("bytes.png", "uplink and downlink, MB", "log", lambda row: (row.uplink_bytes + row.downlink_bytes) / 1e6),
        ("uplink.png", "uplink, MB", "log", lambda row: row.uplink_bytes / 1e6),
    ]
    if any(row.time for result in results for row in result.rows):
        plots.append(("time.png", "simulated time, s", "linear", lambda row: row.time))
    plt = pyplot()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return [_plot(plt, results, directory / name, label, scale, place) for name, label, scale, place in plots]
    except OSError as error:
        raise StoreError(f"the plots cannot be written to {directory}", found=error.strerror or str(error)) from error


def check_plots() -> None:
    """Raises MachineError when plots cannot be drawn here."""
    pyplot()


def pyplot() -> Any:
    """Matplotlib's interface for drawing to files. Raises MachineError when it is not installed."""
    try:
        import matplotlib  # noqa: ICN001, PLC0415  only plots need it, and the module itself is meant

        matplotlib.use("Agg")  # draws to files, with or without a screen
        import matplotlib.pyplot as plt  # noqa: PLC0415  as above
    except ImportError as error:
        raise MachineError(
            "plots need matplotlib, which is not installed", found=str(error), remedy="Install edgefl-fleet[simulate]"
        ) from error
    return plt


def _plot(plt: Any, results: Sequence[Result], path: Path, label: str, scale: str, place: Place) -> Path:
    figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
    try:
        for result in results:
            rows = [row for row in result.rows if row.accuracy is not None]
            name = f"{result.experiment.name}, seed {result.experiment.seed}"
            axes.plot([place(row) for row in rows], [100 * (row.accuracy or 0.0) for row in rows], label=name, linewidth=1.2)
        axes.set_xlabel(label)
        axes.set_ylabel("accuracy, %")
        axes.set_xscale(scale)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small")
        figure.savefig(path, dpi=DPI)
    finally:
        plt.close(figure)
    return path
