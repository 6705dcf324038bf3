"""Which manifests and round orders a device believes: signature, addressee, expiry, size. Everything else is refused by name.

Rules: a manifest is believed if the fleet's release key signed it, for this device's profile and engine, and it has not expired;
a round order if the key signed it that a believed manifest names, for that manifest's variant, with weights that are no larger
than its layout. Nothing is decoded before its signature holds. An order says for which version it is: whether that is the version
in use is not a question of belief, and the caller's to ask.
"""

import time

from edgefl.codec.weights import Precision, weights_length
from edgefl.device.config import DeviceConfig
from edgefl.errors import FreezeError, MessageError
from edgefl.identity.signing import MANIFEST, ROUND, verify
from edgefl.wire.blocks import check_ref
from edgefl.wire.messages import Manifest, RoundOrder, Signed, decode


def believed_manifest(payload: bytes, model: str, config: DeviceConfig, now: float) -> Manifest:
    """The manifest in a retained announcement.

    Args:
        payload: what arrived.
        model: the model that the topic names.
        config: profile, engine, release key and room of this device.
        now: seconds since 1970; 0 for one that was believed before: what is held does not expire.

    Raises:
        MessageError: it does not decode, contradicts itself, or is not for this device.
        SignatureError: it is not the release key's, or has expired.
    """
    manifest = decode(verify(decode(payload, Signed), MANIFEST, config.release_key_bytes), Manifest)
    if (manifest.model, manifest.profile) != (model, config.profile):
        raise MessageError(
            "a manifest for somebody else",
            expected=f"{model} for {config.profile}",
            found=f"{manifest.model} for {manifest.profile}",
        )
    if manifest.engine != config.engine:
        raise MessageError(
            f"{model}@{manifest.version} is made for another engine",
            expected=config.engine,
            found=manifest.engine,
            remedy="Provision this device again: its profile has changed",
        )
    _check_expiry(f"manifest of {model}@{manifest.version}", manifest.expires, now)
    for ref in manifest.files:
        check_ref(ref)
    if manifest.total_bytes > config.storage_bytes:
        raise MessageError(
            f"{model}@{manifest.version} does not fit this device",
            expected=f"at most {config.storage_bytes} bytes",
            found=f"{manifest.total_bytes}",
            remedy="Push again after correcting the profile",
        )
    return manifest


def believed_order(payload: bytes, manifest: Manifest, now: float) -> RoundOrder:
    """The round order in a retained announcement, checked with the key that the manifest names.

    Args:
        payload: what arrived.
        manifest: a believed one of the order's model and variant.
        now: as above.

    Raises:
        MessageError: it does not decode, contradicts itself, or is for another variant.
        SignatureError: it is not that key's, or has expired.
    """
    order = decode(verify(decode(payload, Signed), ROUND, manifest.round_key), RoundOrder)
    if (order.model, order.variant) != (manifest.model, manifest.variant):
        raise MessageError(
            "a round order for another variant",
            expected=f"{manifest.model} {manifest.variant}",
            found=f"{order.model} {order.variant}",
        )
    for ref in (order.weights, *(difference.file for difference in order.differences)):
        check_ref(ref)
    largest = weights_length(manifest.layout, Precision.FP32)
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


def _check_expiry(what: str, expires: int, now: float) -> None:
    if expires < now:
        raise FreezeError(
            f"the {what} has expired",
            expected=f"a clock before {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(expires))}",
            remedy="Check this device's clock, or wait for a new one",
        )
