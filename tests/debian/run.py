"""Promises of what is put on a board, each tried in a Debian 12 with its own systemd; see run.sh.

Tested: install.sh from wheels alone, the unit under a real systemd (start, readiness, status, watchdog, sandbox, user, files), a
round of training inside the sandbox, repair, upgrade, both ways in which an upgrade can fail, an interrupted upgrade, waiting for
the time, removal with and without the state. Where the kernel gives the user land no memory controller (the report says so), that
MemoryMax is set is tested, and that it is enforced is not. Not tested: a kernel's own boot, udev, devices such as cameras.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from installing import fresh, removal, repair, upgrades
from land import Land, remove
from report import DEVICE, PROFILE, Report, edgefl
from running import late, sandbox, training, unit, voices, watchdog

from edgefl.demo.processes import Company
from edgefl.demo.stage import free_port

CRASH = "raise RuntimeError('this version is broken')\n"
BAD_START = "edgefl/device/start.py"
BAD_IMPORT = "edgefl/__init__.py"


def main() -> int:
    """Run everything; 0 if every promise holds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="edgefl-debian-"))
    scratch = options.cache / "scratch"
    remove(scratch)
    report = Report()
    try:
        prepare(options.cache, work)
        with company(work):
            land = Land(options.cache, scratch, work)
            try:
                course(land, work, report)
            finally:
                print(land.journal() if not all(report.promises.values()) else "", file=sys.stderr)
                land.close()
    finally:
        remove(scratch)
        remove(work)
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(json.dumps({"promises": report.promises, **report.figures}, indent=2) + "\n")
    broken = [promise for promise, held in report.promises.items() if not held]
    print(f"broken: {', '.join(broken)}" if broken else f"all {len(report.promises)} promises hold")
    return 1 if broken else 0


def prepare(cache: Path, work: Path) -> None:
    """A fleet, a bundle, and wheels of this version and of later ones, good and bad."""
    work.chmod(0o755)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 1, 28, 28)).astype(np.float32)
    np.savez(work / "examples.npz", x=x, y=np.arange(64) % 10)
    fleet = ("--fleet", str(work / "fleet"))
    edgefl("init", str(work / "fleet"), "--port", str(free_port()))
    edgefl("provision", DEVICE, "--profile", PROFILE, "--out", str(work), "--data", "npz:/mnt/examples.npz", *fleet)
    (work / "for").write_text("")
    shutil.copytree(cache / "wheels", work / "wheels")
    (own,) = (work / "wheels").glob("edgefl_fleet-*.whl")
    for number, place in ((1, ""), (2, BAD_START), (3, BAD_IMPORT)):
        changed(own, work / "wheels", f"9.0.{number}", place)
    later = work / "later"
    later.mkdir()
    for path in (work / "wheels").glob("edgefl_fleet-9.*"):
        path.rename(later / path.name)


def changed(wheel: Path, directory: Path, version: str, crash: str) -> Path:
    """The wheel with another version number, and perhaps with a module that cannot be imported."""
    old = wheel.name.split("-")[1]
    made = directory / wheel.name.replace(old, version, 1)
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(made, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith(".dist-info/METADATA"):
                data = data.replace(f"\nVersion: {old}".encode(), f"\nVersion: {version}".encode())
            elif item.filename.endswith(".dist-info/RECORD"):
                data = data.replace(f"-{old}.dist-info".encode(), f"-{version}.dist-info".encode())
            elif item.filename == crash:
                data += CRASH.encode()
            target.writestr(item.filename.replace(f"-{old}.dist-info", f"-{version}.dist-info"), data)
    return made


@contextmanager
def company(work: Path) -> Iterator[None]:
    """Broker and server, ended in order whatever happens."""
    processes = Company(work)
    fleet = ("--fleet", str(work / "fleet"))
    try:
        processes.start("broker", "broker", *fleet).wait_for("broker ready", 60.0)
        processes.start("server", "serve", *fleet).wait_for("serving fleet", 60.0)
        yield
    finally:
        processes.close()


def course(land: Land, work: Path, report: Report) -> None:
    """All promises in order."""
    report.figures["systemd"] = land.shell("systemctl --version | head -1")
    report.figures["limits_enforced"] = land.limits
    fresh(land, report)
    unit(land, report)
    sandbox(land, report)
    training(land, work, report)
    voices(land, report)
    repair(land, report)
    upgrades(land, report)
    watchdog(land, report)
    late(land, report)
    removal(land, work, report)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    sys.exit(main())
