"""What a board's doctor thinks of what was measured: one judgement for each thing that taking part needs. Pure.

Model: a judge takes measured values and gives a `Check` (`edgefl.device.diagnosis`). `edgefl.device.examine` measures, this file
judges, so that every condition can be tested with values alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from edgefl.device.diagnosis import Check, Measured
from edgefl.profile import trains

MIB = 1024 * 1024
DAY = 86400.0
RENEW_DAYS = 30
"""A certificate that ends sooner should be renewed now."""
AUTHORITY_DAYS = 365
"""The same of the fleet's authority, which is not renewed but followed by a new fleet."""
HOT = 80.0
"""Degrees Celsius at which a Raspberry Pi begins to slow down
(https://www.raspberrypi.com/documentation/computers/raspberry-pi.html#frequency-management-and-thermal-control)."""
THROTTLE_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
"""Of `vcgencmd get_throttled`; bit n + 16 says that it has happened since the start
(https://www.raspberrypi.com/documentation/computers/os.html#get_throttled)."""


def judge_engine(wanted: str, profile: str, runtime: str, available: Sequence[str], trouble: str) -> Check:
    """Whether the engine that the profile asks for runs here.

    Args:
        wanted: engine in `device.toml`; `inference` runs on any ONNX Runtime.
        profile: which chose it.
        runtime: distribution and version of ONNX Runtime, empty without one.
        available: engines that it offers for training.
        trouble: why it does not load, empty if it does.
    """
    if not runtime or trouble:
        found = f" ({trouble})" if trouble else ""
        remedy = "Install edgefl's dependencies on this machine again: they choose the distribution of onnxruntime"
        return Check(name="engine", state="failed", text=f"ONNX Runtime does not load here{found}.", remedy=remedy)
    if not trains(wanted):
        text = f"This board does not train: it only answers, as the profile {profile} says; {runtime} is there."
        return Check(name="engine", state="ok", text=text)
    if wanted not in available:
        text = f"The profile {profile} trains with {wanted}, but {runtime} offers {' and '.join(available)} only."
        return Check(name="engine", state="failed", text=text, remedy="Provision the device with a profile of this board")
    return Check(name="engine", state="ok", text=f"{wanted}, as the profile {profile} says; {runtime} offers it.")


def judge_architecture(expected: str, found: str) -> Check:
    """Whether the board is of its profile's kind; `expected` is empty for a profile that is not known here."""
    if expected and expected != found:
        text = f"This machine is {found}, boards of its profile are {expected}; limits and estimates are another board's."
        return Check(name="machine", state="warning", text=text, remedy="Provision the device with a profile of this board")
    return Check(name="machine", state="ok", text=f"{found}.")


def judge_clock(now: float, passed: float, held: float, synchronised: bool | None) -> Check:  # noqa: FBT001 - a measured value
    """Whether the clock can be right.

    Args:
        now: what it says, seconds since 1970.
        passed: what has passed for certain: the device's certificate had begun, or signed words have said so.
        held: what time it is for the agent, which also remembers what the clock has shown (`edgefl.store.clock`).
        synchronised: what the kernel says; None if it does not.
    """
    said = _date(now)
    if now < passed - DAY:
        text = f"The clock says {said}, but {_date(passed)} has passed for certain: no connection will be trusted."
        return Check(
            name="clock", state="failed", text=text, remedy="Set the clock, or let it synchronise (timedatectl set-ntp true)"
        )
    if held > now + DAY and not synchronised:
        text = f"The clock says {said}, but has shown {_date(held)} before: words that end between the two count as expired."
        return Check(name="clock", state="warning", text=text, remedy="Let it synchronise, or remove `clock` from the state")
    if synchronised is False:
        remedy = "Check the network and the time service (timedatectl timesync-status)"
        return Check(name="clock", state="warning", text=f"The clock says {said} but is not synchronised.", remedy=remedy)
    return Check(name="clock", state="ok", text=f"{said}{', synchronised' if synchronised else ''}.")


def judge_service(unit: Mapping[str, str]) -> Check:
    """Whether somebody watches the agent.

    Args:
        unit: properties of the systemd unit as `systemctl show` names them; empty where there is none.
    """
    if unit.get("LoadState") != "loaded":
        return Check(name="service", state="ok", text="No systemd unit: the agent is started in another way.")
    active, watched = unit.get("ActiveState", "unknown"), unit.get("WatchdogUSec", "0")
    if active == "failed":
        text = f"The service has failed ({unit.get('Result', 'unknown')})."
        return Check(name="service", state="warning", text=text, remedy="Look into journalctl -u edgefl-device")
    if unit.get("Type") != "notify" or watched in ("", "0", "infinity"):
        text = f"The service is {active}, but has no watchdog: an agent that hangs stays so."
        return Check(name="service", state="warning", text=text, remedy="Run the install.sh of a new bundle")
    said = f" ({unit['StatusText']})" if unit.get("StatusText") else ""
    text = f"The service is {active}{said}, watched every {watched}, restarted {unit.get('NRestarts', '0')} times."
    return Check(name="service", state="ok", text=text)


