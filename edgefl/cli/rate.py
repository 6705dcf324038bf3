"""Rates on the command line: `500KB/s`, `2.5 MB/s`, `64KiB/s`, or bytes per second as a bare number."""

import re

import click

UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}
SLOWEST = 1000
"""Bytes per second below which a limit is taken for a slip of the pen: one block would take half a minute."""


def rate(text: str) -> float:
    """Bytes per second. A usage error when it is no rate, or below `SLOWEST`."""
    match = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([KMG]?I?B?)(?:/s)?\s*", text, re.IGNORECASE | re.ASCII)
    unit = UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise click.BadParameter(f"{text[:40]!r} is no rate; give a number and a unit, for example 10MB/s or 64KB/s")
    found = float(match[1]) * unit
    if found < SLOWEST:
        raise click.BadParameter(f"{text[:40]!r} is too slow; give at least 1KB/s")
    return found
