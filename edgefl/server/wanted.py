"""Which version of each model each device is to hold now: the releases, and what the rollouts say.

Model: a model's release is for everybody; a rollout says more about some devices. Of what is said about a device, the newest word
counts:

* an open rollout: its version, for the devices that it has told and that have not failed;
* a superseded one: its version, for the devices that hold it, until their turn in the newer rollout comes;
* a finished one: its version, for the devices that it has told, and for all others of its target if it has one.

Rules: a device that has failed with a version goes back to what was before, and is not told of it again but by another rollout.
A device is to hold the newest variant for its profile whose version is not above the one that is wanted, because a version need
not have a variant for every profile; what was held back or rolled back is never such a substitute.
"""

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from edgefl.rollout_rules import Target
from edgefl.server.rollout_state import OPEN
from edgefl.store.registry import Device, list_devices
from edgefl.store.releases import all_released, releases
from edgefl.store.rollouts import failures, get_rollout, heeded
from edgefl.store.tags import all_tags
from edgefl.store.versions import VariantRecord, all_variants, get_variant
from edgefl.wire.releases import Assigned


@dataclass(frozen=True, slots=True)
class _Word:
    """What a rollout says: its version is for these devices, and for a target's if there is one."""

    rollout: int
    version: int
    devices: frozenset[str]
    target: Target | None


def wanted(database: sqlite3.Connection) -> dict[str, tuple[Assigned, ...]]:
    """For each device that is not revoked what it is to hold, ordered by model. Raises StoreError."""
    return Said(database, list_devices(database)).wanted()


class Said:
    """Everything that is said about these devices, read at once."""

    def __init__(self, database: sqlite3.Connection, devices: Sequence[Device]) -> None:
        """Reads the fleet's `database`. Raises StoreError."""
        self._database = database
        self._devices = [device for device in devices if device.revoked is None]
        self._made = _variants(database)
        self._current = releases(database)
        self._released = all_released(database)
        self._words = _words(database)
        self._failures = failures(database)
        self._tags = all_tags(database)
        self._models = sorted(self._current.keys() | self._words.keys())

    def wanted(self) -> dict[str, tuple[Assigned, ...]]:
        """For each device that is not revoked what it is to hold, ordered by model."""
        return {device.id: self._about(device) for device in self._devices}

    def announced(self, told: Mapping[str, tuple[Assigned, ...]]) -> list[VariantRecord]:
        """The variants that devices may fetch now: what they are `told` to hold, and the release for every profile.

        Ordered by model, profile and version. Raises StoreError.
        """
        profiles = {device.id: device.profile for device in self._devices}
        needed = {(one.model, profiles[device], one.version) for device, models in told.items() for one in models}
        return [get_variant(self._database, *one) for one in sorted(needed | self._of_release())]

    def _about(self, device: Device) -> tuple[Assigned, ...]:
        held = (self._of_model(model, device) for model in self._models)
        return tuple(one for one in held if one.version)

    def _of_release(self) -> set[tuple[str, str, int]]:
        """Model, profile and version of the release, or what stands for it, for every profile that a model was made for."""
        found = {(m, p, self._fitting(m, p, self._current[m])) for m, p in self._made if m in self._current}
        return {one for one in found if one[2]}

    def _of_model(self, model: str, device: Device) -> Assigned:
        version, rollout = self._current.get(model, 0), 0
        for word in self._words.get(model, ()):
            if device.id in word.devices or _meant(word.target, device, self._tags.get(device.id, ())):
                version, rollout = word.version, word.rollout
        good = _before_failures(self._failures, device.id, model, version)
        rollout = rollout if good == version else 0
        return Assigned(model, self._fitting(model, device.profile, good), rollout)

    def _fitting(self, model: str, profile: str, version: int) -> int:
        """The newest version with a variant for the profile that is not above this one; 0 if there is none."""
        made = self._made.get((model, profile), ())
        if version in made:
            return version
        return max((one for one in made if one < version and (model, one) in self._released), default=0)


def _meant(target: Target | None, device: Device, tags: Collection[str]) -> bool:
    return target is not None and target.includes(device.id, device.profile, tags)


def _words(database: sqlite3.Connection) -> dict[str, list[_Word]]:
    """What rollouts say of each model, the newest last."""
    words: dict[str, list[_Word]] = {}
    for number, (model, version, phase) in heeded(database).items():
        record = get_rollout(database, number)
        steps = {name: device for name, device in record.state.devices.items() if device.step != "waiting" and not device.failed}
        if phase not in OPEN and phase != "finished":
            steps = {name: device for name, device in steps.items() if device.step == "activated"}
        target = record.target if phase == "finished" and record.target else None
        words.setdefault(model, []).append(_Word(number, version, frozenset(steps), target))
    return words


def _before_failures(failed: Mapping[tuple[str, str, int], int | None], device: str, model: str, version: int) -> int:
    """The version, or what was before it as long as the device has failed with that; 0 if nothing was."""
    seen: set[int] = set()
    while (device, model, version) in failed and version not in seen:
        seen.add(version)
        version = failed[device, model, version] or 0
    return version


def _variants(database: sqlite3.Connection) -> dict[tuple[str, str], list[int]]:
    """The versions of each model that have a variant for a profile, ascending."""
    found: dict[tuple[str, str], list[int]] = {}
    for model, profile, version in all_variants(database):
        found.setdefault((model, profile), []).append(version)
    return found
