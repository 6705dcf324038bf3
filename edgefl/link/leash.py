"""paho's client on a leash: it moves bytes, writes down what happens, and decides nothing.

One client is one connection: it is thrown away when the connection ends, so that none of paho's own reconnection (which sends
the whole queue at once, forgets subscriptions and has no jitter) ever runs. Its callbacks only append to lists, because paho
holds locks while it calls them: publishing from a callback deadlocks or reorders, and a slow callback stalls the pings.

Bounds: MQTT 3.1.1 lets nobody announce a largest packet, and paho collects a packet of up to 256 MiB before it says anything.
`_sock_recv`, through which it reads everything, is overridden to read small pieces and to forget all but the head of what is
too long. The head still holds topic and identifier, so that the packet is acknowledged instead of coming back for ever.
"""

import socket
import ssl

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgefl.link.contract import Arrived, Message
from edgefl.wire.messages import MAX_PACKET

READ_SIZE = 64 * 1024
LONGEST_TOPIC = 1024
HEAD = MAX_PACKET + 4 * LONGEST_TOPIC + 5
"""Bytes of an arriving packet that are kept: more than the largest payload with the longest topic that is let through, so that
what was cut is always recognised."""
MOST_PACKETS = 64
"""Packets read before others get their turn."""
CONNECT_TIMEOUT = 5.0


class LeashedClient(mqtt.Client):
    """One connection to the broker, driven by hand.

    Attributes:
        accepted: whether the broker has accepted the connection.
        session_present: what it said about an old session.
        refused: name of its refusal, empty without one.
        arrived: messages since they were last taken.
        done: identifiers that are acknowledged (QoS 1) or written (QoS 0).
        denied: subscriptions that were not granted: identifier of the request, position in it.
        dropped: arriving messages that were unusable.
        failure: what the socket raised last.
    """

    def __init__(self, client_id: str, context: ssl.SSLContext, *, clean_session: bool, will: Message | None) -> None:
        """Prepare; `open` connects."""
        # reconnect_on_failure=False also keeps paho from falling back to MQTT 3.1 by itself.
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=clean_session,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        self.accepted = False
        self.session_present = False
        self.refused = ""
        self.arrived: list[Arrived] = []
        self.done: list[int] = []
        self.denied: list[tuple[int, int]] = []
        self.dropped = 0
        self.failure: OSError | None = None
        self._drained = True
        self.tls_set_context(context)
        self.connect_timeout = CONNECT_TIMEOUT
        self.max_inflight_messages_set(0)  # our window is the only one
        if will is not None:
            self.will_set(will.topic, will.payload, qos=will.qos, retain=will.retain)
        self.on_socket_open = _no_delay
        self.on_connect = _on_connect
        self.on_message = _on_message
        self.on_publish = _on_publish
        self.on_subscribe = _on_subscribe

    def open(self, host: str, port: int, keepalive: int) -> None:
        """Connect and send CONNECT; blocks for the TCP and TLS handshakes, each step at most `CONNECT_TIMEOUT` seconds.

        Raises:
            OSError: also its kinds ssl.SSLError and TimeoutError.
            ValueError: the host is no host name.
        """
        self.connect(host, port, keepalive)

    def work(self, *, readable: bool) -> None:
        """Do what can be done now: read, write, ping."""
        self._drained = not readable
        for _ in range(MOST_PACKETS):
            if self._drained or self.socket() is None:
                break
            self.loop_read()
        if self.want_write():
            self.loop_write()
        self.loop_misc()

    def abandon(self) -> None:
        """Close the socket without a good-bye; the broker will publish the will."""
        self._sock_close()

    def pending(self) -> bool:
        """Whether TLS holds decrypted bytes, which no waiting on the socket can see."""
        sock = self.socket()
        return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

    def _sock_recv(self, bufsize: int) -> bytes:
        packet = self._in_packet["packet"]
        if len(packet) > HEAD:
            del packet[HEAD:]
        try:
            return super()._sock_recv(min(bufsize, READ_SIZE))
        except BlockingIOError:
            self._drained = True  # loop_read does not tell
            raise
        except OSError as error:
            self.failure = error  # paho would only log it
            raise


def _no_delay(_client: mqtt.Client, _data: object, sock: object) -> None:
    if isinstance(sock, socket.socket):
        # Acknowledgements are small; Nagle's algorithm holds each back by a round trip.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _on_connect(
    client: mqtt.Client, _data: object, flags: mqtt.ConnectFlags, code: ReasonCode, _properties: Properties | None
) -> None:
    if isinstance(client, LeashedClient):
        client.accepted = not code.is_failure
        client.session_present = flags.session_present
        client.refused = str(code) if code.is_failure else ""


def _on_message(client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
    if isinstance(client, LeashedClient):
        try:
            topic = message.topic  # decoded here, and not by paho, which passes on what is no UTF-8
        except UnicodeDecodeError:
            topic = ""
        if topic and len(topic) <= LONGEST_TOPIC and len(message.payload) <= MAX_PACKET:
            client.arrived.append(Arrived(topic, bytes(message.payload), message.retain))
        else:
            client.dropped += 1


def _on_publish(client: mqtt.Client, _data: object, mid: int, _code: ReasonCode, _properties: Properties) -> None:
    if isinstance(client, LeashedClient):
        client.done.append(mid)


def _on_subscribe(client: mqtt.Client, _data: object, mid: int, codes: list[ReasonCode], _properties: Properties) -> None:
    if isinstance(client, LeashedClient):
        client.denied.extend((mid, position) for position, code in enumerate(codes) if code.is_failure)
