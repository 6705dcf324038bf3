"""How the rows are shown, and the ratios between edgefl's and the others', always beside both accuracies.

Rule: a system is compared with a system by the bytes of sockets, a codec with the payload that edgefl's server counted; a codec
is never compared with a socket.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import msgspec

from benchmarks.uplink_result import Row

HEADING = (
    f"{'':40}{'seed':>5}{'accuracy':>9}{'counted':>9}{'up, bytes':>13}{'down, bytes':>13}{'payload up':>12}"
    f"{'dense /':>8}{'setup, bytes':>13}{'idle, B/min':>12}{'s':>7}"
)


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """How many times more bytes a peer took than edgefl, means over the seeds that both did.

    Attributes:
        peer, edgefl: labels.
        measured: `socket` or `payload`: what of both is compared.
        seeds: how many.
        peer_accuracy, edgefl_accuracy: means.
        uplink, downlink, idle: the peer's over edgefl's; None where one of them tells nothing or nothing was sent.
    """

    peer: str
    edgefl: str
    measured: str
    seeds: int
    peer_accuracy: float
    edgefl_accuracy: float
    uplink: float
    downlink: float | None
    idle: float | None


def line(row: Row) -> str:
    """A row of the table below `HEADING`; setup is both ways, of all devices."""
    setup = None if row.setup_uplink_bytes is None else row.setup_uplink_bytes + (row.setup_downlink_bytes or 0)
    return (
        f"{row.label[:39]:40}{row.seed:>5}{row.accuracy:>9.4f}{row.measured:>9}{row.uplink_bytes:>13,}{_number(row.downlink_bytes):>13}"
        f"{_number(row.payload_uplink_bytes):>12}{row.dense_uplink_bytes / row.uplink_bytes:>8.1f}{_number(setup):>13}"
        f"{_number(row.idle_bytes_per_minute):>12}{row.seconds:>7.1f}"
    )


def ratios(rows: Sequence[Row]) -> list[Ratio]:
    """Each peer beside each of edgefl's plans."""
    by_label: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_label.setdefault(row.label, {})[row.seed] = row
    mine = [found for found in by_label.values() if next(iter(found.values())).system == "edgefl"]
    others = [found for found in by_label.values() if next(iter(found.values())).system != "edgefl"]
    return [ratio for other in others for own in mine if (ratio := _ratio(other, own)) is not None]


def _ratio(peers: Mapping[int, Row], own: Mapping[int, Row]) -> Ratio | None:
    seeds = sorted(peers.keys() & own.keys())
    if not seeds:
        return None
    theirs, ours = [peers[seed] for seed in seeds], [own[seed] for seed in seeds]
    measured = theirs[0].measured

    def uplink(row: Row) -> float | None:
        return row.uplink_bytes if measured == "socket" else row.payload_uplink_bytes

    return Ratio(
        peer=theirs[0].label,
        edgefl=ours[0].label,
        measured=measured,
        seeds=len(seeds),
        peer_accuracy=fmean(row.accuracy for row in theirs),
        edgefl_accuracy=fmean(row.accuracy for row in ours),
        uplink=_over(theirs, ours, uplink) or 0.0,
        downlink=_over(theirs, ours, lambda row: row.downlink_bytes),
        idle=_over(theirs, ours, lambda row: row.idle_bytes_per_minute),
    )


def _over(theirs: Sequence[Row], ours: Sequence[Row], number: Callable[[Row], float | None]) -> float | None:
    """Sum over sum, if both are told and ours is not zero."""
    above, below = [number(row) for row in theirs], [number(row) for row in ours]
    total, base = sum(value for value in above if value is not None), sum(value for value in below if value is not None)
    return round(total / base, 3) if base and None not in above + below else None


def comparison(found: Sequence[Ratio]) -> str:
    """The ratios as lines of text."""
    lines = [f"{'bytes of a peer / of edgefl':40}{'beside':34}{'counted':>9}{'up':>8}{'down':>8}{'idle':>8}{'accuracy':>17}"]
    for r in found:
        extras = "".join(f"{'' if value is None else f'{value:.2f}':>8}" for value in (r.uplink, r.downlink, r.idle))
        accuracies = f"{r.peer_accuracy:.4f} / {r.edgefl_accuracy:.4f}"
        lines.append(f"{r.peer[:39]:40}{r.edgefl[:33]:34}{r.measured:>9}{extras}{accuracies:>17}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
