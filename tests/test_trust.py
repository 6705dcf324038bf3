"""Which manifests, assignments and orders a device believes: each refusal by its name, nothing is decoded unvouched."""

import contextlib
import hashlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.codec.weights import Precision, weights_length
from edgefl.device.config import DeviceConfig
from edgefl.device.trust import SEAL, believed_assignment, believed_manifest, believed_order, kept_manifest, seal
from edgefl.errors import FreezeError, MessageError, MixError, PeerError, RollbackError, SignatureError, WrongDeviceError
from edgefl.identity.signing import ASSIGNMENT, ROUND
from edgefl.layout import Layout, Tensor
from edgefl.link.memory_broker import MemoryBroker
from edgefl.wire.files import BLOCK_SIZE, Difference, FileRef
from edgefl.wire.messages import Signed, decode, encode
from edgefl.wire.topics import target_path
from toyclock import START, Clock
from toyoffice import DEVICE, MODEL, PROFILE, Office
from toytrainer import LAYOUT

OFFICE = Office(MemoryBroker(), Clock())
NOW = START
CONFIG = DeviceConfig(
    id=DEVICE, profile=PROFILE, engine="portable", threads=1, memory_mb=64, storage_kib=64, host="h", port=1,
    fleet=OFFICE.fleet, data="digits:",
)  # fmt: skip
GOOD, GOOD_PAYLOAD = OFFICE.manifest(3, announce=False)
ORDER, ORDER_PAYLOAD = OFFICE.order(5, version=3, announce=False)
PATH = target_path(MODEL, PROFILE, 3)
ASSIGNED = OFFICE.assign(3, announce=False)
LARGEST = weights_length(LAYOUT, Precision.FP32)


def manifest(**changes):
    """A manifest's message, changed before it was signed."""
    return OFFICE.manifest(3, announce=False, **changes)[1]


def order(**changes):
    """An order's message, changed before it was signed."""
    return OFFICE.order(5, version=changes.pop("version", 3), announce=False, **changes)[1]


