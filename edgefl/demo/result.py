"""What a demo run comes to: the numbers of its summary and of `--json`."""

import sqlite3
from collections.abc import Mapping

import msgspec

from edgefl.server.status import FleetStatus, RoundStatus
from edgefl.store.versions import variants


class RoundResult(msgspec.Struct, frozen=True, kw_only=True):
    """One round: accuracy after it, updates that counted, payload bytes that the server received and published."""

    round: int
    accuracy: float | None
    updates: int
    uplink_bytes: int
    downlink_bytes: int


class DeviceResult(msgspec.Struct, frozen=True, kw_only=True):
    """One device: what it held, what it needed, how often it was started again."""

    id: str
    profile: str
    engine: str
    variant: str
    params: int
    variant_bytes: int
    storage_budget_bytes: int
    peak_rss_mb: float
    received_bytes: int
    restarts: int


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """The whole run.

    Attributes:
        final_accuracy: of the widest variant on the hold-out set after the last round.
        rounds: the rounds.
        devices: the devices.
        delivery_bytes: downlink before the first round: manifests and variants.
        dense_uplink_bytes: what the counted updates would weigh as dense float32 vectors.
        uplink_ratio: that divided by all bytes that devices sent during the rounds.
        seconds: wall time of everything, from the first process to the last round.
        server_restarts: how often the server was started again.
    """

    final_accuracy: float | None
    rounds: list[RoundResult]
    devices: list[DeviceResult]
    delivery_bytes: int
    dense_uplink_bytes: int
    uplink_ratio: float
    seconds: float
    server_restarts: int


def demo_result(database: sqlite3.Connection, status: FleetStatus, restarts: Mapping[str, int], seconds: float) -> DemoResult:
    """Read the result of the newest training from the fleet's database."""
    training = status.trainings[-1]
    closed = [r for r in training.rounds if not r.open]
    records = {v.profile: v for v in variants(database, training.model, training.version)}
    budgets = {r["profile"]: r["budget"] for r in database.execute("SELECT profile, budget FROM variants")}
    dense = dense_bytes(database)
    uplink = sum(r.uplink_bytes for r in training.rounds)
    return DemoResult(
        final_accuracy=closed[-1].accuracy if closed else None,
        rounds=[_round(r) for r in closed],
        devices=[
            DeviceResult(
                id=device.id,
                profile=device.profile,
                engine=records[device.profile].manifest.engine,
                variant=records[device.profile].manifest.variant,
                params=records[device.profile].manifest.layout.size,
                variant_bytes=records[device.profile].manifest.total_bytes,
                storage_budget_bytes=budgets[device.profile],
                peak_rss_mb=device.peak_rss_mb,
                received_bytes=device.received_bytes,
                restarts=restarts.get(device.id, 0),
            )
            for device in status.devices
        ],
        delivery_bytes=status.counters.get("downlink bytes outside of trainings", 0),
        dense_uplink_bytes=dense,
        uplink_ratio=round(dense / uplink, 1) if uplink else 0.0,
        seconds=round(seconds, 1),
        server_restarts=restarts.get("server", 0),
    )


def _round(r: RoundStatus) -> RoundResult:
    return RoundResult(
        round=r.round,
        accuracy=r.accuracy,
        updates=r.updates,
        uplink_bytes=r.uplink_bytes,
        downlink_bytes=r.downlink_bytes,
    )


def dense_bytes(database: sqlite3.Connection) -> int:
    """What the counted updates would weigh as dense float32: four bytes for each parameter of each one's variant."""
    row = database.execute(
        """SELECT COALESCE(SUM(4 * v.parameters), 0) AS dense FROM updates u
           JOIN trainings t ON t.id=u.training
           JOIN devices d ON d.id=u.device
           JOIN variants v ON v.model=t.model AND v.version=t.version AND v.profile=d.profile
           WHERE u.counted IS NOT NULL"""
    ).fetchone()
    return int(row["dense"])
