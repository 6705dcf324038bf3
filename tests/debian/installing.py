"""Promises of install.sh and uninstall.sh: a fresh board, repair, upgrades good and bad, an interrupted one, removal."""

import shutil
import subprocess
import time
from pathlib import Path

from land import UNIT, Land
from report import DEVICE, MODEL, Report, until


def install(land: Land, *arguments: str, bundle: str = f"/mnt/{DEVICE}") -> subprocess.CompletedProcess[str]:
    """Run install.sh of a bundle."""
    return land.run("sh", f"{bundle}/install.sh", *arguments)


def version(land: Land) -> str:
    """Of the environment in use."""
    return land.shell("/opt/edgefl/bin/python -m pip show edgefl-fleet 2>/dev/null | sed -n 's/^Version: //p'")


def environments(land: Land) -> list[str]:
    """The environments on the board."""
    return land.shell("cd /opt/edgefl.d 2>/dev/null && ls -d */").split()


def fresh(land: Land, report: Report) -> None:
    """A board that has never seen edgefl, without an index."""
    before = land.shell("find /etc /opt /var/lib -newer /mnt/for | sort")
    refused = install(land, "--wheels", "/nonexistent")
    report.check(
        "wrong arguments are refused before anything is changed", refused.returncode == 1 and "no directory" in refused.stderr
    )
    report.check("nothing was changed", before == land.shell("find /etc /opt /var/lib -newer /mnt/for | sort"))
    began = time.monotonic()
    done = install(land, "--wheels", "/mnt/wheels")
    report.figures["install_seconds"] = round(time.monotonic() - began, 1)
    report.check("install.sh installs from wheels alone", done.returncode == 0, done.stderr)
    report.check("it says to delete the bundle's copy of the key", "delete /mnt" in done.stdout, done.stdout)
    report.check("the service is active and enabled", land.show("ActiveState") + land.show("UnitFileState") == "activeenabled")
    report.check("it connects to the broker", until(lambda: land.show("StatusText") == "connected, 0 models", 30), land.journal())
    report.figures["environment_mib"] = int(land.shell("du -sm /opt/edgefl.d | cut -f 1"))


def repair(land: Land, report: Report) -> None:
    """The same again."""
    names = environments(land)
    land.run("rm", "/etc/systemd/system/" + UNIT)
    land.run("chmod", "0666", "/etc/edgefl/device.key")
    done = install(land, "--wheels", "/mnt/wheels")
    report.check("running it again repairs unit and permissions", done.returncode == 0, done.stderr)
    report.check("the key is closed again", land.shell("stat -c %a /etc/edgefl/device.key") == "640")
    report.check("the environment was not built again", environments(land) == names, environments(land))
    report.check(
        "the model is still there", until(lambda: land.show("StatusText") == "connected, 1 model", 30), land.show("StatusText")
    )
    other = land.shell(
        f"cp -r /mnt/{DEVICE} /root/other && sed -i 's/^id = .*/id = \"board-02\"/' /root/other/device.toml && echo done"
    )
    refused = install(land, "--wheels", "/mnt/wheels", bundle="/root/other")
    told = refused.returncode == 1 and f"is device {DEVICE} already" in refused.stderr
    report.check("another device's bundle is refused", other == "done" and told, refused.stderr)


def upgrades(land: Land, report: Report) -> None:
    """To a good version, and to two bad ones; and one that is killed half-way."""
    own = "/etc/edgefl"
    later = "/mnt/later/edgefl_fleet-9.0.{}-py3-none-any.whl"
    done = install(land, "--wheels", "/mnt/wheels", later.format(1), bundle=own)
    report.check("the installed bundle upgrades itself", done.returncode == 0 and version(land) == "9.0.1", done.stderr)
    report.check("the old environment is gone", len(environments(land)) == 1, environments(land))
    names, pid = environments(land), land.show("MainPID")

    done = install(land, "--wheels", "/mnt/wheels", later.format(3), bundle=own)
    told = done.returncode == 1 and "Nothing has been changed" in done.stderr
    report.check("a version that does not load is refused", told and environments(land) == names, done.stderr)
    report.check("the agent was not even restarted", land.show("MainPID") == pid)

    done = install(land, "--wheels", "/mnt/wheels", later.format(2), bundle=own)
    told = done.returncode == 1 and "the old one is back" in done.stderr
    report.check("a version whose service does not start is taken back", told and version(land) == "9.0.1", done.stderr)
    report.check("nothing of it is left", environments(land) == names, environments(land))
    report.check("the old agent runs", until(lambda: land.show("StatusText") == "connected, 1 model", 30), land.journal())

    begun = f"sh {own}/install.sh --wheels /mnt/wheels {later.format(2)} >/dev/null 2>&1"
    land.shell(f"{begun} & sleep 3; kill -9 $!")
    report.check("a killed installer leaves the agent running", land.show("ActiveState") == "active" and version(land) == "9.0.1")
    done = install(land, "--wheels", "/mnt/wheels")
    while "another installation is running" in done.stderr:  # pip outlives the shell that was killed
        time.sleep(1.0)
        done = install(land, "--wheels", "/mnt/wheels")
    report.check("the next run clears up after it", done.returncode == 0 and len(environments(land)) == 1, done.stderr)


def removal(land: Land, work: Path, report: Report) -> None:
    """Uninstalling, coming back, and leaving no trace; then a bundle with a claim."""
    done = land.run("sh", "/etc/edgefl/uninstall.sh")
    left = land.shell("ls -d /opt/edgefl /opt/edgefl.d /etc/systemd/system/*edgefl* 2>/dev/null")
    report.check("uninstall.sh removes service and program", done.returncode == 0 and left == "", done.stderr + left)
    kept = land.shell(f"ls /etc/edgefl/device.key /var/lib/edgefl/models/{MODEL}/* | wc -l")
    report.check("identity and state stay", int(kept) > 1, kept)
    report.check("a second time does no harm", land.run("sh", "/etc/edgefl/uninstall.sh").returncode == 0)
    install(land, "--wheels", "/mnt/wheels", bundle="/etc/edgefl")
    back = until(lambda: land.show("StatusText") == "connected, 1 model", 30)
    report.check("install.sh brings it back with what it had learned", back, land.journal())
    done = land.run("sh", "/etc/edgefl/uninstall.sh", "--purge")
    left = land.shell(
        "ls -d /opt/edgefl* /etc/edgefl /var/lib/edgefl /etc/systemd/system/*edgefl* 2>/dev/null; getent passwd edgefl"
    )
    report.check("--purge leaves nothing", done.returncode == 0 and left == "", done.stderr + left)

    claim = work / "claimed"
    shutil.copytree(work / DEVICE, claim, ignore=shutil.ignore_patterns("device.key", "device.crt"))
    (claim / "claim.toml").write_text('token = "secret"\n')
    done = install(land, "--wheels", "/mnt/wheels", bundle="/mnt/claimed")
    mode = land.shell("stat -c '%a %U:%G' /var/lib/edgefl/claim.toml")
    report.check("a bundle with a claim needs no key and no certificate", "missing" not in done.stderr, done.stderr)
    report.check("the claim's secret is closed", mode == "600 edgefl:edgefl", mode)
