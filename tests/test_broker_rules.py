"""The embedded broker's rules as functions: who may listen where, publish and read what, and how the first packet is read."""

import pytest

from edgefl.brokers.acl import may_publish, may_read
from edgefl.brokers.connect import Connect, parse_connect
from edgefl.brokers.embedded import check_loopback
from edgefl.errors import BrokerError, MessageError


@pytest.mark.parametrize("bind", ["0.0.0.0", "192.0.2.1", "::", "example.com", ""])  # noqa: S104 - refused
def test_the_embedded_broker_refuses_every_other_address(bind: str) -> None:
    """What other machines could reach is Mosquitto's business."""
    with pytest.raises(BrokerError, match="this machine only"):
        check_loopback(bind)


@pytest.mark.parametrize(
    ("user", "topic", "publish", "read"),
    [
        ("cam-01", "efl/v1/up/cam-01/state", True, False),
        ("cam-01", "efl/v1/up/cam-01", False, False),
        ("cam-01", "efl/v1/up/cam-011/state", False, False),
        ("cam-01", "efl/v1/up/+/state", False, False),
        ("cam-01", "efl/v1/down/cam-01/#", False, True),
        ("cam-01", "efl/v1/all/#", False, True),
        ("cam-01", "efl/v1/+/cam-01/x", False, False),
        ("cam-01", "$SYS/x", False, False),
        ("+", "efl/v1/up/+/state", False, False),
        ("", "efl/v1/up//state", False, False),
        ("edgefl-server", "efl/v1/up/#", True, True),
        ("edgefl-server", "#", False, False),
    ],
)
def test_the_access_rule(user: str, topic: str, publish: bool, read: bool) -> None:
    """The rule as a table."""
    assert (may_publish(user, topic), may_read(user, topic)) == (publish, read)


def test_the_first_packet_is_read_as_the_standard_says() -> None:
    """Golden bytes of a CONNECT with a will (MQTT 3.1.1, section 3.1), and every truncation of it is refused."""
    body = b"\x00\x04MQTT\x04\x06\x00\x3c\x00\x06cam-01\x00\x03a/b\x00\x01x"
    assert parse_connect(body) == Connect(4, "cam-01", "a/b")
    assert parse_connect(b"\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00") == Connect(5, "", None)
    for cut in range(len(body) - 3):
        with pytest.raises(MessageError):
            parse_connect(body[:cut])
