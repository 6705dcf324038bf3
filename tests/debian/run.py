"""Promises of what is put on a board, each tried in a Debian 12 with its own systemd; see run.sh.

Tested: install.sh from wheels alone, the unit under a real systemd (start, readiness, status, watchdog, sandbox, user, files), a
round of training inside the sandbox, repair, upgrade, both ways in which an upgrade can fail, an interrupted upgrade, waiting for
the time, removal with and without the state. Where the kernel gives the user land no memory controller (the report says so), that
MemoryMax is set is tested, and that it is enforced is not. Not tested: a kernel's own boot, udev, devices such as cameras.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from land import UNIT, Land, remove

from edgefl.demo.processes import Company
from edgefl.demo.stage import free_port
from edgefl.profile import shipped_profiles

DEVICE, MODEL = "board-01", "mnist-cnn"
PROFILE = {"x86_64": "x86-64-gateway", "aarch64": "rpi-4b-2gb"}[os.uname().machine]
PATIENCE = 180.0
CRASH = "raise RuntimeError('this version is broken')\n"
BAD_START = "edgefl/device/start.py"
BAD_IMPORT = "edgefl/__init__.py"


class Report:
    """Promises, in the order in which they were tried."""

    def __init__(self) -> None:
        self.promises: dict[str, bool] = {}
        self.figures: dict[str, object] = {}

    def check(self, promise: str, held: object, found: object = "") -> None:
        """Note whether a promise held."""
        self.promises[promise] = bool(held)
        print(f"{'ok    ' if held else 'BROKEN'} {promise}" + ("" if held else f"\n       found: {found}"), flush=True)


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


def edgefl(*arguments: str) -> str:
    """Run a command of ours; what it printed."""
    done = subprocess.run([sys.executable, "-m", "edgefl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"edgefl {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout


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


def until(reached: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Wait; whether it came to pass."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


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


def unit(land: Land, report: Report) -> None:
    """What systemd says of the unit."""
    profile = shipped_profiles()[PROFILE]
    found = land.run("systemd-analyze", "verify", UNIT)
    report.check("systemd accepts every line of the unit", found.returncode == 0 and not found.stderr, found.stderr)
    told = {name: land.show(name) for name in ("Type", "NotifyAccess", "WatchdogUSec", "MemoryMax", "MemoryHigh", "TasksMax")}
    wanted = {
        "Type": "notify",
        "NotifyAccess": "main",
        "WatchdogUSec": "1min",
        "MemoryMax": str((profile.memory_mb + 192) << 20),
        "MemoryHigh": str((profile.memory_mb + 144) << 20),
        "TasksMax": str(32 + 4 * profile.threads),
    }
    report.check("limits and watchdog are as the profile says", told == wanted, told)
    quota = land.show("CPUQuotaPerSecUSec")
    report.check("the processor is limited", quota.rstrip("s") == f"{profile.threads + 0.5:.6f}", quota)
    lines = land.run("systemd-analyze", "security", "--no-pager", UNIT).stdout.splitlines()
    report.figures["exposure"] = float(lines[-1].split(":")[1].split()[0])
    report.check("the unit's exposure is at most 2.0", report.figures["exposure"] <= 2.0, lines[-1])


def sandbox(land: Land, report: Report) -> None:
    """Files, user and what the running process may do."""
    told = "stat -c '%n %a %U:%G'"
    modes = land.shell(f"cd /etc/edgefl && {told} . device.key device.toml device.crt install.sh && {told} -L /var/lib/edgefl")
    wanted = ". 750 root:edgefl\ndevice.key 640 root:edgefl\ndevice.toml 644 root:edgefl\ndevice.crt 644 root:edgefl\n"
    wanted += "install.sh 644 root:root\n/var/lib/edgefl 700 edgefl:edgefl"
    report.check("files belong to whom they should", modes == wanted, modes)
    report.check(
        "nobody else reads the key",
        land.run("setpriv", "--reuid=nobody", "--clear-groups", "cat", "/etc/edgefl/device.key").returncode,
    )
    pid = land.show("MainPID")
    status = dict(line.split(":\t", 1) for line in land.shell(f"cat /proc/{pid}/status").splitlines() if ":\t" in line)
    report.check("the agent is not root", status["Uid"].split()[0] == land.shell("id -u edgefl"), status["Uid"])
    held = (int(status["CapEff"], 16), int(status["CapBnd"], 16), status["NoNewPrivs"], status["Seccomp"])
    report.check("it has no capability, cannot get one, and its system calls are filtered", held == (0, 0, "1", "2"), held)
    inside = f"nsenter -t {pid} -m sh -c"
    report.check("the system is read-only to it", land.shell(f"{inside} 'touch /etc/x /opt/x 2>&1'").count("Read-only") == 2)
    report.check("it sees no home", land.shell(f"{inside} 'ls /root /home 2>&1 | grep -v :'") == "")
    environment = land.shell(f"tr '\\0' '\\n' </proc/{pid}/environ")
    report.check("asking for a name is bounded", "RES_OPTIONS=timeout:2 attempts:2" in environment, environment)
    command = land.shell(f"tr '\\0' ' ' </proc/{pid}/cmdline")
    report.check("it runs the unit's command", command.endswith("/edgefl device run /etc/edgefl"), command)


def training(land: Land, work: Path, report: Report) -> None:
    """A round inside the sandbox."""
    fleet = ("--fleet", str(work / "fleet"))
    edgefl("push", MODEL, *fleet)
    edgefl("train", "start", MODEL, "--rounds", "2", "--cohort", "1", "--epochs", "1", *fleet)

    def rounds() -> list[dict[str, object]]:
        return json.loads(edgefl("status", "--json", *fleet))["trainings"][0]["rounds"]

    report.check("ONNX Runtime trains inside the sandbox", until(lambda: len(rounds()) == 2), land.journal())
    report.figures["memory_peak"] = land.show("MemoryPeak") or "not told"


def voices(land: Land, report: Report) -> None:
    """What the doctor and the log say."""
    doctor = "STATE_DIRECTORY=/var/lib/edgefl /opt/edgefl/bin/edgefl device doctor /etc/edgefl --json"
    said = json.loads(land.shell(doctor))
    checks = {check["name"]: check for check in said["checks"]}
    report.check("the doctor finds the board able", said["able"], said["checks"])
    watched = "watched every 1min" in checks["service"]["text"]
    report.check("and its service watched", watched and checks["service"]["state"] == "ok", checks["service"])
    land.shell(f"mkdir -p /etc/systemd/system/{UNIT}.d")
    land.shell(f"printf '[Service]\nEnvironment=EDGEFL_LOG_FORMAT=json\n' >/etc/systemd/system/{UNIT}.d/test.conf")
    land.shell(f"systemctl daemon-reload; systemctl restart {UNIT}")
    until(lambda: land.show("StatusText").startswith("connected"), 30)
    lines = land.shell(f"journalctl _PID={land.show('MainPID')} -o cat --no-pager").splitlines()
    devices = {json.loads(line)["device"] for line in lines}
    report.check("the journal holds JSON lines that name the device", lines and devices == {DEVICE}, lines)
    land.shell(f"rm -r /etc/systemd/system/{UNIT}.d; systemctl daemon-reload")


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


def watchdog(land: Land, report: Report) -> None:
    """An agent that hangs is started anew."""
    drop_in = "[Service]\\nWatchdogSec=4\\nRestartSec=1\\nTimeoutAbortSec=3\\n"
    land.shell(f"mkdir -p /etc/systemd/system/{UNIT}.d && printf '{drop_in}' >/etc/systemd/system/{UNIT}.d/test.conf")
    land.shell(f"systemctl daemon-reload; systemctl restart {UNIT}; sleep 10")
    report.check("an agent that gets on is left alone", land.show("NRestarts") == "0", land.show("NRestarts"))
    pid = land.show("MainPID")
    land.shell(f"kill -STOP {pid}")
    began = time.monotonic()
    back = until(lambda: land.show("NRestarts") == "1" and land.show("StatusText").startswith("connected"), 40)
    report.figures["hung_until_back_seconds"] = round(time.monotonic() - began, 1)
    report.check("an agent that hangs is started anew by the watchdog", back and land.show("MainPID") != pid, land.journal())
    land.shell(f"rm -r /etc/systemd/system/{UNIT}.d; systemctl daemon-reload")


def late(land: Land, report: Report) -> None:
    """A clock that lies below what has passed."""
    clock = "/var/lib/edgefl/clock"
    land.shell(
        f"systemctl stop {UNIT}; cp -p {clock} /tmp/clock; echo 0 $(($(date +%s) + 900000)) >{clock}; systemctl start {UNIT}"
    )
    waits = until(lambda: land.show("StatusText") == "waiting for the time", 10)
    report.check("with a clock that is plainly behind the agent is ready and waits", waits, land.show("StatusText"))
    land.shell(f"systemctl stop {UNIT}; cp -p /tmp/clock {clock}; systemctl start {UNIT}")
    report.check("it connects with a clock that is right", until(lambda: land.show("StatusText").startswith("connected"), 30))


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


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    sys.exit(main())
