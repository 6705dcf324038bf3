"""Which version of each model each device is to hold now: the releases, and what the running rollouts say.

Rule: a device is to hold the newest variant for its profile whose version is not above the one that is wanted, because a version
need not have a variant for every profile.
"""

import sqlite3
from collections.abc import Mapping

from edgefl.store.registry import list_devices
from edgefl.store.releases import releases
from edgefl.store.versions import VariantRecord, all_variants, get_variant
from edgefl.wire.messages import Assigned


def wanted(database: sqlite3.Connection) -> dict[str, tuple[Assigned, ...]]:
    """For each device that is not revoked what it is to hold, ordered by model. Raises StoreError."""
    made = _variants(database)
    current = releases(database)
    result = {}
    for device in list_devices(database):
        if device.revoked is None:
            held = ((model, _fitting(made, model, device.profile, version)) for model, version in current.items())
            result[device.id] = tuple(Assigned(model, version) for model, version in held if version)
    return result


def announced(database: sqlite3.Connection, told: Mapping[str, tuple[Assigned, ...]]) -> list[VariantRecord]:
    """The variants that devices may fetch now: what some device is `told` to hold, and the release for every profile.

    Ordered by model, profile and version. Raises StoreError.
    """
    made, profiles = _variants(database), {device.id: device.profile for device in list_devices(database)}
    needed = {(one.model, profiles[device], one.version) for device, models in told.items() for one in models}
    current = releases(database)
    for model, profile in made:
        version = current.get(model)
        if version is not None and (fitting := _fitting(made, model, profile, version)):
            needed.add((model, profile, fitting))
    return [get_variant(database, *one) for one in sorted(needed)]


def _variants(database: sqlite3.Connection) -> dict[tuple[str, str], list[int]]:
    """The versions of each model that have a variant for a profile, ascending."""
    found: dict[tuple[str, str], list[int]] = {}
    for model, profile, version in all_variants(database):
        found.setdefault((model, profile), []).append(version)
    return found


def _fitting(made: dict[tuple[str, str], list[int]], model: str, profile: str, version: int) -> int:
    """The newest version with a variant for the profile that is not above this one; 0 if there is none."""
    return max((one for one in made.get((model, profile), []) if one <= version), default=0)
