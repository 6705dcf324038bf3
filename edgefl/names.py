"""What a device id, a model name, a profile name or a fleet name may look like.

One rule for all of them, because each stands in a topic, a certificate, a file name and a shell command somewhere.
"""

import re

from edgefl.errors import InputError

SERVER = "edgefl-server"
"""Identity of the server on the broker; no device may have it."""
BROKER = "edgefl-broker"
"""Name in the broker's certificate; no device may have it."""
OBSERVER = "edgefl-check"
CHECK_DEVICES = ("check-a", "check-b")
"""Identities of `edgefl broker check`; no device may have them."""
RESERVED = frozenset({SERVER, BROKER, OBSERVER, *CHECK_DEVICES})

_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")


def is_id(value: str) -> bool:
    """Whether the value is 1 to 40 of `a-z 0-9 -`, not beginning or ending with a dash."""
    return _ID.fullmatch(value) is not None


def check_id(value: str, what: str = "device id") -> str:
    """The same id, if it may stand in a topic, a certificate and a file name.

    Raises:
        InputError: anything but 1 to 40 of `a-z 0-9 -`, not beginning or ending with a dash, or a name that edgefl itself uses.
    """
    if not is_id(value) or value in RESERVED:
        raise InputError(
            f"{what} {value!r} cannot be used",
            expected="1 to 40 characters of a-z, 0-9 and inner dashes" + (f", not {value!r}" if value in RESERVED else ""),
            remedy="Choose another, for example cam-01",
        )
    return value
