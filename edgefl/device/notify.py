"""Words to the service manager: ready, still alive, what I am doing, ending (sd_notify(3), without its library).

Model: datagrams to the socket that `NOTIFY_SOCKET` names, a path or, after an `@`, a name in the abstract space. Where nobody
listens, for example on a bench, saying something does nothing.

Rules: telling never blocks and never fails: a word that the manager does not take now is left out, and the next one says the same
or more. The variables are taken out of the environment, so that no child speaks in the agent's name.
"""

import contextlib
import os
import socket
from collections.abc import MutableMapping

SOCKET = "NOTIFY_SOCKET"
WATCHDOG = "WATCHDOG_USEC"
WATCHDOG_PROCESS = "WATCHDOG_PID"
LONGEST_STATUS = 200


class Notifier:
    """Speaks to the service manager that has started this process.

    Args:
        environment: where the manager has said how; its variables are taken out of it.

    Attributes:
        heard: whether there is anybody to tell.
        patience: seconds of silence after which the manager ends this process; None if it does not watch.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        address = environment.pop(SOCKET, "")
        microseconds = environment.pop(WATCHDOG, "")
        process = environment.pop(WATCHDOG_PROCESS, str(os.getpid()))
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self.heard = self._address[:1] in ("/", "\0") and len(self._address) > 1
        ours = self.heard and process == str(os.getpid()) and microseconds.isdecimal() and int(microseconds) > 0
        self.patience = int(microseconds) / 1e6 if ours else None
        if self.heard:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def ready(self) -> None:
        """The state is read and the loop runs."""
        self._say("READY=1")

    def status(self, text: str) -> None:
        """What is being done, one line for `systemctl status`."""
        self._say("STATUS=" + " ".join(text.split())[:LONGEST_STATUS])

    def alive(self) -> None:
        """There is progress: wait for another `patience`."""
        self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._say("STOPPING=1")

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say(self, word: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto(word.encode("utf-8", "replace"), socket.MSG_DONTWAIT, self._address)
