"""Promises of the running service: its unit, its sandbox, training in it, what it says, the watchdog, a clock that is wrong."""

import json
import time
from pathlib import Path

from land import UNIT, Land
from report import DEVICE, MODEL, PROFILE, Report, edgefl, until

from edgefl.profile import shipped_profiles


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
