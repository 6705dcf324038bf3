"""The promises of every link, kept by the memory link and by paho against real brokers."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgefl.errors import LinkError
from edgefl.link.contract import Arrived, Connected, Disconnected, Event, Link, Message, matches
from edgefl.wire.messages import MAX_PACKET
from linkworlds import MOSQUITTO, MemoryWorld, RealBroker, World

needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
KINDS = [
    "memory",
    pytest.param("mosquitto", marks=[pytest.mark.broker, needs_mosquitto]),
    pytest.param("amqtt", marks=pytest.mark.broker),
]


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Each kind of broker in turn."""
    if request.param == "amqtt":
        pytest.importorskip("amqtt")
    broker: World = MemoryWorld() if request.param == "memory" else RealBroker(tmp_path, request.param)
    yield broker
    broker.end()


def gather(*links: Link, until: Callable[[list[list[Event]]], bool], seconds: float = 60.0) -> list[list[Event]]:
    """Poll the links in turn until the events satisfy a condition; the events of each."""
    events: list[list[Event]] = [[] for _ in links]
    deadline = time.monotonic() + seconds
    while not until(events):
        assert time.monotonic() < deadline, f"waited in vain; events: {events}"
        for link, seen in zip(links, events, strict=True):
            seen.extend(link.poll(0.02))
    return events


def settle(*links: Link, seconds: float = 0.3) -> list[list[Event]]:
    """Poll for a while; the events of each link."""
    end = time.monotonic() + seconds
    return gather(*links, until=lambda _: time.monotonic() > end)


def messages(events: list[Event]) -> list[Arrived]:
    """The messages among events."""
    return [event for event in events if isinstance(event, Arrived)]


def online(*links: Link) -> None:
    """Poll until all are connected, and a little longer so that subscriptions are in force."""
    gather(*links, until=lambda _: all(link.connected for link in links))
    settle(*links)


def test_message_reaches_subscriber(world: World) -> None:
    """What one client publishes, another that subscribed receives byte for byte, and only what it subscribed to."""
    a, b = world.link("a"), world.link("b")
    b.subscribe("efl/v1/up/+/want")
    online(a, b)
    payload = bytes(range(256)) * 64
    a.publish("efl/v1/up/a/want", payload)
    a.publish("efl/v1/up/a/report", b"not for b")
    a.publish("efl/v1/up/a/want", b"", qos=0)
    _, seen = gather(a, b, until=lambda events: len(messages(events[1])) >= 2)
    assert messages(seen) == [Arrived("efl/v1/up/a/want", payload, False), Arrived("efl/v1/up/a/want", b"", False)]


def test_largest_packet_passes(world: World) -> None:
    """A payload of exactly MAX_PACKET bytes arrives."""
    a, b = world.link("a"), world.link("b")
    b.subscribe("big")
    online(a, b)
    a.publish("big", b"x" * MAX_PACKET)
    _, seen = gather(a, b, until=lambda events: bool(messages(events[1])))
    assert len(messages(seen)[0].payload) == MAX_PACKET


def test_retained_message_waits_for_latecomers(world: World) -> None:
    """The last retained message of a topic is delivered to a later subscriber, marked as retained; an empty one deletes it."""
    a, b = world.link("a"), world.link("b")
    online(a)
    a.publish("r/1", b"old", retain=True)
    a.publish("r/1", b"new", retain=True)
    a.publish("r/2", b"gone", retain=True)
    a.publish("r/2", b"", retain=True)
    gather(a, until=lambda _: a.outgoing == 0)
    b.subscribe("r/#")
    online(b)
    late = world.link("late")
    late.subscribe("r/#")
    (seen,) = gather(late, until=lambda events: bool(messages(events[0])))
    seen += settle(late)[0]
    assert set(messages(seen)) == {Arrived("r/1", b"new", True)}  # a broker may send it twice


