"""Mosquitto as the fleet's broker: its configuration written into the fleet directory, and the process.

The configuration is the commented template `broker/mosquitto.conf` with this fleet's paths filled in, written anew on every
start, so that the fleet directory may be moved. Mosquitto's messages go to `FLEET/broker/mosquitto.log`.
"""

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from types import TracebackType

from edgefl.brokers.acl import mosquitto_acl
from edgefl.brokers.listener import Listener, check_free, wait_ready
from edgefl.errors import BrokerError
from edgefl.store.atomic import store_error, write_file

PLACES = ("/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/opt/homebrew/sbin/mosquitto")
"""Where packages put it; `sbin` is not on every user's PATH."""
STOP_SECONDS = 5.0
LOG_LIMIT = 1 << 20


def find_mosquitto() -> str | None:
    """Path of the program, or None when it is not installed."""
    return shutil.which("mosquitto") or next((place for place in PLACES if os.access(place, os.X_OK)), None)


def write_configuration(listener: Listener) -> Path:
    """Write `mosquitto.conf` and the access file; returns the former.

    Raises:
        BrokerError: a path that Mosquitto's configuration cannot express.
        StoreError: a file cannot be written.
    """
    directory = listener.directory.resolve()
    values = {
        "PORT": str(listener.port),
        "BIND": listener.bind,
        # As root, Mosquitto would become the user `mosquitto`, who cannot read the fleet's keys; otherwise it ignores this line.
        "USER": pwd.getpwuid(os.geteuid()).pw_name,
        "CAFILE": str(listener.ca.resolve()),
        "CERTFILE": str(listener.certificate.resolve()),
        "KEYFILE": str(listener.key.resolve()),
        "CRL": f"crlfile {listener.crl.resolve()}"
        if listener.crl
        else "# no crlfile: revoked certificates still open a connection",
        "ACL": str(directory / "acl"),
        "DIRECTORY": f"{directory}/",
    }
    text = fill_in("mosquitto.conf", values)
    write_file(directory / "acl", mosquitto_acl(listener.revoked).encode(), 0o600)
    write_file(directory / "mosquitto.conf", text.encode(), 0o600)
    return directory / "mosquitto.conf"


def fill_in(name: str, values: dict[str, str]) -> str:
    """A template of `broker/` with these values. Raises BrokerError for a path that Mosquitto's configuration cannot express."""
    text = _template(name)
    for key, value in values.items():
        if value != value.strip() or not value.isprintable():
            raise BrokerError("Mosquitto cannot use this path", found=repr(value), remedy="Move the fleet directory")
        text = text.replace(f"@{key}@", value)
    return text


class Mosquitto:
    """A running Mosquitto; use it as a context manager, which stops it."""

    def __init__(self, listener: Listener, configure: Callable[[Listener], Path] = write_configuration) -> None:
        """Start it with the configuration that `configure` writes, and wait until it accepts TLS connections.

        Raises:
            BrokerError: it is not installed, the port is taken, it refuses the configuration, or it does not answer.
            StoreError: a file cannot be written.
        """
        program = find_mosquitto()
        if program is None:
            raise BrokerError(
                "Mosquitto is not installed", remedy="Install it (Debian: apt install mosquitto), or use --broker embedded"
            )
        check_free(listener)
        self._log = listener.directory / "mosquitto.log"
        configuration = configure(listener)
        try:
            if self._log.exists() and self._log.stat().st_size > LOG_LIMIT:
                self._log.replace(self._log.with_suffix(".log.1"))
            with self._log.open("ab") as log:
                self._start = log.tell()
                command = [*_die_with_us(), program, "-c", str(configuration)]
                self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except OSError as error:
            raise store_error("start Mosquitto with", configuration, error) from error
        try:
            wait_ready(listener, self.check)
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Raises BrokerError when the process has ended."""
        code = self.process.poll()
        if code is not None:
            raise BrokerError(
                f"Mosquitto ended with status {code}", found=self._tail(), remedy=f"See {self._log} and mosquitto.conf beside it"
            )

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the process ends; False when it still runs after `seconds`."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def reload(self) -> None:
        """Let it read its certificate, access file and list of revoked certificates again; connections are kept."""
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """Ask it to write its state and end; after a few seconds, make it."""
        self.process.terminate()
        if not self.wait(STOP_SECONDS):
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> "Mosquitto":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _tail(self) -> str:
        """The last lines that it wrote since it was started."""
        try:
            with self._log.open("rb") as file:
                file.seek(self._start)
                lines = file.read(4096).decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return " / ".join(line.partition(": ")[2] or line for line in lines[-3:])


def _die_with_us() -> list[str]:
    """What makes Linux end the broker when this process is killed outright; elsewhere nothing."""
    program = shutil.which("setpriv")
    return [program, "--pdeathsig", "TERM", "--"] if program else []


def _template(name: str) -> str:
    """A commented configuration: inside an installed package, or at the top of a source checkout."""
    package = Path(str(resources.files("edgefl")))
    for path in (package / "broker" / name, package.parent / "broker" / name):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise BrokerError(f"this installation of edgefl lacks broker/{name}", remedy="Install edgefl again")
