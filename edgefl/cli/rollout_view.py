"""A rollout on a terminal: as lines of text, and as a picture with bars that is drawn again and again."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgefl.cli.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from edgefl.server.rollout_status import RolloutDevice, RolloutStatus

URGENT = ("failed", "reverted", "timed-out", "trial", "fetching", "deferred", "told", "activated", "waiting")
"""Steps in the order in which an operator wants to see them."""
ROOM_FOR_HEADS = 7
"""Lines of a terminal that a rollout takes above its devices."""


def lines(status: "RolloutStatus", now: float) -> Iterator[str]:
    """The rollout and its devices, one line each."""
    yield f"rollout {status.id}  {_head(status)}"
    if status.reason:
        yield f"  {printable(status.reason)}"
    yield f"  {_counts(status)}"
    width = max((len(one.id) for one in status.devices), default=0)
    for one in _in_order(status):
        cells = (
            one.id.ljust(width),
            f"{one.stage or '-'!s:<2}",
            _step(one).ljust(14),
            f"{_bytes(one):<16}",
            _seen(one, now).ljust(20),
        )
        yield f"  {'  '.join(cells)}  {_trouble(one)}".rstrip()


def picture(statuses: "list[RolloutStatus]", now: float, height: int) -> "RenderableType":
    """The same with bars, in so many lines of a terminal; of many devices those that need attention."""
    from rich.console import Group
    from rich.text import Text

    if not statuses:
        return Text("no rollouts yet; start one with `edgefl rollout start`")
    room = max(3, height // len(statuses) - ROOM_FOR_HEADS)
    parts: list[RenderableType] = []
    for status in statuses:
        parts += [Text(_head(status), style="bold"), *_bars(status)]
        if status.reason:
            parts.append(Text(printable(status.reason), style="yellow" if status.state == "paused" else ""))
        parts.append(_devices(status, now, room))
        if len(status.devices) > room:
            parts.append(Text(f"and {len(status.devices) - room} more"))
    return Group(*parts)


def _bars(status: "RolloutStatus") -> "tuple[RenderableType, ...]":
    from rich.columns import Columns
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    done = status.activated + status.failed
    bar = ProgressBar(total=max(1, status.members), completed=done, width=40, style="grey23")
    return (Columns([bar, Text(_counts(status))], padding=(0, 2)),)


def _devices(status: "RolloutStatus", now: float, room: int) -> "Table":
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table("device", "stage", "step", "", "bytes", "seen", "trouble", box=None, pad_edge=False)
    for one in _in_order(status)[:room]:
        bar = ProgressBar(total=100, completed=one.percent, width=20)
        colour = "red" if one.step in URGENT[:3] else "green" if one.step == "activated" else ""
        cells = (Text(_bytes(one)), Text(_seen(one, now)), Text(_trouble(one)))
        table.add_row(Text(one.id), str(one.stage or "-"), Text(one.step, style=colour), bar, *cells)
    return table


def _head(status: "RolloutStatus") -> str:
    stages = " ".join(f"[{stage}]" if number == status.stage else stage for number, stage in enumerate(status.stages, start=1))
    return f"{status.model}@{status.version} to {status.target}: {status.state}, stage {status.stage} of {stages}"


def _counts(status: "RolloutStatus") -> str:
    aside = f", {status.aside} set aside" if status.aside else ""
    told = f"{status.told} of {status.members} devices told"
    return f"{told}, {status.activated} hold it ({status.needed} needed), {status.failed} failed{aside}"


def _in_order(status: "RolloutStatus") -> "list[RolloutDevice]":
    return sorted(status.devices, key=lambda one: (URGENT.index(one.step), one.id))


def _step(one: "RolloutDevice") -> str:
    return f"{one.step} {one.percent} %" if one.step == "fetching" else one.step


def _bytes(one: "RolloutDevice") -> str:
    return f"{one.fetched_bytes / 1024:.0f}/{one.total_bytes / 1024:.0f} KiB"


def _seen(one: "RolloutDevice", now: float) -> str:
    if one.seen is None:
        return "never seen"
    ago = max(0.0, now - one.seen)
    return f"{'online' if one.online else 'offline'}, {_duration(ago)} ago"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _trouble(one: "RolloutDevice") -> str:
    return printable(f"{one.code}: {one.error}" if one.error else one.code)
