"""The device's time of day: what it starts from, and waiting for a clock that is plainly wrong.

Rules: while the system's clock lies a day or more below what has passed for certain, no certificate of the broker's is valid yet,
so the agent waits for the time; but only for so long, because a board without a time server must still come up, say what is wrong
and go on trying. TLS looks at the system's clock, not at ours: nothing here makes a connection possible, it only waits well.
"""

import logging
import time
from collections.abc import Callable

from edgefl.device.config import Bundle
from edgefl.errors import ConfigError
from edgefl.identity.validity import validity_of
from edgefl.store.clock import AGREES, SOFTWARE, SteadyWall

log = logging.getLogger("edgefl.device")

FILE = "clock"
PATIENCE = 600.0
"""Seconds to wait for a plausible time before connecting is tried all the same."""
STEP = 1.0


def certain(bundle: Bundle) -> float:
    """Seconds since 1970 that have passed for certain: the device's certificate had begun when it was made."""
    try:
        return max(SOFTWARE, validity_of(bundle.certificate.read_bytes()).begins)
    except (ConfigError, OSError):
        return SOFTWARE  # no certificate yet


def steady_wall(bundle: Bundle) -> SteadyWall:
    """The device's time of day, remembered in its state directory."""
    return SteadyWall(bundle.state / FILE, lowest=certain(bundle))


def wait_for_time(
    wall: SteadyWall,
    tell: Callable[[str], None],
    should_stop: Callable[[], bool],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait while the system's clock is plainly wrong; whether it is plausible now.

    Args:
        wall: which knows what has passed.
        tell: told every second that the waiting goes on.
        should_stop: ends the waiting.
        clock: monotonic seconds.
        sleep: lets seconds pass.
    """
    if wall.behind < AGREES:
        return True
    log.warning("waiting for the time: the clock is %.0f days behind; no certificate is valid yet", wall.behind / 86400.0)
    deadline = clock() + PATIENCE
    while wall.behind >= AGREES and clock() < deadline and not should_stop():
        tell("waiting for the time")
        sleep(STEP)
    if wall.behind < AGREES:
        log.info("the clock is set")
        return True
    if not should_stop():
        log.warning("the clock is still wrong; trying to connect all the same")
    return False