def judge_certificate(now: float, begins: float, ends: float, name: str, device: str) -> Check:
    """Whether the device's certificate is its own and in force.

    Args:
        now: seconds since 1970.
        begins: when it begins to be valid.
        ends: when it ends.
        name: its common name.
        device: the id in `device.toml`.
    """
    renew = "Provision the device again, or rotate its certificate"
    if name != device:
        text = f"The certificate is {name}'s, not {device}'s."
        return Check(name="certificate", state="failed", text=text, remedy="Copy the whole bundle of this device")
    if not begins <= now:
        text = f"The certificate is not valid before {_date(begins)}."
        return Check(name="certificate", state="failed", text=text, remedy="Check this device's clock")
    if ends < now:
        return Check(name="certificate", state="failed", text=f"The certificate ended on {_date(ends)}.", remedy=renew)
    days = int((ends - now) / DAY)
    soon = days < RENEW_DAYS
    text = f"The certificate is valid until {_date(ends)} ({days} days)."
    return Check(name="certificate", state="warning" if soon else "ok", text=text, remedy=renew if soon else "")


def judge_authority(now: float, ends: float) -> Check:
    """Whether whoever signed the certificates of this fleet is in force.

    Args:
        now: seconds since 1970.
        ends: when the first of root and intermediate ends.
    """
    remedy = "Found a new fleet on the server, and provision this device in it"
    if ends < now:
        return Check(name="authority", state="failed", text=f"The fleet's authority ended on {_date(ends)}.", remedy=remedy)
    days = int((ends - now) / DAY)
    soon = days < AUTHORITY_DAYS
    text = f"The fleet's authority is valid until {_date(ends)} ({days} days)."
    return Check(name="authority", state="warning" if soon else "ok", text=text, remedy=remedy if soon else "")


def judge_storage(free: int, variant: int, reserve: int, *, writable: bool, place: str) -> Check:
    """Whether a version can be kept.

    Args:
        free: bytes on the state directory's file system.
        variant: bytes that the profile allows for one variant; a new version is fetched beside the old one.
        reserve: bytes that the agent leaves free for everybody else.
        writable: whether the state directory can be written.
        place: the state directory.
    """
    if not writable:
        remedy = "Run as the user the state belongs to, or correct the permissions"
        return Check(name="storage", state="failed", text=f"{place} cannot be written.", remedy=remedy)
    told = f"{free // MIB} MiB are free in {place}"
    if free < reserve:
        text = f"{told}, less than the {reserve // MIB} MiB that are always left free: nothing will be fetched."
        return Check(name="storage", state="failed", text=text, remedy="Free some space")
    if free < reserve + variant:
        text = f"{told}; the profile allows a new version of {variant / MIB:.0f} MiB beside {reserve // MIB} MiB left free."
        return Check(name="storage", state="warning", text=text, remedy="Free some space before a larger model is pushed")
    return Check(name="storage", state="ok", text=f"{told}; a new version may take {variant / MIB:.0f} MiB.")


def judge_temperature(celsius: float | None, throttled: int | None) -> Check:
    """Whether the board slows itself down.

    Args:
        celsius: of its hottest part; None if it does not tell.
        throttled: the firmware's flags (see `THROTTLE_BITS`); None on other boards.
    """
    flags = throttled or 0
    now = [word for bit, word in THROTTLE_BITS.items() if flags >> bit & 1]
    before = [word for bit, word in THROTTLE_BITS.items() if flags >> (bit + 16) & 1 and word not in now]
    heat = "Temperature unknown" if celsius is None else f"{celsius:.0f} degrees"
    remedy = "Use the board's own power supply" if flags & 0x10001 else "Cool the board, or lower `threads` in device.toml"
    if now or before or (celsius is not None and celsius >= HOT):
        told = [", ".join(now), f"{', '.join(before)} since it was started" if before else ""]
        text = "; ".join(filter(None, [heat, *told])) + "."
        return Check(name="temperature", state="warning", text=text, remedy=remedy)
    return Check(name="temperature", state="ok", text=heat + ("." if throttled is None else ", not throttled."))


def judge_data(source: str, count: int, trouble: str, remedy: str, *, needed: bool = True) -> Check:
    """Whether there are examples, or `trouble` why not; `needed` for training, otherwise versions are tried with them."""
    if not source and not needed:
        return Check(name="data", state="ok", text="No source of examples, and none is needed: this board does not train.")
    if not source:
        text, remedy = "device.toml names no source of examples.", "Set the key `data`, or give --data"
    elif trouble:
        text = f"{source}: {trouble}."
    elif not count:
        text, remedy = f"{source} holds no examples.", "Wait for data, or name another source"
    else:
        return Check(name="data", state="ok", text=f"{source} holds {count} examples.")
    return Check(name="data", state="failed" if needed else "warning", text=text, remedy=remedy)


def judge_broker(address: str, trouble: str, remedy: str) -> Check:
    """Whether the broker takes this device; `trouble` says why not."""
    if trouble:
        return Check(name="broker", state="failed", text=f"{address}: {trouble}.", remedy=remedy)
    return Check(name="broker", state="ok", text=f"{address} accepts this device's certificate.")


def judge_model(measured: Measured, limit_mb: int) -> Check:
    """Whether a stored variant trains, or answers, within the profile's memory."""
    name = f"model {measured.model}"
    step = f"{measured.step_ms:.1f} ms a step" if trains(measured.engine) else "it answers and does not train"
    if measured.slowdown:
        step += f" (slowdown {measured.slowdown:.3g})"
    told = f"{measured.variant} of version {measured.version}: {step}, {measured.peak_rss_mb:.0f} MiB"
    if measured.peak_rss_mb > limit_mb:
        text = f"{told}, more than the {limit_mb} MiB that the profile allows."
        return Check(name=name, state="failed", text=text, remedy="Push the model again: a narrower variant, or simpler layers")
    return Check(name=name, state="ok", text=f"{told} of {limit_mb}.")


def _date(seconds: float) -> str:
    """Seconds since 1970 as a date, without asking any clock or time zone."""
    return str(np.datetime64(int(seconds // 60), "m")).replace("T", " ") + " UTC"
