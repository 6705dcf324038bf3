"""The fleet at a glance, as values: what `edgefl status` shows and what `--json` prints."""

import sqlite3
from collections.abc import Collection

import msgspec

from edgefl.aggregate.standing import TRUSTED
from edgefl.jumpstart import cohort_at
from edgefl.participation import Fairness, fairness
from edgefl.profile import ENGINES, trains
from edgefl.server.endings import Ending
from edgefl.store.ledger import RoundRecord, TrainingRecord, rounds, trainings
from edgefl.store.presence import Presence, presences
from edgefl.store.registry import Device, list_devices
from edgefl.store.standings import Standing, standings
from edgefl.store.tally import counters
from edgefl.store.updates import bits_per_parameter, participations
from edgefl.store.versions import able_devices
from edgefl.wire.messages import decode
from edgefl.wire.releases import Manifest


class DeviceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One device as the server last heard of it; `seen` in seconds since 1970, None if never.

    `standing` is from 1 (trusted) to 0; of an excluded device no updates are taken. Without `trains` it only answers.

    Text from the device itself (`engine`, `models`, `step`, `error`) is as it came: escape it before a terminal sees it.
    """

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
    standing: float = TRUSTED
    excluded: bool = False
    trains: bool = True


class VariantStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The newest variant of a model for one profile: bytes of its files, and accuracy when it was pushed, if measured.

    `peak_bytes` and `step_ms` are what the board's trainer took on the machine that pushed it; 0 if it was not run. Without
    `trains` a variant is only served, and took no step.
    """

    model: str
    version: int
    profile: str
    variant: str
    bytes: int
    budget: int
    accuracy: float | None
    peak_bytes: int = 0
    step_ms: float = 0.0
    trains: bool = True


class RoundStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One round: accuracy and loss on the hold-out set, updates that counted, payload bytes up and down.

    `bits_per_parameter` is the mean size of its updates, None if there were none. `pruned` is the part of the weights that can be
    pruned which is gone after it, in [0, 1]; None while it is open, and of a round that was closed before this was written down.
    """

    round: int
    open: bool
    seconds: float | None
    accuracy: float | None
    loss: float | None
    updates: int
    uplink_bytes: int
    downlink_bytes: int
    bits_per_parameter: float | None = None
    pruned: float | None = None


class FollowedRound(RoundStatus, frozen=True, kw_only=True):
    """A closed round, and how evenly devices have taken part in the training until then."""

    fairness: Fairness


class TrainingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One training and its rounds; `state` is running, finished, stopped or superseded.

    `cohort` is that of the round it is in. `fairness` is over the valid devices that can take part. `bits_per_parameter` is the
    mean of its updates, None before any. `pruned` is the part of the weights that can be pruned which is gone from its newest
    weights; `pruning_target` is what its plan wants to be gone in the end, None if it prunes nothing.
    """

    model: str
    version: int
    state: str
    round: int
    last_round: int
    cohort: int
    fairness: Fairness
    bits_per_parameter: float | None
    rounds: list[RoundStatus]
    pruned: float | None = None
    pruning_target: float | None = None


class FleetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Everything; `warnings` are of what ends soon, has ended or is damaged."""

    fleet: str
    devices: list[DeviceStatus]
    variants: list[VariantStatus]
    trainings: list[TrainingStatus]
    counters: dict[str, int]
    warnings: list[Ending] = []


def fleet_status(database: sqlite3.Connection, name: str) -> FleetStatus:
    """Read the state of a fleet. Raises StoreError."""
    known, stands, made = presences(database), standings(database), _variants(database)
    idle = {one.profile for one in made if not one.trains}
    devices = [_device(one, known.get(one.id), stands.get(one.id, Standing(one.id))) for one in list_devices(database)]
    return FleetStatus(
        fleet=name,
        devices=[msgspec.structs.replace(device, trains=_trains(device, idle)) for device in devices],
        variants=made,
        trainings=[_training(database, record) for record in trainings(database)],
        counters=counters(database),
    )


def _device(device: Device, heard: Presence | None, stands: Standing) -> DeviceStatus:
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
        standing=stands.standing,
        excluded=stands.excluded is not None,
    )


def _trains(device: DeviceStatus, idle: Collection[str]) -> bool:
    """Whether a device takes part in rounds, by its own word; before it has said any, by what its profile has been given."""
    return trains(device.engine) if device.engine in ENGINES else device.profile not in idle


def _variants(database: sqlite3.Connection) -> list[VariantStatus]:
    rows = database.execute(
        """SELECT model, MAX(version) AS version, profile, variant, bytes, budget, accuracy, manifest FROM variants
           GROUP BY model, profile ORDER BY model, profile"""
    )
    return [_variant(row) for row in rows]


def _variant(row: sqlite3.Row) -> VariantStatus:
    manifest = decode(row["manifest"], Manifest)
    fit = manifest.fit
    written = {name: row[name] for name in ("model", "version", "profile", "variant", "bytes", "budget", "accuracy")}
    return VariantStatus(**written, peak_bytes=fit.peak_bytes, step_ms=fit.step_ms, trains=manifest.trains)


def _training(database: sqlite3.Connection, record: TrainingRecord) -> TrainingStatus:
    history, bits = rounds(database, record.id), bits_per_parameter(database, record.id)
    updates = sum(one.updates for one in history if one.round in bits)
    return TrainingStatus(
        model=record.model,
        version=record.version,
        state=record.state,
        round=history[-1].round,
        last_round=record.last,
        cohort=cohort_at(record.plan, history[-1].round - record.first + 1),
        fairness=_fairness(database, record, record.last, able_devices(database, record.model, record.version)),
        bits_per_parameter=sum(bits[one.round] * one.updates for one in history if one.round in bits) / updates
        if updates
        else None,
        rounds=[round_status(one, bits.get(one.round)) for one in history],
        pruned=_pruned(database, record),
        pruning_target=record.plan.pruning.target if record.plan.pruning else None,
    )


def _pruned(database: sqlite3.Connection, record: TrainingRecord) -> float | None:
    """After the newest closed round of this training, or of those before it of the same version; a push begins with 0."""
    row = database.execute(
        """SELECT r.pruned FROM rounds r JOIN trainings t ON t.id=r.training
           WHERE t.model=? AND t.version=? AND t.id<=? AND r.closed IS NOT NULL ORDER BY r.round DESC LIMIT 1""",
        (record.model, record.version, record.id),
    ).fetchone()
    return row["pruned"] if row else 0.0


def _fairness(database: sqlite3.Connection, record: TrainingRecord, until: int, able: frozenset[str]) -> Fairness:
    """Over the devices that are able to take part now; one that could once and did counts too."""
    times = participations(database, record.id, until)
    return fairness([times.get(device, 0) for device in times.keys() | able])


def closed_rounds(database: sqlite3.Connection, record: TrainingRecord, since: int) -> list[FollowedRound]:
    """The closed rounds of a training from a number on. Raises StoreError."""
    closed = [one for one in rounds(database, record.id, since) if one.closed is not None]
    bits = bits_per_parameter(database, record.id) if closed else {}
    able = able_devices(database, record.model, record.version) if closed else frozenset()
    return [
        FollowedRound(
            **msgspec.structs.asdict(round_status(one, bits.get(one.round))),
            fairness=_fairness(database, record, one.round, able),
        )
        for one in closed
    ]


def round_status(record: RoundRecord, bits: float | None) -> RoundStatus:
    """A round as it is shown; `bits` per parameter of its updates."""
    return RoundStatus(
        round=record.round,
        open=record.closed is None,
        seconds=None if record.closed is None else record.closed - record.opened,
        accuracy=record.accuracy,
        loss=record.loss,
        updates=record.updates,
        uplink_bytes=record.uplink,
        downlink_bytes=record.downlink,
        bits_per_parameter=bits,
        pruned=record.pruned,
    )
