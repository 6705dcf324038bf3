"""A Debian user land that is booted with its own systemd, and commands in it."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

BOOT_SECONDS = 60.0
UNIT = "edgefl-device.service"


class Land:
    """A booted user land.

    Args:
        cache: where `root` is.
        scratch: directory for what it changes.
        shared: directory that it sees as /mnt.
    """

    def __init__(self, cache: Path, scratch: Path, shared: Path) -> None:
        mounted = subprocess.run(["findmnt", "-nro", "TARGET", "-t", "cgroup2"], capture_output=True, text=True, check=True)
        self._group = Path(mounted.stdout.split()[0]) / "edgefl-debian"
        self._group.mkdir(exist_ok=True)
        command = [Path(__file__).with_name("boot.sh"), cache / "root", scratch, shared, self._group]
        self._outer = subprocess.Popen(command)
        self._inner = 0
        self.root = Path("/")
        deadline = time.monotonic() + BOOT_SECONDS
        while not self._is_up():
            if time.monotonic() > deadline or self._outer.poll() is not None:
                self.close()
                raise SystemExit("skipped: systemd does not boot in namespaces here")
            time.sleep(0.2)

    def _is_up(self) -> bool:
        children = subprocess.run(
            ["pgrep", "-P", str(self._outer.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        if not children:
            return False
        self._inner = int(children[0])
        self.root = Path(f"/proc/{self._inner}/root")
        return self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

    def run(self, *command: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """A command as root, in a clean environment."""
        enter = ["nsenter", "-t", str(self._inner), "-m", "-p", "-u", "-i", "-C", "--"]
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "EDGEFL_SETTLE=2"]
        done = subprocess.run([*enter, *clean, *command], capture_output=True, text=True, check=False, timeout=600)
        if check and done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done

    def shell(self, script: str) -> str:
        """What a shell prints."""
        return self.run("sh", "-c", script).stdout.strip()

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.run("systemctl", "show", UNIT, "--property", name, "--value").stdout.strip()

    def journal(self) -> str:
        """What the service has said."""
        return self.run("journalctl", "-u", UNIT, "--no-pager", "-n", "60", "-o", "cat").stdout

    @property
    def limits(self) -> bool:
        """Whether the kernel lets this user land enforce memory limits."""
        return "memory" in (self._group / "cgroup.controllers").read_text().split()

    def close(self) -> None:
        """Switch it off."""
        if self._inner:
            subprocess.run(["kill", "-KILL", str(self._inner)], check=False)
        self._outer.send_signal(signal.SIGKILL)
        self._outer.wait()
        for _ in range(50):
            for directory in sorted(self._group.rglob("*"), key=lambda path: -len(path.parts)):
                if directory.is_dir():
                    _remove(directory)
            if _remove(self._group):
                return
            time.sleep(0.1)


def _remove(group: Path) -> bool:
    """Remove a cgroup, if nobody is in it any more."""
    try:
        group.rmdir()
    except OSError:
        return not group.exists()
    return True


def remove(directory: Path) -> None:
    """Delete what a land has left behind."""
    shutil.rmtree(directory, ignore_errors=True)
