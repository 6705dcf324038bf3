"""What pip has to fetch for a wheel's `device` extra on an aarch64 board with Debian 12's Python: one requirement per line.

`pip download --platform` chooses files for another machine but evaluates markers for its own; so they are evaluated here. The
board's own pip evaluates them once more when it installs, and has nothing but these files to choose from.
"""

import sys
import zipfile
from email.parser import Parser

from packaging.requirements import Requirement

BOARD = {"platform_machine": "aarch64", "sys_platform": "linux", "python_version": "3.11", "extra": "device"}


def requirements(wheel: str) -> list[str]:
    """The wheel's requirements that hold on the board, without their markers."""
    archive = zipfile.ZipFile(wheel)
    metadata = Parser().parsestr(archive.read(next(n for n in archive.namelist() if n.endswith("/METADATA"))).decode())
    wanted = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    return [f"{r.name}{r.specifier}" for r in wanted if r.marker is None or r.marker.evaluate(BOARD)]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
