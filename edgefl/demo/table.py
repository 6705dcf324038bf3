"""The demo's live table and closing summary."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgefl.demo.result import DemoResult
from edgefl.server.status import FleetStatus


def live(status: FleetStatus, dense: int, seconds: float, note: str) -> RenderableType:
    """What is shown while the demo runs: the last rounds, and every device."""
    parts: list[RenderableType] = [Text(f"edgefl demo  {seconds:4.0f} s  {note}", style="bold")]
    if status.trainings:
        table = Table("round", "accuracy", "updates", "up, bytes", "down, bytes", "seconds", box=None)
        for r in status.trainings[-1].rounds[-8:]:
            table.add_row(
                str(r.round),
                "" if r.accuracy is None else f"{r.accuracy:.4f}",
                str(r.updates),
                f"{r.uplink_bytes:,}",
                f"{r.downlink_bytes:,}",
                "open" if r.seconds is None else f"{r.seconds:.1f}",
            )
        parts += [table, Text(_saved(sum(r.uplink_bytes for r in status.trainings[-1].rounds), dense))]
    devices = Table("device", "", "holds", "does", "MB", "error", box=None)
    for d in status.devices:
        does = f"{d.step} round {d.round}" if d.round else f"{d.step} {d.percent or ''}"
        presence = "online" if d.online else "offline"
        devices.add_row(d.id, presence, ", ".join(d.models), does, f"{d.peak_rss_mb:.0f}", d.error[:40])
    parts.append(devices)
    return Group(*parts)


def summary(result: DemoResult) -> RenderableType:
    """What remains on the screen at the end."""
    devices = Table("device", "engine", "variant", "params", "KiB", "of KiB", "peak MB", "restarts", box=None, pad_edge=False)
    for d in result.devices:
        size, budget = d.variant_bytes / 1024, d.storage_budget_bytes / 1024
        params, memory = f"{d.params / 1000:.0f} k", f"{d.peak_rss_mb:.0f}"
        devices.add_row(d.id, d.engine, d.variant, params, f"{size:.0f}", f"{budget:.0f}", memory, str(d.restarts))
    rounds = Table("round", "accuracy", "updates", "up, bytes", "down, bytes", box=None)
    for r in result.rounds:
        accuracy = "" if r.accuracy is None else f"{r.accuracy:.4f}"
        rounds.add_row(str(r.round), accuracy, str(r.updates), f"{r.uplink_bytes:,}", f"{r.downlink_bytes:,}")
    up = sum(r.uplink_bytes for r in result.rounds)
    accuracy = "not measured" if result.final_accuracy is None else f"{result.final_accuracy:.4f}"
    saved = _saved(up, result.dense_uplink_bytes)
    text = f"accuracy {accuracy} after {len(result.rounds)} rounds in {result.seconds:.0f} s; {saved}"
    return Group(rounds, devices, Text(text, style="bold"))


def _saved(uplink: int, dense: int) -> str:
    ratio = f" ({dense / uplink:.0f} times less)" if uplink and dense else ""
    return f"{uplink:,} bytes up instead of {dense:,} dense{ratio}"
