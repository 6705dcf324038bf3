"""What may stand in `--source` and in `--rate`."""

import click
import pytest

from edgefl.cli.rate import rate
from edgefl.errors import InputError
from edgefl.wire.sources import MOST, check_source, check_sources, is_web, place_of


@pytest.mark.parametrize("source", ["https://example.org/blobs", "https://10.0.0.7:8443/a/b", "https://x", "file:///media/usb"])
def test_sources_are_https_or_files(source: str) -> None:
    """A host and a directory, or a directory on the board; a slash at the end does not matter."""
    assert check_source(source) == source
    assert check_source(source + "/") == source
    assert check_source(check_source(source)) == source


@pytest.mark.parametrize(
    "source",
    [
        "",
        "http://example.org",
        "ftp://example.org",
        "https://",
        "https:///x",
        "https://user:secret@example.org/x",
        "https://example.org/x?y=1",
        "https://example.org/x#y",
        "https://example.org/a b",
        "https://exämple.org",
        "https://example.org/\n",
        "https://[::1",
        "file://host/x",
        "file:x",
        "/media/usb",
        "https://example.org/" + "x" * 500,
    ],
)
def test_everything_else_is_refused_with_what_to_write(source: str) -> None:
    """Plain HTTP, other protocols, credentials, queries and what is no address."""
    with pytest.raises(InputError, match="https://HOST/DIR"):
        check_source(source)


def test_there_are_few_sources() -> None:
    """A manifest has room for so many."""
    check_sources(["https://example.org"] * MOST)
    with pytest.raises(InputError, match="too many"):
        check_sources(["https://example.org"] * (MOST + 1))


def test_files_are_named_by_their_hash() -> None:
    """As in the fleet's blob directory."""
    sha256 = bytes(range(32))
    assert is_web("https://example.org/b")
    assert place_of("https://example.org/b", sha256) == f"https://example.org/b/{sha256.hex()}"
    assert place_of("file:///media/my%20stick", sha256) == f"/media/my stick/{sha256.hex()}"
    assert check_source(check_source("file:///")) == "file:///"
    assert place_of("file:///", sha256) == f"/{sha256.hex()}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10MB/s", 10e6),
        ("64KB/s", 64e3),
        ("64 KiB/s", 65536),
        ("2.5mb", 2.5e6),
        ("5000", 5000),
        ("1GB/s", 1e9),
        (" 1 KB/s ", 1000),
    ],
)
def test_rates_are_numbers_with_units(text: str, expected: float) -> None:
    """Decimal and binary units, with or without `/s`."""
    assert rate(text) == expected


@pytest.mark.parametrize("text", ["", "fast", "-1MB/s", "10", "0KB/s", "1e9", "10XB/s", "10MB/h", "10 M B", "٣MB", "9" * 40])
def test_what_is_no_rate_is_refused(text: str) -> None:
    """Also what is so slow that it must be a slip of the pen."""
    with pytest.raises(click.BadParameter):
        rate(text)
