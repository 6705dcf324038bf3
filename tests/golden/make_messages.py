"""Writes messages.json: one golden vector of every message, as hexadecimal.

Run it after a message has got a new field (appended, with a default), and keep the old vectors: they must decode for ever.

    python tests/golden/make_messages.py
"""

import json
from pathlib import Path

import msgspec

from edgefl.layout import Layout, Tensor
from edgefl.recipe import Recipe
from edgefl.wire.enrolment import ClaimReply, ClaimRequest, Renewed, RenewRequest
from edgefl.wire.files import Block, Difference, FileRef, Want
from edgefl.wire.messages import Signed, encode
from edgefl.wire.presence import Installed, Report, State
from edgefl.wire.releases import Assigned, Assignment, Fit, Health, Manifest
from edgefl.wire.rounds import Receipt, RoundOrder, Task, UpdatePart

GOLDEN = Path(__file__).with_name("messages.json")
WEIGHTS = FileRef("weights", bytes(range(32)), 32769, (b"a" * 16, b"b" * 16))
TASK = Task(
    epochs=2,
    learning_rate=0.1,
    sparsity=0.02,
    bits=4,
    fraction=0.5,
    seed=7,
    proximal=0.01,
    by_layer=True,
    sampled=True,
    context=True,
    price=0.25,
    correction=0.5,
    rate="loss",
    loss=1.25,
    biased=True,
)
DIFFERENCE = Difference(b"b" * 32, FileRef("difference", bytes(range(32, 64)), 4711, (b"d" * 16,)))
FIT = Fit(98_000_000, 12.5, 256, 2, "x86_64, a processor, ONNX Runtime 1.19.2")
HEALTH = Health(drop=0.05, seconds=60.0, starts=2, tolerance=1e-4)
MESSAGES: dict[str, msgspec.Struct] = {
    "file-ref": WEIGHTS,
    "manifest": Manifest(
        model="digits",
        version=3,
        profile="rpi-zero-2w",
        variant="w0.5",
        engine="portable",
        layout=Layout((Tensor("fc.weight", (10, 64)), Tensor("fc.bias", (10,), "frozen", personal=True))),
        input_shape=(1, 8, 8),
        classes=10,
        batch=32,
        files=(WEIGHTS,),
        round_key=b"k" * 32,
        created=1_700_000_000,
        expires=1_800_000_000,
        recipe=Recipe("bce", "adamw", proximal=True),
    ),
    "task": TASK,
    "difference": DIFFERENCE,
    "round-order": RoundOrder("digits", 3, "w0.5", 12, WEIGHTS, TASK, 1_700_000_600, (DIFFERENCE,)),
    "round-order-end": RoundOrder("digits", 3, "w0.5", 13, WEIGHTS, None, 1_700_000_600),
    "signed": Signed("round", b"payload", "online-1", b"s" * 64),
    "want": Want(bytes(range(32)), 9, b"\x81\x01"),
    "block": Block(bytes(range(16)), 1, b"\x00"),
    "block-sent": Block(bytes(range(16)), 1, b"\x00", sent=36001),
    "want-heard": Want(bytes(range(32)), 9, b"\x81\x01", heard=36001),
    "want-fresh": Want(bytes(range(32)), 9, b"\x81\x01", fresh=True),
    "state-birth": State(5, True, "rpi-zero-2w", "portable", "0.1.0", (Installed("digits", 3, "w0.5"),)),
    "state-death": State(5, False),
    "update-part": UpdatePart("digits", 3, "w0.5", 12, 480, 2.25, 1.5, bytes(32), 0, 1, b"update", before=9),
    "receipt": Receipt("digits", 3, 12, bytes(32), False, "too late"),
    "report": Report("digits", 3, 12, "training", 40, 123_456, 98_000_000, ""),
    "report-code": Report("digits", 3, 0, "reverted", 100, 1, 2, "no better", "trial-metric", fetched=65_536),
    "want-alone": Want(bytes(range(32)), 9, b"\x81\x01", alone=True),
    "health": HEALTH,
    "fit": FIT,
    "assigned": Assigned("digits", 3, rollout=4),
    "assignment": Assignment("cam-01", 7, 1_700_000_000, 1_700_600_000, (Assigned("digits", 3, rollout=4), Assigned("hum", 1))),
    "claim-request": ClaimRequest("cam-01", b"t" * 43, b"\x30\x03csr", "rpi-zero-2w"),
    "claim-reply": ClaimReply(b"-----BEGIN CERTIFICATE-----", b"root"),
    "claim-refused": ClaimReply(code="used", text="the claim was used before"),
    "renew-request": RenewRequest("4a5b6c", b"\x30\x03csr"),
    "renewed": Renewed(b"-----BEGIN CERTIFICATE-----"),
    "rotate": Renewed(code="rotate"),
}
MESSAGES["manifest-delivered"] = msgspec.structs.replace(
    MESSAGES["manifest"], health=HEALTH, differences=(DIFFERENCE,), sources=("https://models.example.org/blobs",)
)
MESSAGES["task-ramped"] = msgspec.structs.replace(TASK, mutual=0.25)
MESSAGES["manifest-rehearsed"] = msgspec.structs.replace(MESSAGES["manifest"], fit=FIT)


def vectors() -> dict[str, str]:
    """Hexadecimal encoding by name."""
    return {name: encode(message).hex() for name, message in MESSAGES.items()}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(vectors(), indent=1) + "\n")