def ref(length):
    """A description of a file of some length."""
    return FileRef("weights", bytes(32), length, (bytes(16),) * -(-length // BLOCK_SIZE))


def believe(payload, path=PATH, now=NOW):
    """Believe a manifest that the metadata lists as it is."""
    return believed_manifest(payload, path, hashlib.sha256(payload).digest(), CONFIG, now)


def assignment(signer=None, **changes):
    """An assignment's message, changed before it was signed."""
    return OFFICE.assign(3, announce=False, signer=signer, **changes)


def with_byte(payload, index, flip=1):
    """A message with a bit flipped in what was signed."""
    signed = decode(payload, Signed)
    changed = bytearray(signed.payload)
    changed[index] ^= flip
    return encode(msgspec.structs.replace(signed, payload=bytes(changed)))


def test_what_the_fleet_signed_for_this_device_is_believed():
    """Listed, for this profile and engine, in time, and small enough; or signed by the online key, for this device."""
    assert believe(GOOD_PAYLOAD) == GOOD
    assert believed_assignment(ASSIGNED, OFFICE.online.public_key, CONFIG, 0, lambda _: NOW).models[0].version == 3
    assert believed_order(ORDER_PAYLOAD, GOOD, NOW) == ORDER


def test_a_board_of_the_native_engine_takes_what_a_push_has_made_portable():
    """Every board can train by the portable engine, whatever its profile prefers."""
    native = msgspec.structs.replace(CONFIG, engine="ort-training")
    assert believed_manifest(GOOD_PAYLOAD, PATH, hashlib.sha256(GOOD_PAYLOAD).digest(), native, NOW) == GOOD


REFUSED_MANIFESTS = {
    "has expired": (FreezeError, manifest(expires=int(NOW) - 1)),
    "for another profile": (WrongDeviceError, manifest(profile="rpi-5-8gb")),
    "something else": (WrongDeviceError, manifest(model="other")),
    "found toy/toy-profile/4": (WrongDeviceError, OFFICE.manifest(4, announce=False)[1]),
    "another engine": (MessageError, manifest(engine="ort-training")),
    "does not fit this device": (MessageError, manifest(files=(ref(65 * 1024),))),
    "described wrongly": (MessageError, manifest(files=(FileRef("train", bytes(32), 40_000, (bytes(16),)),))),
    "Manifest message does not decode": (MessageError, b"\x93\x01\x02"),
}


@pytest.mark.parametrize("words", REFUSED_MANIFESTS)
def test_each_reason_not_to_believe_a_manifest_has_its_words(words):
    """Even a manifest that the release key has listed may be for somebody else, too late, too large or malformed."""
    kind, payload = REFUSED_MANIFESTS[words]
    with pytest.raises(kind, match=words):
        believe(payload)


def test_a_manifest_that_is_not_the_listed_one_is_not_even_decoded():
    """Other bytes than the metadata lists are a mix, whatever they are."""
    for payload in (manifest(batch=5), b"", b"\xc1" * 50, GOOD_PAYLOAD + b"x"):
        with pytest.raises(MixError, match="not the one"):
            believed_manifest(payload, PATH, hashlib.sha256(GOOD_PAYLOAD).digest(), CONFIG, NOW)


REFUSED_ASSIGNMENTS = {
    "a key that is not trusted": (SignatureError, assignment(signer=OFFICE.release)),
    "signed for another purpose": (SignatureError, encode(OFFICE.online.sign(ROUND, b"x"))),
    "signature of a assignment does not hold": (SignatureError, with_byte(ASSIGNED, 5)),
    "another device": (WrongDeviceError, assignment(device="cam-02")),
    "older assignment": (RollbackError, assignment(counter=6)),
    "has expired": (FreezeError, assignment(counter=9, expires=int(NOW) - 1)),
    "Assignment message does not decode": (MessageError, encode(OFFICE.online.sign(ASSIGNMENT, b"\x80"))),
    "Signed message does not decode": (MessageError, b"\x93"),
}


@pytest.mark.parametrize("words", REFUSED_ASSIGNMENTS)
def test_each_reason_not_to_believe_an_assignment_has_its_words(words):
    """Wrong key (even the release key), purpose, bits, addressee, counter, time or shape."""
    kind, payload = REFUSED_ASSIGNMENTS[words]
    with pytest.raises(kind, match=words):
        believed_assignment(payload, OFFICE.online.public_key, CONFIG, 7, lambda _: NOW)


def test_the_same_assignment_again_is_believed():
    """It is announced anew every day, with the counter that the device knows."""
    assert believed_assignment(assignment(counter=7), OFFICE.online.public_key, CONFIG, 7, lambda _: NOW).counter == 7


TWO_BLOCKS_TOO_MANY = FileRef("difference", bytes(32), 9, (bytes(16),) * 3)
REFUSED_ORDERS = {
    "a key that is not trusted": (SignatureError, order(signer=OFFICE.release)),
    "signed for another purpose": (SignatureError, encode(OFFICE.online.sign(ASSIGNMENT, encode(ORDER)))),
    "signature of a round does not hold": (SignatureError, with_byte(ORDER_PAYLOAD, 7)),
    "has expired": (FreezeError, order(expires=int(NOW) - 1)),
    "another variant": (WrongDeviceError, order(variant="w0.5-int8")),
    "found other w1": (WrongDeviceError, order(model="other")),
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
    assert believe(manifest(files=(ref(64 * 1024),))).total_bytes == 64 * 1024


def test_an_order_of_another_version_is_measured_with_its_own_layout():
    """Whether it may be larger is not known before its manifest is."""
    wide = Layout((Tensor("w", (400, 100)),))
    assert weights_length(wide, Precision.INT8) > LARGEST
    assert believed_order(order(version=4, weights=ref(LARGEST + 1)), GOOD, NOW).version == 4


def test_what_is_held_does_not_expire():
    """A version on the card stays usable with whatever clock."""
    assert kept_manifest(seal(manifest(expires=int(NOW) - 1), CONFIG), MODEL, CONFIG).version == 3


def test_what_is_kept_is_this_fleets_this_profiles_and_this_models():
    """The card of another fleet, profile or model is not taken for the device's own."""
    sealed = seal(GOOD_PAYLOAD, CONFIG)
    with pytest.raises(MixError):
        kept_manifest(sealed, MODEL, msgspec.structs.replace(CONFIG, fleet="ab" * 32))
    with pytest.raises(WrongDeviceError):
        kept_manifest(sealed, MODEL, msgspec.structs.replace(CONFIG, profile="rpi-5-8gb"))
    with pytest.raises(WrongDeviceError):
        kept_manifest(sealed, "other", CONFIG)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.integers(0, len(GOOD_PAYLOAD) + SEAL - 1), st.integers(1, 255))
def test_no_bytes_do_anything_but_be_refused(noise, index, flip):
    """Noise, and the kept manifest with any byte changed, are refused."""
    changed = bytearray(seal(GOOD_PAYLOAD, CONFIG))
    changed[index] ^= flip
    for payload in (noise, bytes(changed)):
        with pytest.raises(PeerError):
            kept_manifest(payload, MODEL, CONFIG)
        with contextlib.suppress(PeerError):
            assert believe(payload) == GOOD
