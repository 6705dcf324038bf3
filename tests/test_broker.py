"""What a broker lets devices do, and what not: one suite for Mosquitto and the embedded broker, with the fleet's own files."""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from brokerclient import Client, arrives, open_client, vanish
from brokerprocess import KINDS, Running, running
from edgefl.demo.stage import free_port
from edgefl.device.config import load_bundle
from edgefl.server.founding import create_fleet
from edgefl.server.provision import provision
from edgefl.store.fleet import Fleet

PRIVATE = "efl/v1/down/cam-02/receipt"

Connects = Callable[..., Client]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A fleet with the devices cam-01 and cam-02, whose bundles lie beside it."""
    made = create_fleet(tmp_path_factory.mktemp("fleet") / "farm", name="farm")
    provision(made, ["cam-01", "cam-02"], "rpi-zero-2w", made.path.parent / "bundles")
    return made


@pytest.fixture(scope="module", params=KINDS)
def broker(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[Running]:
    """Each of the two brokers in turn."""
    with running(fleet, request.param, free_port()) as broker:
        yield broker


@pytest.fixture
def connect(broker: Running) -> Iterator[Connects]:
    """Makes clients and takes them down afterwards."""
    clients: list[Client] = []

    def make(name: str, **options: Any) -> Client:
        clients.append(open_client(broker, name, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.mark.broker
class TestBothBrokers:
    """One suite for both brokers: what is refused by one is refused by the other."""

    def test_device_and_server_talk(self, connect: Connects) -> None:
        """What is permitted works: up from the device, down and to all from the server, with TLS and host name checks."""
        server, device = connect("edgefl-server"), connect("cam-01")
        server.subscribe("efl/v1/up/#")
        device.subscribe("efl/v1/down/cam-01/#")
        device.subscribe("efl/v1/all/#")
        device.publish("efl/v1/up/cam-01/report", b"hello")
        server.publish("efl/v1/down/cam-01/receipt", b"stored")
        server.publish("efl/v1/all/round/digits/full", b"order")
        assert arrives(server, "efl/v1/up/cam-01/report")
        assert arrives(device, "efl/v1/down/cam-01/receipt")
        assert arrives(device, "efl/v1/all/round/digits/full")

    @pytest.mark.parametrize("topic", ["efl/v1/up/cam-02/report", "efl/v1/all/manifest/digits/x", PRIVATE, "other/topic"])
    def test_a_publish_below_anothers_name_does_not_arrive(self, connect: Connects, topic: str) -> None:
        """A device cannot speak as another device or as the server; what it says under its own name still arrives."""
        server, rogue = connect("edgefl-server"), connect("cam-01")
        server.subscribe("efl/v1/#")
        rogue.publish(topic, b"forged")
        rogue.publish("efl/v1/up/cam-01/report", b"after")
        assert arrives(server, "efl/v1/up/cam-01/report")
        assert not any(payload == b"forged" for _, payload in server.received)

    @pytest.mark.parametrize("topic", [PRIVATE, "efl/v1/down/+/receipt", "efl/v1/down/#", "#", "efl/v1/up/#"])
    def test_a_subscription_to_others_yields_nothing(self, connect: Connects, topic: str) -> None:
        """A device hears what is meant for it and for all, and nothing of what is meant for or said by others."""
        server, victim, rogue = connect("edgefl-server"), connect("cam-02"), connect("cam-01")
        rogue.subscribe(topic)
        rogue.subscribe("efl/v1/down/cam-01/#")
        server.publish(PRIVATE, b"secret")
        victim.publish("efl/v1/up/cam-02/want", b"private")
        server.publish("efl/v1/down/cam-01/receipt", b"mine")
        assert arrives(rogue, "efl/v1/down/cam-01/receipt")
        assert not any(payload in (b"secret", b"private") for _, payload in rogue.received)

    def test_retained_messages_of_others_stay_hidden(self, connect: Connects) -> None:
        """Neither a subscription nor coming back to a kept session brings another device's retained state."""
        server, victim = connect("edgefl-server"), connect("cam-02")
        server.subscribe("efl/v1/up/#")
        server.publish("efl/v1/all/manifest/digits/zero", b"public", retain=True)
        victim.publish("efl/v1/up/cam-02/state", b"private", retain=True)
        for _ in range(2):
            rogue = connect("cam-01", clean=False)
            rogue.subscribe("efl/v1/up/cam-02/#")
            rogue.subscribe("efl/v1/all/#")
            assert arrives(rogue, "efl/v1/all/manifest/digits/zero")
            assert not any(payload == b"private" for _, payload in rogue.received)
            rogue.close()
        victim.publish("efl/v1/up/cam-02/state", b"", retain=True)
        server.publish("efl/v1/all/manifest/digits/zero", b"", retain=True)

    def test_a_will_below_anothers_name_is_never_sent(self, broker: Running, connect: Connects) -> None:
        """A device cannot leave a will that declares another device dead."""
        server = connect("edgefl-server")
        server.subscribe("efl/v1/#")
        vanish(broker, "cam-01", "efl/v1/up/cam-02/state")
        assert not arrives(server, "efl/v1/up/cam-02/state", 1.0)

    def test_the_own_will_is_sent(self, broker: Running, connect: Connects) -> None:
        """A device that vanishes is declared dead by its own will."""
        server = connect("edgefl-server")
        server.subscribe("efl/v1/#")
        vanish(broker, "cam-02", "efl/v1/up/cam-02/state")
        assert arrives(server, "efl/v1/up/cam-02/state")

    def test_without_a_certificate_there_is_no_connection(self, connect: Connects) -> None:
        """A client that trusts the fleet but has no certificate is refused."""
        client = connect("nobody", wait=False)
        assert client.refused.wait(120)
        assert not client.connected.is_set()

    def test_a_foreign_authoritys_certificate_is_refused(self, connect: Connects, tmp_path: Path) -> None:
        """A certificate of another fleet for the same name opens nothing."""
        foreign = create_fleet(tmp_path / "other", name="farm")
        provision(foreign, ["cam-01"], "rpi-zero-2w", tmp_path / "out")
        files = (tmp_path / "out" / "cam-01" / "device.crt", tmp_path / "out" / "cam-01" / "device.key")
        client = connect("cam-01", files=files, wait=False)
        assert client.refused.wait(120)
        assert not client.connected.is_set()

    def test_the_brokers_own_certificate_is_no_way_in(self, broker: Running, connect: Connects) -> None:
        """A serverAuth certificate is refused as a client's."""
        files = (broker.fleet.broker_certificate, broker.fleet.broker_key)
        client = connect("edgefl-broker", files=files, wait=False)
        assert client.refused.wait(120)
        assert not client.connected.is_set()

    @pytest.mark.parametrize("clean", [True, False])
    def test_another_client_id_takes_nobody_elses_place(self, connect: Connects, clean: bool) -> None:
        """A device that connects as another neither disconnects it, nor hears its messages, nor speaks for it."""
        server, victim = connect("edgefl-server"), connect("cam-02", clean=False)
        server.subscribe("efl/v1/#")
        victim.subscribe("efl/v1/down/cam-02/#")
        rogue = connect("cam-01", client_id="cam-02", wait=False, clean=clean)
        rogue.mqtt.subscribe("efl/v1/down/cam-02/#", 1)
        rogue.mqtt.publish("efl/v1/up/cam-02/report", b"forged", 1)
        server.publish("efl/v1/down/cam-02/receipt", b"for cam-02")
        assert arrives(victim, "efl/v1/down/cam-02/receipt")
        victim.publish("efl/v1/up/cam-02/report", b"true")
        assert arrives(server, "efl/v1/up/cam-02/report")
        assert rogue.received == []
        assert (("efl/v1/up/cam-02/report", b"forged")) not in server.received
        assert not victim.refused.is_set()

    def test_a_message_above_the_limit_stops_at_the_broker(self, connect: Connects) -> None:
        """128 KiB pass, more does not, and the server hears the device afterwards."""
        server, device = connect("edgefl-server"), connect("cam-01")
        server.subscribe("efl/v1/up/#")
        device.publish("efl/v1/up/cam-01/want", b"x" * 131_072)
        assert arrives(server, "efl/v1/up/cam-01/want")
        device.mqtt.publish("efl/v1/up/cam-01/update", b"x" * 200_000, 0)
        assert not arrives(server, "efl/v1/up/cam-01/update", 1.0)

    def test_a_version_5_client_gets_an_answer(self, connect: Connects) -> None:
        """MQTT 5 connects to Mosquitto and is refused, not left hanging, by the embedded broker."""
        client = connect("cam-01", protocol=mqtt.MQTTv5, wait=False)
        assert client.codes[0] in ("Success", "Unsupported protocol version")


def test_a_bundle_leads_to_its_broker(fleet: Fleet) -> None:
    """What a device reads from its bundle is the fleet's address and working TLS files."""
    bundle = load_bundle(fleet.path.parent / "bundles" / "cam-01")
    assert (bundle.config.host, bundle.config.port) == (fleet.settings.host, fleet.settings.port)
    context = ssl.create_default_context(cafile=str(bundle.ca))
    context.load_cert_chain(bundle.certificate, bundle.key)
