"""Which manifests and orders a device believes: each refusal by its name, and nothing decoded before its signature holds."""

import contextlib
import importlib.util
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.codec.weights import Precision, weights_length
from edgefl.device.trust import believed_manifest, believed_order
from edgefl.errors import MessageError, PeerError, SignatureError
from edgefl.identity.signing import MANIFEST, ROUND, Signer
from edgefl.layout import Layout, Tensor
from edgefl.link.memory import MemoryBroker
from edgefl.wire.messages import BLOCK_SIZE, Difference, FileRef, Signed, decode, encode

_SPEC = importlib.util.spec_from_file_location("toyboard", Path(__file__).with_name("toyboard.py"))
toy = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toy)
OFFICE = toy.Office(MemoryBroker(), toy.Clock())
NOW = toy.START
CONFIG = toy.DeviceConfig(
    id=toy.DEVICE, profile=toy.PROFILE, engine="portable", threads=1, memory_mb=64, storage_kib=64, host="h", port=1,
    release_key=OFFICE.release.public_key.hex(), data="digits:",
)  # fmt: skip
GOOD, GOOD_PAYLOAD = OFFICE.manifest(3, announce=False)
ORDER, ORDER_PAYLOAD = OFFICE.order(5, version=3, announce=False)
LARGEST = weights_length(toy.LAYOUT, Precision.FP32)


def manifest(**changes):
    """A manifest's message, changed before it was signed."""
    return OFFICE.manifest(3, announce=False, **changes)[1]


def order(**changes):
    """An order's message, changed before it was signed."""
    return OFFICE.order(5, version=changes.pop("version", 3), announce=False, **changes)[1]


def ref(length):
    """A description of a file of some length."""
    return FileRef("weights", bytes(32), length, (bytes(16),) * -(-length // BLOCK_SIZE))


def with_byte(payload, index, flip=1):
    """A message with a bit flipped in what was signed."""
    signed = decode(payload, Signed)
    changed = bytearray(signed.payload)
    changed[index] ^= flip
    return encode(msgspec.structs.replace(signed, payload=bytes(changed)))


def test_what_the_fleet_signed_for_this_device_is_believed():
    """The release key, the profile, the engine, in time, and small enough."""
    assert believed_manifest(GOOD_PAYLOAD, toy.MODEL, CONFIG, NOW) == GOOD
    assert believed_order(ORDER_PAYLOAD, GOOD, NOW) == ORDER


REFUSED_MANIFESTS = {
    "a key that is not trusted": (SignatureError, manifest(signer=Signer.generate())),
    "signed for another purpose": (SignatureError, encode(OFFICE.release.sign(ROUND, encode(GOOD)))),
    "signature of a manifest does not hold": (SignatureError, with_byte(GOOD_PAYLOAD, 5)),
    "has expired": (SignatureError, manifest(expires=int(NOW) - 1)),
    "for somebody else": (MessageError, manifest(profile="rpi-5-8gb")),
    "found other for": (MessageError, manifest(model="other")),
    "another engine": (MessageError, manifest(engine="ort-training")),
    "does not fit this device": (MessageError, manifest(files=(ref(65 * 1024),))),
    "described wrongly": (MessageError, manifest(files=(FileRef("train", bytes(32), 40_000, (bytes(16),)),))),
    "Manifest message does not decode": (MessageError, encode(OFFICE.release.sign(MANIFEST, b"\x93\x01\x02"))),
    "Signed message does not decode": (MessageError, b"\xc1" * 50),
}


@pytest.mark.parametrize("words", REFUSED_MANIFESTS)
def test_each_reason_not_to_believe_a_manifest_has_its_words(words):
    """Wrong key, purpose, bits, time, addressee, engine, size or shape."""
    kind, payload = REFUSED_MANIFESTS[words]
    with pytest.raises(kind, match=words):
        believed_manifest(payload, toy.MODEL, CONFIG, NOW)


TWO_BLOCKS_TOO_MANY = FileRef("difference", bytes(32), 9, (bytes(16),) * 3)
REFUSED_ORDERS = {
    "a key that is not trusted": (SignatureError, order(signer=OFFICE.release)),
    "signed for another purpose": (SignatureError, encode(OFFICE.online.sign(MANIFEST, encode(ORDER)))),
    "signature of a round does not hold": (SignatureError, with_byte(ORDER_PAYLOAD, 7)),
    "has expired": (SignatureError, order(expires=int(NOW) - 1)),
    "another variant": (MessageError, order(variant="w0.5-int8")),
    "found other w1": (MessageError, order(model="other")),
    "weights of round 5 of toy are too large": (MessageError, order(weights=ref(LARGEST + 1))),
    "described wrongly": (MessageError, order(weights=FileRef("weights", bytes(32), 9, (bytes(16),) * 2))),
    "'difference' is described wrongly": (MessageError, order(differences=(Difference(bytes(32), TWO_BLOCKS_TOO_MANY),))),
    "no shorter than the weights": (MessageError, order(differences=(Difference(bytes(32), ref(LARGEST + 1)),))),
    "RoundOrder message does not decode": (MessageError, encode(OFFICE.online.sign(ROUND, b"\x80"))),
    "Signed message does not decode": (MessageError, b""),
}


@pytest.mark.parametrize("words", REFUSED_ORDERS)
def test_each_reason_not_to_believe_an_order_has_its_words(words):
    """Wrong key (even the release key), purpose, bits, time, variant, size or shape."""
    kind, payload = REFUSED_ORDERS[words]
    with pytest.raises(kind, match=words):
        believed_order(payload, GOOD, NOW)


def test_weights_may_be_as_large_as_the_layout_and_a_version_as_large_as_the_room():
    """The bounds themselves are allowed."""
    assert believed_order(order(weights=ref(LARGEST)), GOOD, NOW).weights.length == LARGEST
    assert believed_manifest(manifest(files=(ref(64 * 1024),)), toy.MODEL, CONFIG, NOW).total_bytes == 64 * 1024


def test_an_order_of_another_version_is_measured_with_its_own_layout():
    """Whether it may be larger is not known before its manifest is."""
    wide = Layout((Tensor("w", (400, 100)),))
    assert weights_length(wide, Precision.INT8) > LARGEST
    assert believed_order(order(version=4, weights=ref(LARGEST + 1)), GOOD, NOW).version == 4


def test_what_is_held_does_not_expire():
    """A version on the card stays usable with whatever clock."""
    expired = manifest(expires=int(NOW) - 1)
    assert believed_manifest(expired, toy.MODEL, CONFIG, 0.0).version == 3


def test_a_message_on_another_models_topic_is_not_believed():
    """The topic's model and the manifest's must agree."""
    with pytest.raises(MessageError, match="for somebody else"):
        believed_manifest(GOOD_PAYLOAD, "other", CONFIG, NOW)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.integers(0, len(GOOD_PAYLOAD) - 1), st.integers(1, 255))
def test_no_bytes_do_anything_but_be_refused(noise, index, flip):
    """Noise, and the good message with any byte changed: a PeerError, or the very same manifest (its key is but a hint)."""
    changed = bytearray(GOOD_PAYLOAD)
    changed[index] ^= flip
    for payload in (noise, bytes(changed)):
        with contextlib.suppress(PeerError):
            assert believed_manifest(payload, toy.MODEL, CONFIG, NOW) == GOOD
