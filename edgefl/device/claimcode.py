"""A claim as one line of text, small enough for a QR code on a label, and what a board reads out of such a line.

edgefl://claim/FLEET/ID?token=TOKEN&host=HOST&port=PORT&expires=SECONDS
"""

from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from edgefl.device.identity import ClaimFile
from edgefl.errors import InputError

LONGEST = 500


def claim_code(fleet: str, device: str, claim: ClaimFile) -> str:
    """The line for a claim of this device."""
    values = {"token": claim.token, "host": claim.host, "port": claim.port, "expires": claim.expires}
    return f"edgefl://claim/{fleet}/{device}?{urlencode(values)}"


def read_code(code: str, device: str) -> ClaimFile:
    """The claim in a line, which has to be for this device.

    Raises:
        InputError: no such line, or another device's.
    """
    text = code.strip()
    remedy = "Give the whole text of the label's QR code"
    if len(text) > LONGEST or not text.startswith("edgefl://claim/"):
        raise InputError("no claim code", expected="edgefl://claim/FLEET/ID?token=...", remedy=remedy)
    try:
        parts = urlsplit(text)
        values = dict(parse_qsl(parts.query, strict_parsing=True))
        claim = msgspec.convert(values, ClaimFile, strict=False)
    except (ValueError, msgspec.ValidationError) as error:
        raise InputError("a claim code that does not decode", found=str(error)[:100], remedy=remedy) from None
    named = parts.path.rpartition("/")[2]
    if named != device:
        raise InputError("a claim code for another device", expected=device, found=named[:40], remedy="Take this board's label")
    return claim
