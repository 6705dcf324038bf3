"""How the doctor judges each condition: the state, the sentence, the remedy."""

import msgspec
import pytest

from edgefl.device import doctor
from edgefl.device.diagnosis import Check, Measured, is_able
from edgefl.device.doctor import MIB

YEAR = 365 * 86400.0
FIT = Measured(model="m", version=1, variant="w1-fp32", engine="portable", step_ms=2.0, peak_rss_mb=100.0)

UNIT = {"LoadState": "loaded", "ActiveState": "active", "Type": "notify", "WatchdogUSec": "1min", "NRestarts": "2"}
UNIT["StatusText"] = "connected, 1 model"


@pytest.mark.parametrize(
    ("check", "state", "words"),
    [
        (doctor.judge_engine("portable", "p", "onnxruntime 1.31.1", ("portable",), ""), "ok", "portable, as the profile p says"),
        (doctor.judge_engine("ort-training", "p", "onnxruntime 1.31.1", ("portable",), ""), "failed", "offers portable only"),
        (doctor.judge_engine("portable", "p", "", (), "no module"), "failed", "does not load here (no module)"),
        (doctor.judge_engine("portable", "p", "onnxruntime 1", ("portable",), "bad ELF"), "failed", "bad ELF"),
        (doctor.judge_architecture("aarch64", "aarch64"), "ok", "aarch64"),
        (doctor.judge_architecture("", "riscv64"), "ok", "riscv64"),
        (doctor.judge_architecture("aarch64", "x86_64"), "warning", "boards of its profile are aarch64"),
        (doctor.judge_clock(0.0, 1.7e9, 1.7e9, None), "failed", "1970-01-01 00:00 UTC, but 2023-11-14 22:13 UTC has passed"),
        (doctor.judge_clock(1.7e9, 1.6e9, 1.7e9, False), "warning", "not synchronised"),
        (doctor.judge_clock(1.7e9, 1.6e9, 1.7e9, True), "ok", "2023-11-14 22:13 UTC, synchronised"),
        (doctor.judge_clock(1.7e9, 1.6e9, 1.7e9, None), "ok", "2023-11-14 22:13 UTC."),
        (doctor.judge_clock(1.7e9, 1.6e9, 2.0e9, None), "warning", "has shown 2033-05-18 03:33 UTC before"),
        (doctor.judge_clock(1.7e9, 1.6e9, 2.0e9, True), "ok", "synchronised"),
        (doctor.judge_service({}), "ok", "another way"),
        (doctor.judge_service(UNIT), "ok", "active (connected, 1 model), watched every 1min, restarted 2 times"),
        (doctor.judge_service({**UNIT, "WatchdogUSec": "0"}), "warning", "has no watchdog"),
        (doctor.judge_service({**UNIT, "Type": "exec"}), "warning", "has no watchdog"),
        (doctor.judge_service({**UNIT, "ActiveState": "failed", "Result": "exit-code"}), "warning", "has failed (exit-code)"),
        (doctor.judge_certificate(1e9, 9e8, 1e9 + YEAR, "cam-01", "cam-01"), "ok", "(365 days)"),
        (doctor.judge_certificate(1e9, 9e8, 1e9 + 86400, "cam-01", "cam-01"), "warning", "(1 days)"),
        (doctor.judge_certificate(1e9, 9e8, 1e9 - 1, "cam-01", "cam-01"), "failed", "ended on 2001-09-09"),
        (doctor.judge_certificate(1e9, 1e9 + 1, 2e9, "cam-01", "cam-01"), "failed", "not valid before"),
        (doctor.judge_certificate(1e9, 9e8, 2e9, "cam-02", "cam-01"), "failed", "cam-02's, not cam-01's"),
        (doctor.judge_authority(1e9, 1e9 + 2 * YEAR), "ok", "(730 days)"),
        (doctor.judge_authority(1e9, 1e9 + YEAR / 2), "warning", "(182 days)"),
        (doctor.judge_authority(1e9, 1e9 - 1), "failed", "ended on 2001-09-09"),
        (doctor.judge_storage(99 * MIB, 8 * MIB, 16 * MIB, writable=True, place="/s"), "ok", "99 MiB are free in /s"),
        (doctor.judge_storage(20 * MIB, 8 * MIB, 16 * MIB, writable=True, place="/s"), "warning", "new version of 8 MiB"),
        (doctor.judge_storage(15 * MIB, 8 * MIB, 16 * MIB, writable=True, place="/s"), "failed", "nothing will be fetched"),
        (doctor.judge_storage(99 * MIB, 8 * MIB, 16 * MIB, writable=False, place="/s"), "failed", "/s cannot be written"),
        (doctor.judge_temperature(55.0, 0), "ok", "55 degrees, not throttled"),
        (doctor.judge_temperature(None, None), "ok", "unknown"),
        (doctor.judge_temperature(85.0, None), "warning", "85 degrees"),
        (doctor.judge_temperature(60.0, 0x50005), "warning", "under-voltage, throttled"),
        (doctor.judge_temperature(60.0, 0x80000), "warning", "soft temperature limit since it was started"),
        (doctor.judge_data("npz:a", 3, "", ""), "ok", "3 examples"),
        (doctor.judge_data("npz:a", 0, "", ""), "failed", "no examples"),
        (doctor.judge_data("npz:a", 0, "a does not exist", "Check the path"), "failed", "a does not exist"),
        (doctor.judge_data("", 0, "", ""), "failed", "names no source"),
        (doctor.judge_broker("b:8883", "", ""), "ok", "accepts"),
        (doctor.judge_broker("b:8883", "connection refused", "Start the broker"), "failed", "b:8883: connection refused"),
        (doctor.judge_model(FIT, 256), "ok", "2.0 ms a step, 100 MiB of 256"),
        (doctor.judge_model(msgspec.structs.replace(FIT, slowdown=12.5), 256), "ok", "2.0 ms a step (slowdown 12.5), 100 MiB"),
        (doctor.judge_model(FIT, 99), "failed", "more than the 99 MiB"),
    ],
)
def test_each_condition_has_its_judgement(check: Check, state: str, words: str) -> None:
    """State and sentence of every condition; what is not ok says what to do."""
    assert check.state == state
    assert words in check.text
    assert bool(check.remedy) == (state != "ok")
    assert check.text.endswith(".")
    assert not check.remedy.endswith(".")


def test_only_a_failed_check_keeps_a_device_out() -> None:
    """Warnings do not."""
    ok, warning, failed = (Check(name=s, state=s, text="") for s in ("ok", "warning", "failed"))
    assert is_able([ok, warning])
    assert not is_able([ok, warning, failed])