def test_will_on_abrupt_end_only(world: World) -> None:
    """The will is published when the connection is cut, and not after a clean close."""
    watcher = world.link("watcher")
    watcher.subscribe("dead/+")
    polite = world.link("polite", will=Message("dead/polite", b"!"))
    rude = world.link("rude", will=Message("dead/rude", b"!"))
    online(watcher, polite, rude)
    polite.close(2.0, last=Message("dead/polite", b"good-bye"))
    world.drop(rude)  # type: ignore[arg-type]  # a world takes its own links
    (seen,) = gather(watcher, until=lambda events: len(messages(events[0])) >= 2)
    seen += settle(watcher)[0]
    assert sorted((m.topic, m.payload) for m in messages(seen)) == [("dead/polite", b"good-bye"), ("dead/rude", b"!")]


def test_drop_is_an_event_and_heals(world: World) -> None:
    """A cut connection is told once, comes back by itself with its subscriptions, and what was published meanwhile arrives."""
    a, b = world.link("a"), world.link("b")
    b.subscribe("t")
    online(a, b)
    world.drop(a)  # type: ignore[arg-type]  # a world takes its own links
    world.drop(b)  # type: ignore[arg-type]  # a world takes its own links
    events_a, events_b = gather(a, b, until=lambda events: all(Connected(False) in seen for seen in events))
    for events in (events_a, events_b):
        assert [type(event) for event in events if not isinstance(event, Arrived)] == [Disconnected, Connected]
    settle(a, b)
    a.publish("t", b"after")
    _, seen = gather(a, b, until=lambda events: bool(messages(events[1])))
    assert messages(seen) == [Arrived("t", b"after", False)]


def test_connecting_anew_is_no_death_and_loses_nothing(world: World) -> None:
    """After `reconnect` no will is published, subscriptions stand, what was queued arrives in order; offline it does nothing."""
    watcher, a = world.link("watcher"), world.link("a", will=Message("dead/a", b"!"))
    a.reconnect()
    watcher.subscribe("dead/+")
    watcher.subscribe("t/#")
    a.subscribe("back")
    online(watcher, a)
    for number in range(40):
        a.publish("t/before", b"%d" % number)
    a.reconnect()
    a.publish("t/after", b"")
    seen, _ = gather(watcher, a, until=lambda events: Arrived("t/after", b"", False) in events[0])
    assert [int(m.payload) for m in messages(seen) if m.topic == "t/before"][-40:] == list(range(40))
    assert not [m for m in messages(seen) if m.topic == "dead/a"]
    settle(watcher, a)
    watcher.publish("back", b"x")
    _, heard = gather(watcher, a, until=lambda events: bool(messages(events[1])))
    assert messages(heard)[0].topic == "back"


def test_queue_survives_broker_restart(world: World) -> None:
    """QoS 1 messages published while the broker is away are delivered afterwards, in order; QoS 0 messages are dropped."""
    a, b = world.link("a"), world.link("b")
    b.subscribe("t", qos=1)
    online(a, b)
    world.stop()
    gather(a, b, until=lambda _: not a.connected and not b.connected)
    for number in range(60):
        a.publish("t", b"%d" % number)
    a.publish("t", b"lost", qos=0)
    assert a.outgoing > 0
    world.start()
    gather(b, until=lambda _: b.connected)
    settle(b)
    _, seen = gather(a, b, until=lambda events: len(messages(events[1])) >= 60)
    order = list(dict.fromkeys(m.payload for m in messages(seen)))  # at least once: a repetition is allowed
    assert order == [b"%d" % number for number in range(60)]
    gather(a, until=lambda _: a.outgoing == 0)


def test_session_keeps_messages_while_away(world: World) -> None:
    """Without a clean session the broker keeps QoS 1 messages for a client that is away, and says that the session was there."""
    if world.kind == "amqtt":
        pytest.skip("amqtt delivers such messages marked as retained")
    a, b = world.link("a"), world.link("b", clean_session=False)
    b.subscribe("t")
    online(a, b)
    b.close(2.0)
    a.publish("t", b"while you were out")
    gather(a, until=lambda _: a.outgoing == 0)
    again = world.link("b", clean_session=False)
    (seen,) = gather(again, until=lambda events: bool(messages(events[0])))
    assert Connected(True) in seen
    assert messages(seen) == [Arrived("t", b"while you were out", False)]


