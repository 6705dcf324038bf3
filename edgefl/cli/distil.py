"""`edgefl distil`: models of different families learn from each other on the server's own examples."""

import time
from pathlib import Path

import click

from edgefl.cli.options import fleet_option, json_option


@click.command()
@click.argument("models", metavar="MODEL MODEL...", nargs=-1, required=True)
@click.option("--on", "unlabelled", required=True, metavar="SOURCE", help="Examples to learn on; labels are not looked at.")
@click.option("--labelled", metavar="SOURCE", help="Examples to weigh the models on, class by class.  [default: all alike]")
@click.option("--holdout", metavar="SOURCE", help="Examples to measure on; a model keeps its weights if a variant gets worse.")
@click.option("--epochs", type=click.IntRange(1, 1000), default=2, show_default=True, help="Passes over the examples.")
@click.option("--learning-rate", type=click.FloatRange(0, 100, min_open=True), default=0.05, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the shuffling.")
@json_option
@fleet_option
def distil(
    models: tuple[str, ...],
    unlabelled: str,
    labelled: str | None,
    holdout: str | None,
    epochs: int,
    learning_rate: float,
    seed: int,
    as_json: bool,
    fleet_path: Path,
) -> None:
    """Let the released versions of two or more models learn from each other.

    Each learns what all of them believe together of the examples, at every width; no device sends anything for it.

    The new weights count as a round: a running server announces them now, and `edgefl train start` goes on from them.
    They come all at once: after an error no model has changed, and the same command may be given again.
    """
    import msgspec

    from edgefl.server.distil import Teaching
    from edgefl.server.distil import distil as learn
    from edgefl.sources.parse import open_source
    from edgefl.store.fleet import Fleet

    fleet = Fleet.open(fleet_path)
    examples, known, judged = (open_source(text).load() if text else None for text in (unlabelled, labelled, holdout))
    if examples is None:
        raise click.UsageError("--on needs a source")
    teaching = Teaching(models, examples, known, judged, epochs, learning_rate, seed)
    found = learn(fleet, teaching, now=time.time(), on_progress=lambda text: click.echo(text, err=True))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for one in found:
        quality = "" if one.before is None or one.after is None else f", accuracy {one.before:.4f} -> {one.after:.4f}"
        outcome = f"round {one.round}" if one.round else f"keeps its weights, with new ones worse: {', '.join(one.worse)}"
        click.echo(f"{one.model}@{one.version}: {outcome}{quality}, widths taught: {one.widths}")
    if found[0].ensemble is not None:
        click.echo(f"all of them together: accuracy {found[0].ensemble:.4f}")
