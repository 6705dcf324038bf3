import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefl.brokers.listener import Listener, wait_ready
from edgefl.brokers.mosquitto import find_mosquitto, write_configuration
from edgefl.brokers.wallet import Wallet
from edgefl.link.probe import Probe
from edgefl.server.founding import authority_of, create_fleet
from edgefl.store.fleet import Fleet

PLUGINS = sorted(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"))
PAGE = Path(__file__).parent.parent / "broker" / "dynamic-security.md"
pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None or not PLUGINS, reason="Mosquitto's dynamic security is not installed"),
]
CONTROL = "$CONTROL/dynamic-security/v1"


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return create_fleet(tmp_path / "farm", name="farm", port=probe.getsockname()[1])


@pytest.fixture
def wallet(fleet: Fleet) -> Iterator[Wallet]:
    """Mosquitto with the page's JSON instead of an access file."""
    (found,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    rights = fleet.broker / "dynamic-security.json"
    rights.write_text(json.dumps(json.loads(found)))
    listener = Listener(fleet.broker, fleet.root_certificate, fleet.broker_certificate, fleet.broker_key, fleet.settings.port)
    path = write_configuration(listener)
    plugin = f"plugin {PLUGINS[0]}\nplugin_opt_config_file {rights}"
    path.write_text(re.sub(r"^acl_file .*$", plugin, path.read_text(), flags=re.MULTILINE))
    with subprocess.Popen([str(find_mosquitto()), "-c", str(path)], stderr=subprocess.DEVNULL) as process:
        try:
            wait_ready(listener, lambda: None)
            with Wallet("127.0.0.1", fleet.settings.port, fleet.root_certificate) as wallet:
                yield wallet
        finally:
            process.terminate()


def test_what_the_page_says_is_so(fleet: Fleet, wallet: Wallet) -> None:
    """The rights are ours; disabling ends a session and lets it in again with all its rights; deleting takes the rights."""
    authority = authority_of(fleet)
    server_address = wallet.of_files(fleet.server_certificate, fleet.server_key)
    device_address = wallet.address(authority.probe("cam-01"))
    with Probe(server_address, "edgefl-server") as server:
        server.subscribe("efl/v1/#")
        with Probe(device_address, "cam-01") as device:
            device.publish("efl/v1/up/cam-02/report", b"forged")
            device.publish("efl/v1/up/cam-01/report", b"own")
            assert server.hears("efl/v1/up/cam-01/report", b"own")
            assert not [m for m in server.heard if m.payload == b"forged"]
            command = {"commands": [{"command": "disableClient", "username": "cam-01"}]}
            server.publish(CONTROL, json.dumps(command).encode())
            assert device.wait(5.0, lambda: not device.alive)
        with Probe(device_address, "cam-01") as device:
            assert device.accepted
            device.publish("efl/v1/up/cam-01/report", b"disabled")
            assert server.hears("efl/v1/up/cam-01/report", b"disabled")
        command = {"commands": [{"command": "deleteClient", "username": "cam-01"}]}
        server.publish(CONTROL, json.dumps(command).encode())
        time.sleep(0.2)
        with Probe(device_address, "cam-01") as device:
            assert device.accepted
            device.publish("efl/v1/up/cam-01/report", b"deleted")
            server.publish("efl/v1/all/echo", b"after")
            assert server.hears("efl/v1/all/echo", b"after")
            assert not [m for m in server.heard if m.payload == b"deleted"]
