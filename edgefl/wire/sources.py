"""Other places than the broker where the files of a version may be had: what may stand in a manifest's `sources`. Pure.

A source is a directory in which each file has its SHA-256, 64 hexadecimal digits, as name: `https://host/dir` on a web server,
`file:///dir` on the board itself, for a USB stick. What comes from there is believed as little as what comes from the broker:
every block is checked against the believed manifest.
"""

from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from edgefl.errors import InputError

LONGEST = 400
MOST = 8


def check_source(source: str) -> str:
    """The same source without a slash at its end.

    Raises:
        InputError: it is neither `https://host/dir` nor `file:///dir`, or has a user, a query or a fragment.
    """
    expected = "https://HOST/DIR or file:///DIR"
    try:
        parts = urlsplit(source)
        plain = source.isascii() and source.isprintable() and " " not in source and len(source) <= LONGEST
        plain = plain and not (parts.username or parts.password or parts.query or parts.fragment)
        place = bool(parts.hostname) if parts.scheme == "https" else not parts.netloc and parts.path.startswith("/")
    except ValueError:
        plain = place = False
        parts = urlsplit("")
    if not plain or not place or parts.scheme not in ("https", "file"):
        raise InputError(
            "this is no source of files", expected=expected, found=source[:100], remedy="Correct the source's address"
        )
    return "file:///" if parts.scheme == "file" and not parts.path.strip("/") else source.rstrip("/")


def check_sources(sources: Sequence[str]) -> None:
    """Raises InputError when one of them is no source, or there are too many."""
    if len(sources) > MOST:
        raise InputError("too many sources", expected=f"at most {MOST}", found=f"{len(sources)}", remedy="Leave some out")
    for source in sources:
        check_source(source)


def is_web(source: str) -> bool:
    """Whether a source is on a web server."""
    return source.startswith("https://")


def place_of(source: str, sha256: bytes) -> str:
    """URL of a file on a web server, or path of a file on this machine."""
    return f"{source}/{sha256.hex()}" if is_web(source) else f"{unquote(urlsplit(source).path).rstrip('/')}/{sha256.hex()}"
