"""Which manifests, assignments and round orders a device believes. Everything else is refused by name.

Rules: a manifest is believed if the fleet's metadata lists its hash under this device's profile, and it has not expired; an
assignment if the key signed it that the fleet's root appoints, for this device, with no lower counter than before; a round order
if the key signed it that a believed manifest names, for that manifest's variant, with weights that are no larger than its layout.
Nothing is decoded before its hash or signature holds. An order says for which version it is: whether that is the version in use
is not a question of belief, and the caller's to ask.

What a device has believed it keeps *sealed*: with a hash that covers the fleet's id, so that neither a flipped bit nor the state
of another fleet is taken for its own. What is held does not expire.
"""

import hashlib
import time
from collections.abc import Callable, Iterable

from edgefl.codec.weights import PRECISIONS, weights_length
from edgefl.device.config import DeviceConfig
from edgefl.errors import FreezeError, MessageError, MixError, PeerError, RollbackError, WrongDeviceError
from edgefl.identity.signing import ASSIGNMENT, ROUND, verify
from edgefl.profile import PORTABLE, trains
from edgefl.wire.blocks import check_ref
from edgefl.wire.messages import Signed, decode
from edgefl.wire.releases import Assignment, Manifest
from edgefl.wire.rounds import RoundOrder
from edgefl.wire.topics import target_path

SEAL = 32
"""Bytes before a sealed payload."""


def believed_manifest(payload: bytes, path: str, sha256: bytes, config: DeviceConfig, now: float) -> Manifest:
    """The manifest in a retained announcement.

    Args:
        payload: what arrived.
        path: under which the metadata lists it: `MODEL/PROFILE/VERSION`.
        sha256: that the metadata lists.
        config: profile, engine and room of this device.
        now: seconds since 1970.

    Raises:
        MixError: these are other bytes than the metadata lists.
        WrongDeviceError: it is another profile's, or not what its path says.
        FreezeError: it has expired.
        MessageError: it does not decode, contradicts itself, or does not fit this device.
    """
    if hashlib.sha256(payload).digest() != sha256:
        raise MixError(f"the manifest {path} is not the one that the fleet's metadata lists", expected=sha256.hex()[:16])
    manifest = _fitting(payload, config)
    found = target_path(manifest.model, manifest.profile, manifest.version)
    if found != path:
        raise WrongDeviceError("a manifest of something else", expected=path, found=found)
    _check_expiry(f"manifest of {manifest.model}@{manifest.version}", manifest.expires, now)
    return manifest


def seal(payload: bytes, config: DeviceConfig) -> bytes:
    """A believed manifest as it is kept on disk."""
    return hashlib.sha256(config.fleet.encode() + payload).digest() + payload


def kept_manifest(sealed: bytes, model: str, config: DeviceConfig) -> Manifest:
    """The manifest that this device once believed and kept.

    Raises:
        MixError: the bytes have changed, or are another fleet's.
        WrongDeviceError: it is another model's or another profile's: the device has been provisioned anew.
        MessageError: it does not decode, or does not fit this device any more.
    """
    payload = sealed[SEAL:]
    if seal(payload, config) != sealed:
        raise MixError(f"what is kept of {model} is damaged, or another fleet's")
    manifest = _fitting(payload, config)
    if manifest.model != model:
        raise WrongDeviceError("a manifest of another model", expected=model, found=manifest.model)
    return manifest


def believed_assignment(
    payload: bytes, key: bytes, config: DeviceConfig, counter: int, now: Callable[[float], float]
) -> Assignment:
    """The assignment in a retained announcement.

    Args:
        payload: what arrived.
        key: 32 raw bytes of the key that the fleet's root appoints.
        config: whose it must be.
        counter: of the last assignment that was believed; 0 before the first.
        now: told when this was signed, says what time it is (both in seconds since 1970): a signature proves that it is not
            earlier, and may correct a clock that ran ahead. For one that was believed before it says 0.

    Raises:
        MessageError: it does not decode.
        SignatureError: it is not that key's.
        WrongDeviceError: it is another device's.
        RollbackError: its counter is lower.
        FreezeError: it has expired.
    """
    assignment = decode(verify(decode(payload, Signed), ASSIGNMENT, key), Assignment)
    if assignment.device != config.id:
        raise WrongDeviceError("an assignment for another device", expected=config.id, found=assignment.device)
    if assignment.counter < counter:
        raise RollbackError("an older assignment", expected=f"counter {counter} or higher", found=str(assignment.counter))
    _check_expiry("assignment", assignment.expires, now(assignment.issued))
    return assignment


