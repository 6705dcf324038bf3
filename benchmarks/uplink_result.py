"""What one run of one system comes to: a row of the benchmark's report, and how it is made from counted bytes.

Model: a run has three spans. *Setup* brings everything up: connections, the model's installation on a device or the app's. The
*rounds* are the task. *Idle* is time after it, in which nothing is to do. Only the rounds' bytes stand in `uplink_bytes` and
`downlink_bytes`; the others are told beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from benchmarks.uplink_proxy import CountingProxy, total
from benchmarks.uplink_task import Setting


class LeftOutError(Exception):
    """A system cannot be measured here; the text says why. The others go on."""


class RoundRow(msgspec.Struct, frozen=True, kw_only=True):
    """One round: accuracy after it, bytes of all devices within it; a codec alone has no downlink."""

    round: int
    accuracy: float
    uplink_bytes: int
    downlink_bytes: int | None


class DeviceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One device: bytes of all rounds."""

    device: str
    uplink_bytes: int
    downlink_bytes: int


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One system, one seed.

    Attributes:
        system: `edgefl`, `flower`, `openfl`, `nncodec` or `dense`.
        label: system and settings.
        seed, rounds, devices: of the task.
        accuracy: on the test examples, after the last round.
        measured: `socket` (all bytes inside TCP, with TLS) or `payload` (what a codec writes, without any transport).
        uplink_bytes, downlink_bytes: of all devices in all rounds; a codec alone has no downlink.
        payload_uplink_bytes: encoded updates alone, where the system tells.
        dense_uplink_bytes: the same updates as float32.
        seconds: of the rounds.
        setup_uplink_bytes, setup_downlink_bytes: of all devices before the first round.
        idle_bytes_per_minute: of one device after the last round, both ways.
        codec_ms: to encode and decode one update, where the codec ran alone.
        history, by_device: the rounds' bytes by round and by device.
    """

    system: str
    label: str
    seed: int
    accuracy: float
    rounds: int
    devices: int
    measured: str
    uplink_bytes: int
    downlink_bytes: int | None
    payload_uplink_bytes: int | None
    dense_uplink_bytes: int
    seconds: float
    setup_uplink_bytes: int | None = None
    setup_downlink_bytes: int | None = None
    idle_bytes_per_minute: float | None = None
    codec_ms: float | None = None
    history: list[RoundRow] = []
    by_device: list[DeviceRow] = []


@dataclass(frozen=True, slots=True)
class Course:
    """When a run went through its spans, in seconds since 1970.

    Attributes:
        system, label, seed: as in `Row`.
        began: devices may connect from here on.
        rounds: beginnings of the rounds, in order.
        ended: the last round is over and whatever belongs to it is delivered.
        left: end of the idle span; equal to `ended` if none was measured.
        accuracies: after each round.
        payload: bytes of encoded updates, if the system tells.
    """

    system: str
    label: str
    seed: int
    began: float
    rounds: Sequence[float]
    ended: float
    left: float
    accuracies: Sequence[float]
    payload: int | None = None


def socket_row(course: Course, setting: Setting, proxy: CountingProxy) -> Row:
    """The row of a system whose sockets were counted.

    Raises:
        LeftOutError: it did not do all the rounds.
    """
    if not len(course.rounds) == len(course.accuracies) == setting.rounds:
        raise LeftOutError(f"{course.label} did {len(course.accuracies)} of {setting.rounds} rounds")
    first, idle = course.rounds[0], course.left - course.ended
    setup, rounds, after = (
        proxy.between(a, b) for a, b in ((course.began, first), (first, course.ended), (course.ended, course.left))
    )
    ends = [*course.rounds[1:], course.ended]
    spans = [total(proxy.between(a, b)) for a, b in zip(course.rounds, ends, strict=True)]
    told = enumerate(zip(spans, course.accuracies, strict=True), 1)
    waiting = total(after)
    return Row(
        system=course.system,
        label=course.label,
        seed=course.seed,
        accuracy=course.accuracies[-1],
        rounds=setting.rounds,
        devices=setting.devices,
        measured="socket",
        uplink_bytes=total(rounds).up,
        downlink_bytes=total(rounds).down,
        payload_uplink_bytes=course.payload,
        dense_uplink_bytes=setting.dense_bytes,
        seconds=round(course.ended - first, 1),
        setup_uplink_bytes=total(setup).up,
        setup_downlink_bytes=total(setup).down,
        idle_bytes_per_minute=round((waiting.up + waiting.down) / setting.devices * 60.0 / idle, 1) if idle > 0 else None,
        history=[RoundRow(round=n, accuracy=a, uplink_bytes=c.up, downlink_bytes=c.down) for n, (c, a) in told],
        by_device=[DeviceRow(device=name, uplink_bytes=c.up, downlink_bytes=c.down) for name, c in rounds.items()],
    )
