"""The fleet at a glance, as values: what `edgefl status` shows and what `--json` prints."""

import sqlite3

import msgspec

from edgefl.store.ledger import RoundRecord, TrainingRecord, counters, rounds, trainings
from edgefl.store.presence import Presence, presences
from edgefl.store.registry import Device, list_devices


class DeviceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One device as the server last heard of it; `seen` in seconds since 1970, None if never."""

    id: str
    profile: str
    revoked: bool
    online: bool
    seen: float | None
    engine: str
    models: list[str]
    step: str
    round: int
    percent: int
    received_bytes: int
    peak_rss_mb: float
    error: str


class RoundStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One round: accuracy and loss on the hold-out set, updates that counted, payload bytes up and down."""

    round: int
    open: bool
    seconds: float | None
    accuracy: float | None
    loss: float | None
    updates: int
    uplink_bytes: int
    downlink_bytes: int


class TrainingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One training and its rounds."""

    model: str
    version: int
    state: str
    round: int
    last_round: int
    cohort: int
    rounds: list[RoundStatus]


class FleetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Everything."""

    fleet: str
    devices: list[DeviceStatus]
    trainings: list[TrainingStatus]
    counters: dict[str, int]


def fleet_status(database: sqlite3.Connection, name: str) -> FleetStatus:
    """Read the state of a fleet."""
    known = presences(database)
    return FleetStatus(
        fleet=name,
        devices=[_device(device, known.get(device.id)) for device in list_devices(database)],
        trainings=[_training(record, rounds(database, record.id)) for record in trainings(database)],
        counters=counters(database),
    )


def _device(device: Device, heard: Presence | None) -> DeviceStatus:
    report = heard.report if heard else None
    return DeviceStatus(
        id=device.id,
        profile=device.profile,
        revoked=device.revoked is not None,
        online=heard.online if heard else False,
        seen=heard.seen if heard else None,
        engine=heard.state.engine if heard else "",
        models=[f"{m.model}@{m.version} {m.variant}" for m in heard.state.models] if heard else [],
        step=report.step if report else "",
        round=report.round if report else 0,
        percent=report.percent if report else 0,
        received_bytes=report.received if report else 0,
        peak_rss_mb=round(report.peak_rss / 2**20, 1) if report else 0.0,
        error=report.error if report else "",
    )


def _training(record: TrainingRecord, history: list[RoundRecord]) -> TrainingStatus:
    return TrainingStatus(
        model=record.model,
        version=record.version,
        state=record.state,
        round=history[-1].round,
        last_round=record.last,
        cohort=record.plan.cohort,
        rounds=[
            RoundStatus(
                round=r.round,
                open=r.closed is None,
                seconds=None if r.closed is None else r.closed - r.opened,
                accuracy=r.accuracy,
                loss=r.loss,
                updates=r.updates,
                uplink_bytes=r.uplink,
                downlink_bytes=r.downlink,
            )
            for r in history
        ],
    )