def believed_order(payload: bytes, manifest: Manifest, now: float) -> RoundOrder:
    """The round order in a retained announcement, checked with the key that the manifest names.

    Args:
        payload: what arrived.
        manifest: a believed one of the order's model and variant.
        now: seconds since 1970; 0 for one that was believed before.

    Raises:
        MessageError: it does not decode, or contradicts itself.
        WrongDeviceError: it is for another variant.
        SignatureError: it is not that key's.
        FreezeError: it has expired.
    """
    order = decode(verify(decode(payload, Signed), ROUND, manifest.round_key), RoundOrder)
    if (order.model, order.variant) != (manifest.model, manifest.variant):
        raise WrongDeviceError(
            "a round order for another variant",
            expected=f"{manifest.model} {manifest.variant}",
            found=f"{order.model} {order.variant}",
        )
    for ref in (order.weights, *(difference.file for difference in order.differences)):
        check_ref(ref)
    largest = max(weights_length(manifest.layout, precision) for precision in PRECISIONS)  # fp32's, but for a toy
    if order.version == manifest.version and order.weights.length > largest:
        raise MessageError(
            f"the weights of round {order.round} of {order.model} are too large",
            expected=f"at most {largest} bytes",
            found=f"{order.weights.length}",
        )
    if any(difference.file.length >= order.weights.length for difference in order.differences):
        raise MessageError(f"a difference of round {order.round} of {order.model} is no shorter than the weights")
    _check_expiry(f"order of round {order.round} of {order.model}", order.expires, now)
    return order


def kept_order(payloads: Iterable[bytes], manifest: Manifest) -> RoundOrder | None:
    """The first of the orders that this device once believed and kept which is for this version; None if none is."""
    for payload in payloads:
        try:
            order = believed_order(payload, manifest, 0.0)
        except PeerError:
            continue
        if order.version == manifest.version:
            return order
    return None


def signed_by(payload: bytes, key: bytes) -> bool:
    """Whether a round order has been signed by this key (32 raw bytes), whatever it says."""
    try:
        verify(decode(payload, Signed), ROUND, key)
    except PeerError:
        return False
    return True


def _fitting(payload: bytes, config: DeviceConfig) -> Manifest:
    """A manifest that this device can hold."""
    manifest = decode(payload, Manifest)
    name = f"{manifest.model}@{manifest.version}"
    if manifest.profile != config.profile:
        raise WrongDeviceError("a manifest for another profile", expected=config.profile, found=manifest.profile)
    runs = (config.engine, PORTABLE) if trains(config.engine) else (config.engine,)
    if manifest.engine not in runs:
        raise MessageError(
            f"{name} is made for another engine",
            expected=" or ".join(dict.fromkeys(runs)),
            found=manifest.engine,
            remedy="Provision this device again: its profile has changed",
        )
    for ref in (*manifest.files, *(difference.file for difference in manifest.differences)):
        check_ref(ref)
    if manifest.total_bytes > config.storage_bytes:
        raise MessageError(
            f"{name} does not fit this device",
            expected=f"at most {config.storage_bytes} bytes",
            found=f"{manifest.total_bytes}",
            remedy="Push again after correcting the profile",
        )
    return manifest


def _check_expiry(what: str, expires: int, now: float) -> None:
    if expires < now:
        raise FreezeError(
            f"the {what} has expired",
            expected=f"a clock before {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(expires))}",
            remedy="Check this device's clock, or wait for a new one",
        )
