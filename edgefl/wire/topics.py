"""Topic names, in one place. What an id may look like stands in `edgefl.names`.

    efl/v1/up/DEVICE/state                   retained; birth and, as the will, death
    efl/v1/up/DEVICE/want                    which blocks of a file the device misses
    efl/v1/up/DEVICE/update                  one part of an encoded update
    efl/v1/up/DEVICE/report                  what the device did, or why it could not
    efl/v1/up/DEVICE/renew                   a request for a new certificate
    efl/v1/down/DEVICE/receipt               the server has stored (or refused) an update
    efl/v1/down/DEVICE/assignment            retained; the signed word which versions the device is to hold
    efl/v1/down/DEVICE/certificate           the answer to `renew`
    efl/v1/down/DEVICE/block                 blocks that the device asked for alone
    efl/v1/all/tuf/ROLE                      retained; TUF metadata: timestamp, snapshot, targets, N.root
    efl/v1/all/manifest/MODEL/PROFILE/VERSION  retained; a variant's manifest, which is a TUF target
    efl/v1/all/round/MODEL/VARIANT           retained; the signed order of the current round for a variant
    efl/v1/all/block/FILE                    blocks of one file, never retained; FILE is 16 hex digits of its SHA-256
    efl/v1/claim/NAME/request, .../reply     a board without a certificate asks for one, on the claim broker only; NAME is the
                                             client id, which a board draws at random

A device may write below `up/` with its own id and read below `down/` with its own id and below `all/`; the broker enforces it.
At most seven levels, so that AWS IoT Core can be the broker.
"""

from edgefl.errors import MessageError
from edgefl.names import SERVER as SERVER  # noqa: PLC0414 - the alias marks a re-export
from edgefl.names import check_id as check_id  # noqa: PLC0414 - the alias marks a re-export
from edgefl.names import is_id

ROOT = "efl/v1"
ALL_UP = f"{ROOT}/up/#"
ALL_CLAIMS = f"{ROOT}/claim/+/request"


def state(device: str) -> str:
    """Where a device says that it is there; its will says that it is gone."""
    return f"{ROOT}/up/{device}/state"


def want(device: str) -> str:
    """Where a device asks for blocks."""
    return f"{ROOT}/up/{device}/want"


def update(device: str) -> str:
    """Where a device sends its updates."""
    return f"{ROOT}/up/{device}/update"


def report(device: str) -> str:
    """Where a device reports progress and errors."""
    return f"{ROOT}/up/{device}/report"


def receipt(device: str) -> str:
    """Where the server acknowledges updates."""
    return f"{ROOT}/down/{device}/receipt"


def assignment(device: str) -> str:
    """Which versions a device is to hold."""
    return f"{ROOT}/down/{device}/assignment"


def metadata(name: str) -> str:
    """TUF metadata: `timestamp`, `snapshot`, `targets` or `N.root`; `+` subscribes to all of it."""
    return f"{ROOT}/all/tuf/{name}"


def target_path(model: str, profile: str, version: int) -> str:
    """Under which path the metadata lists a manifest; its topic ends with it."""
    return f"{model}/{profile}/{version}"


def manifest(model: str, profile: str, version: int) -> str:
    """The manifest of a version for a profile."""
    return f"{ROOT}/all/manifest/{target_path(model, profile, version)}"


def renew(device: str) -> str:
    """Where a device asks for its next certificate."""
    return f"{ROOT}/up/{device}/renew"


def certificate(device: str) -> str:
    """Where the server answers that."""
    return f"{ROOT}/down/{device}/certificate"


def claim_request(name: str) -> str:
    """Where a board asks for its first certificate; `name` is its client id on the claim broker."""
    return f"{ROOT}/claim/{name}/request"


def claim_reply(name: str) -> str:
    """Where the server answers that."""
    return f"{ROOT}/claim/{name}/reply"


def round_order(model: str, variant: str) -> str:
    """The current round's order for one variant."""
    return f"{ROOT}/all/round/{model}/{variant}"


def block(sha256: str) -> str:
    """The blocks of one file, named by the first 16 hex digits of its SHA-256."""
    return f"{ROOT}/all/block/{sha256[:16]}"


def own_block(device: str) -> str:
    """The blocks that a device has asked for alone."""
    return f"{ROOT}/down/{device}/block"


def parse_up(topic: str) -> tuple[str, str]:
    """Device id and kind (`state`, `want`, `update`, `report`, `renew`) of a topic that a device has written to.

    Raises:
        MessageError: the topic is no such topic.
    """
    match topic.split("/"):
        case ["efl", "v1", "up", device, ("state" | "want" | "update" | "report" | "renew") as kind] if is_id(device):
            return device, kind
    raise MessageError("message on a topic that no device writes to", found=topic[:100])


def parse_down(topic: str) -> tuple[str, str]:
    """Kind and name of a topic that the server writes to.

    The kinds are `receipt`, `certificate`, `assignment`, `tuf`, `manifest`, `round` and `block`. The name is the model's
    (`round`), the document's (`tuf`), the path in the metadata (`manifest`) or the file's (`block`).

    Raises:
        MessageError: the topic is no such topic.
    """
    match topic.split("/"):
        case ["efl", "v1", "down", device, ("receipt" | "certificate" | "assignment" | "block") as kind] if is_id(device):
            return kind, ""
        case ["efl", "v1", "all", "round", model, _] if is_id(model):
            return "round", model
        case ["efl", "v1", "all", "manifest", model, profile, version] if is_id(model):
            return "manifest", "/".join((model, profile, version))
        case ["efl", "v1", "all", ("tuf" | "block") as kind, name]:
            return kind, name
    raise MessageError("message on a topic that the server does not write to", found=topic[:100])


def parse_claim(topic: str) -> str:
    """The name of the board that has written to a claim topic.

    Raises:
        MessageError: the topic is no such topic.
    """
    match topic.split("/"):
        case ["efl", "v1", "claim", name, "request"] if is_id(name):
            return name
    raise MessageError("message on a topic that no board claims on", found=topic[:100])
