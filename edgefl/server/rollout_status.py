"""How far rollouts are, as values: what `edgefl rollout status` shows and what `--json` prints."""

import sqlite3

import msgspec

from edgefl.rollout_rules import Rules, Target
from edgefl.server.rollout_state import Device, count
from edgefl.store.presence import Presence, presences
from edgefl.store.registry import list_devices
from edgefl.store.rollouts import RolloutRecord, get_rollout, newest_rollout, rollout_numbers
from edgefl.store.tags import all_tags


class RolloutDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One device in a rollout.

    Attributes:
        stage: in which it was told, from 1; None while it waits.
        step: `waiting`, `told`, `fetching`, `deferred`, `trial`, `activated`, `timed-out`, `failed`, `reverted`.
        percent: of the step.
        fetched_bytes, total_bytes: of the version's files for its profile; by the percent if the device does not say bytes.
        code, error: of its last trouble. Text of the device's own: escape it before a terminal sees it.
        aside: it has failed, and an operator has gone on without it.
        online, seen: as the server last heard of it; `seen` in seconds since 1970, None if never.
        changed: when any of this changed.
    """

    id: str
    profile: str
    tags: tuple[str, ...]
    stage: int | None
    step: str
    percent: int
    fetched_bytes: int
    total_bytes: int
    code: str
    error: str
    aside: bool
    online: bool
    seen: float | None
    changed: float


class RolloutStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout.

    Attributes:
        previous: version that devices go back to; None for a first version.
        state: `running`, `waiting` (for an operator's approval), `paused`, `finished`, `aborted`, `superseded`, `rolled back`.
        reason: why it is in this state.
        stage: the open one, from 1.
        stages: as they were ordered: numbers and shares.
        members, told, activated, failed: devices; those that were set aside are not in them.
        needed: devices that must hold the version before the next stage.
        started, changed: seconds since 1970.
    """

    id: int
    model: str
    version: int
    previous: int | None
    state: str
    reason: str
    stage: int
    stages: tuple[str, ...]
    members: int
    told: int
    activated: int
    failed: int
    aside: int
    needed: int
    target: Target
    rules: Rules
    started: float
    changed: float
    devices: tuple[RolloutDevice, ...]

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.state in {"running", "waiting", "paused"}


def rollout_statuses(database: sqlite3.Connection, model: str | None = None, *, ended: bool = False) -> list[RolloutStatus]:
    """The open rollouts and the newest one of a model, or of every model; with `ended` all that there ever were.

    Raises:
        FleetError: this model has never been rolled out.
        StoreError: the database cannot be read now.
    """
    if model is not None and not ended:
        newest_rollout(database, model)  # raises if there is none
    every = [get_rollout(database, number) for number in rollout_numbers(database, all_of_them=ended)]
    records = [one for one in every if model in {None, one.model}]
    known, tags = presences(database), all_tags(database)
    profiles = {device.id: device.profile for device in list_devices(database)}
    return [_status(database, record, known, tags, profiles) for record in records]


def rollout_status(database: sqlite3.Connection, rollout: int) -> RolloutStatus:
    """One rollout. Raises FleetError when there is none with this number, StoreError."""
    profiles = {device.id: device.profile for device in list_devices(database)}
    return _status(database, get_rollout(database, rollout), presences(database), all_tags(database), profiles)


def _status(
    database: sqlite3.Connection,
    record: RolloutRecord,
    known: dict[str, Presence],
    tags: dict[str, tuple[str, ...]],
    profiles: dict[str, str],
) -> RolloutStatus:
    rows = database.execute("SELECT profile, bytes FROM variants WHERE model=? AND version=?", (record.model, record.version))
    sizes = {row["profile"]: row["bytes"] for row in rows}
    state, counted = record.state, count(record.state)

    def device(name: str, one: Device) -> RolloutDevice:
        heard, profile = known.get(name), profiles.get(name, "")
        total = sizes.get(profile, 0)
        fetched = one.fetched or (total * one.percent // 100 if one.step == "fetching" else 0)
        return RolloutDevice(
            id=name, profile=profile, tags=tags.get(name, ()), stage=None if one.stage is None else one.stage + 1, step=one.step,
            percent=one.percent, fetched_bytes=total if one.step == "activated" else fetched, total_bytes=total,
            code=one.code, error=one.error, aside=one.aside, online=heard is not None and heard.online,
            seen=heard.seen if heard else None, changed=one.changed,
        )  # fmt: skip

    return RolloutStatus(
        id=state.id, model=record.model, version=record.version, previous=record.previous, state=state.phase,
        reason=state.reason, stage=state.stage + 1, stages=tuple(map(str, state.rules.stages)), members=counted.members,
        told=counted.told, activated=counted.activated, failed=counted.failed, needed=counted.needed,
        aside=sum(one.aside for one in state.devices.values()), target=record.target, rules=state.rules,
        started=record.started, changed=record.changed, devices=tuple(device(*item) for item in state.devices.items()),
    )  # fmt: skip
