"""Where the tested agent lives, and its figures: versions, the peak sizes of its processes, the size of its environment."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
NOT_OURS = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")
"""What any virtual environment holds."""


@dataclass(frozen=True)
class Board:
    """Where the tested agent lives: a root directory (`/` on a real board), and a Python environment inside it."""

    root: Path
    venv: str

    @property
    def emulated(self) -> bool:
        """Whether it is another user land."""
        return self.root != Path("/")

    def command(self, *arguments: str) -> list[str]:
        """A command line that runs the board's Python with these arguments."""
        enter = ["chroot", str(self.root)] if self.emulated else []
        return ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", *enter, f"{self.venv}/bin/python", *arguments]

    def seen(self, path: Path) -> str:
        """What the board calls a path of ours."""
        return "/" + str(path.relative_to(self.root)) if self.emulated else str(path)

    def site(self) -> Path:
        """The environment's packages."""
        return next((self.root / self.venv.lstrip("/") / "lib").glob("python3.*")) / "site-packages"


def output(command: Sequence[str]) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def machine(python: Sequence[str]) -> dict[str, str]:
    """Architecture and versions, as a Python says itself."""
    code = (
        "import platform, numpy; from importlib.metadata import distributions as d; "
        "ort = [f'{x.name} {x.version}' for x in d() if (x.name or '').startswith('onnxruntime')]; "
        "print(platform.machine(), platform.python_version(), numpy.__version__, *ort, sep=';')"
    )
    words = output([*python, "-c", code]).strip().split(";")
    return dict(zip(("machine", "python", "numpy", "onnxruntime"), words, strict=True))


def peaks(agent: int) -> dict[str, float]:
    """Peak resident size of an agent and of its trainer, which idles for a while after its work, in MB."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    found = dict(zip(("agent", "trainer"), map(peak, (agent, *map(int, children))), strict=False))
    return {name: round(value / 1e6, 1) for name, value in found.items()}


def peak(pid: int) -> int:
    """VmHWM of a process in bytes."""
    found = re.search(r"^VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def installed(board: Board) -> dict[str, Any]:
    """Size of the device extra as `install.sh` leaves it, byte code included; not what every environment has."""
    sizes: dict[str, int] = {}
    compiled = 0
    for path in board.site().rglob("*"):
        package = path.relative_to(board.site()).parts[0].partition("-")[0].removesuffix(".libs")
        if path.is_file() and not path.is_symlink() and package.removesuffix(".pth") not in NOT_OURS:
            sizes[package] = sizes.get(package, 0) + path.stat().st_size
            compiled += path.stat().st_size if path.suffix == ".pyc" else 0
    total = sum(sizes.values())
    largest = {name: round(size / MIB, 1) for name, size in sorted(sizes.items(), key=lambda item: -item[1]) if size > MIB}
    return {"bytes": total, "mib": round(total / MIB, 1), "byte_code_mib": round(compiled / MIB, 1), "largest_mib": largest}