def test_unsubscribed_is_silent(world: World) -> None:
    """After unsubscribing nothing of the filter arrives, not even after a reconnection."""
    a, b = world.link("a"), world.link("b")
    b.subscribe("t")
    b.subscribe("end")
    online(a, b)
    b.unsubscribe("t")
    world.drop(b)  # type: ignore[arg-type]  # a world takes its own links
    gather(b, until=lambda events: any(isinstance(event, Connected) for event in events[0]))
    settle(b)
    a.publish("t", b"no")
    a.publish("end", b"yes")
    _, seen = gather(a, b, until=lambda events: bool(messages(events[1])))
    assert [m.topic for m in messages(seen)] == ["end"]


def test_budget_and_size_are_checked_before_queueing(world: World) -> None:
    """An oversize message, an impossible topic, and a message over the budget are refused at once, and nothing is queued."""
    a = world.link("a", budget=1000)
    for topic, size in (("t", MAX_PACKET + 1), ("t/#", 1), ("", 1), ("+", 1), ("t", 1001)):
        with pytest.raises(LinkError):
            a.publish(topic, b"x" * size)
    a.publish("t", b"x" * 600)
    with pytest.raises(LinkError, match="no room"):
        a.publish("t", b"x" * 600)
    assert a.outgoing == 600
    with pytest.raises(LinkError):
        a.publish("t", b"", qos=2)
    for bad in ("", "a/#/b", "a+", "#a"):
        with pytest.raises(LinkError):
            a.subscribe(bad)
    gather(a, until=lambda _: a.outgoing == 0)
    a.publish("t", b"x" * 600)


def test_traffic_counts_payloads(world: World) -> None:
    """The counters hold messages and payload bytes, both ways."""
    a, b = world.link("a"), world.link("b")
    b.subscribe("t")
    online(a, b)
    for size in (10, 20, 30):
        a.publish("t", b"x" * size)
    gather(a, b, until=lambda events: len(messages(events[1])) == 3)
    assert (a.traffic.sent, a.traffic.sent_bytes) == (3, 60)
    assert (b.traffic.received, b.traffic.received_bytes, b.traffic.dropped) == (3, 60, 0)


def test_more_than_a_window_of_qos_0_goes_out_at_once(world: World) -> None:
    """QoS 0 messages are done when they are written, so that many windows of them need no waiting."""
    a, b = world.link("a"), world.link("b")
    b.subscribe("t", qos=0)
    online(a, b)
    for number in range(200):
        a.publish("t", b"%d" % number, qos=0)
    a.poll(0.0)
    assert a.outgoing == 0
    _, seen = gather(a, b, until=lambda events: len(messages(events[1])) == 200)
    assert [m.payload for m in messages(seen)] == [b"%d" % number for number in range(200)]


@pytest.mark.parametrize(
    ("topic_filter", "topic", "covered"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("+", "", True),
        ("a/+/c", "a//c", True),
        ("a/b/#", "a", False),
    ],
)
def test_wildcards(topic_filter: str, topic: str, covered: bool) -> None:
    """Filters cover topics as section 4.7 of MQTT 3.1.1 says."""
    assert matches(topic_filter, topic) is covered


def test_restart_makes_a_new_connection_and_keeps_what_is_wanted(world: World) -> None:
    """The link says that it was lost and is back; what was subscribed to still comes. Without a connection nothing happens."""
    a, b = world.link("a"), world.link("b")
    b.subscribe("efl/v1/up/+/want")
    b.restart()
    online(a, b)
    a.restart()
    a.publish("efl/v1/up/a/want", b"after")
    b.restart()
    lost, back = gather(a, b, until=lambda events: all(Connected(False) in seen for seen in events))
    assert [[type(event) for event in seen][:2] for seen in (lost, back)] == [[Disconnected, Connected]] * 2
    settle(b)
    a.publish("efl/v1/up/a/want", b"again")
    _, seen = gather(a, b, until=lambda events: bool(messages(events[1])))
    assert messages(seen)[-1].payload in (b"after", b"again")
