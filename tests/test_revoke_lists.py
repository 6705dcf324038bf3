"""Revocation lists: whose are believed, that they only rise, and that they are signed anew in time."""

import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from camerafleet import broker, eventually, is_admitted, needs_mosquitto, two_cameras
from edgefl.brokers.revoked import canary_files, crl_path, current_list, write_list
from edgefl.brokers.running import running_broker
from edgefl.cli.main import run
from edgefl.errors import SignatureError
from edgefl.identity.authority import found_authority
from edgefl.identity.crl import read_crl, sign_crl
from edgefl.server.founding import authority_of
from edgefl.server.revoke import LOCK, refresh_list
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from edgefl.store.lock import file_lock
from edgefl.store.registry import get_device
from edgefl.store.revocations import revoke


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet with cam-01 and cam-02, whose bundles lie beside it, on a free port."""
    return two_cameras(tmp_path)


def test_a_list_of_another_authority_is_refused() -> None:
    """Of another fleet of the same name, of the root instead of the intermediate, changed, cut short, or no list at all."""
    authority, root = found_authority("farm")
    other, _ = found_authority("farm")
    good = sign_crl(authority, {7: 0.0})
    assert read_crl(good, authority).serials == {7}
    with pytest.raises(SignatureError, match="signature"):
        read_crl(sign_crl(other, {}), authority)
    with pytest.raises(SignatureError, match="another authority"):
        read_crl(sign_crl(found_authority("barn")[0], {}), authority)
    for bad in (b"", b"garbage", good[:-60], root.certificate):
        with pytest.raises(SignatureError, match="decode"):
            read_crl(bad, authority)


def test_lists_only_rise(fleet: Fleet) -> None:
    """Of two lists in the same second the later has the higher number and the later beginning; a foreign one is replaced."""
    authority = authority_of(fleet)
    first = write_list(fleet.broker, authority, {1: 0.0}, time.time())
    second = write_list(fleet.broker, authority, {1: 0.0, 2: 0.0}, time.time(), [3])
    third = write_list(fleet.broker, authority, {1: 0.0, 2: 0.0}, time.time())
    assert first.number < second.number < third.number
    assert first.begins < second.begins < third.begins < time.time()
    assert second.serials - third.serials == {3}
    assert third.ends - time.time() > 360 * 86400
    crl_path(fleet.broker).write_bytes(b"garbage")
    assert write_list(fleet.broker, authority, {1: 0.0}, time.time()).serials > {1}
    assert canary_files(fleet.broker) is not None


@needs_mosquitto
@pytest.mark.slow
@pytest.mark.broker
def test_an_expired_list_locks_nobody_out(fleet: Fleet) -> None:
    """A list past its date is signed anew when the broker starts; put under a running one, it locks out until it is refreshed."""
    authority = authority_of(fleet)
    expired = sign_crl(authority, {}, days=-0.5)
    crl_path(fleet.broker).write_bytes(expired)
    with broker(fleet):
        assert is_admitted(fleet, "cam-01")
        crl_path(fleet.broker).write_bytes(expired)
        running = running_broker(fleet.broker)
        assert running is not None
        running.reload()
        time.sleep(0.5)
        assert not is_admitted(fleet, "cam-01")
        assert run(["broker", "configure", "--bind", "127.0.0.1", "--fleet", str(fleet.path)]) == 0
        running.reload()
        time.sleep(0.5)
        assert is_admitted(fleet, "cam-01")


@needs_mosquitto
@pytest.mark.broker
def test_a_running_broker_signs_anew_in_time(fleet: Fleet) -> None:
    """The command's own clock brings a list with a higher number, without anybody asking."""
    script = "import edgefl.cli.broker as b\nb.RENEW_SECONDS = 0.2\nfrom edgefl.cli.main import main\nmain()"
    command = [sys.executable, "-c", script, "broker", "--broker", "mosquitto", "--fleet", str(fleet.path)]
    authority = authority_of(fleet)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "ready" in process.stdout.readline()
            first = current_list(fleet.broker, authority)
            assert first is not None
            assert eventually(
                lambda: (crl := current_list(fleet.broker, authority)) is not None and crl.number > first.number + 1
            )
            assert is_admitted(fleet, "cam-01")
            fleet.intermediate_key.rename(fleet.path / "away")
            assert process.stderr is not None
            assert "not signed anew" in process.stderr.readline()
            assert process.poll() is None  # a renewal that fails costs a warning, not the broker
            (fleet.path / "away").rename(fleet.intermediate_key)
        finally:
            process.terminate()


def test_two_signers_take_turns(fleet: Fleet) -> None:
    """While one signs, another waits and only then looks at the registry, so that no list forgets whom a later one names."""
    found: list[frozenset[int]] = []

    def sign() -> None:
        with closing(open_database(fleet.database)) as database:
            found.append(refresh_list(fleet, database, authority_of(fleet), time.time()).serials)

    with closing(open_database(fleet.database)) as database:
        with file_lock(fleet.broker / LOCK):
            waiting = threading.Thread(target=sign)
            waiting.start()
            time.sleep(0.3)
            assert found == []
            revoke(database, "cam-01", "", 1.0)
        waiting.join(60)
        assert int(get_device(database, "cam-01").certificate, 16) in found[0]
