"""The battery that the board runs on, as the kernel tells of it.

Model: each supply is a directory of small files (Documentation/ABI/testing/sysfs-class-power of Linux): `type`, `status`,
`capacity` in percent, and `scope`, which is `Device` for the battery of a mouse. A board without a battery runs on mains.
"""

from pathlib import Path

SUPPLIES = Path("/sys/class/power_supply")


def battery_percent(root: Path = SUPPLIES) -> int | None:
    """Charge of the weakest battery that is discharging, 0 to 100; None if there is none, or if it cannot be found out."""
    found = []
    for supply in sorted(root.glob("*")):
        ours = _read(supply / "type") == "Battery" and _read(supply / "scope") != "Device"
        capacity = _read(supply / "capacity")
        if ours and _read(supply / "status") == "Discharging" and capacity.isdecimal():
            found.append(min(100, int(capacity)))
    return min(found, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
