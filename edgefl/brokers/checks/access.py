"""Who may do what: a device speaks below its own name, hears what is meant for it, and is not the server.

Each check lets one device try what it must not do, then lets the broker deliver something that it must: brokers deliver what one
client says to another in order, so that what has not been heard by then was not passed on.
"""

from collections.abc import Sequence

from edgefl.brokers.acl import CHECK_TOPIC, may_read
from edgefl.brokers.checks.finding import Finding, failed, ok, unknown
from edgefl.brokers.checks.scene import A, B, Cast, down, up
from edgefl.link.contract import Message
from edgefl.link.probe import Probe
from edgefl.wire.topics import ROOT

RULES = "Give the broker the rules of `FLEET/broker/acl`, or their like"
ALL = f"{CHECK_TOPIC}/all"
WILL_SECONDS = 3.0


def check_own_topics(cast: Cast) -> Finding:
    """What a device may do, it can do: otherwise no silence means anything."""
    name = "own topics"
    if not cast.observer.accepted:
        return unknown(name, f"the observer is not admitted ({cast.observer.reason})", "Let the broker admit `edgefl-check`")
    cast.observer.publish(ALL, b"echo")
    if not cast.observer.hears(ALL, b"echo"):
        return unknown(name, "the observer does not hear itself", f"Give `edgefl-check` its rights. {RULES}")
    device = cast.fresh(A, f"{CHECK_TOPIC}/#")
    spoken, heard = cast.observer_hears(A), cast.device_hears(A)
    called = cast.observer.publish(ALL, b"all") and device.hears(ALL, b"all")
    wrong = [text for done, text in ((spoken, "speak"), (heard, "hear"), (called, "hear what is said to all")) if not done]
    if wrong:
        return failed(name, f"a device cannot {', nor '.join(wrong)}", RULES)
    return ok(name, "a device speaks, and hears what is meant for it and for all")


def check_foreign_publish(cast: Cast) -> Finding:
    """A device cannot speak below another's name."""
    return _forged(cast, "foreign publish", (up(A, "forged"),))


def check_server_topics(cast: Cast) -> Finding:
    """The server's rights are the server's: no device speaks to devices, not even to itself."""
    return _forged(cast, "server's topics", (down(A, "forged"), down(B, "forged"), f"{CHECK_TOPIC}/forged"))


def check_foreign_subscription(cast: Cast) -> Finding:
    """A device hears nothing that is meant for or said by another, whatever it subscribes to."""
    name = "foreign subscription"
    curious = cast.fresh(A, down(B, "#"), up(B, "#"), f"{ROOT}/+/{B}/#", f"{ROOT}/#", "#")
    cast.observer.publish(down(B, "secret"), b"to b")
    if not cast.observer_hears(B) or not cast.device_hears(A):
        return unknown(name, "nothing was heard at all")
    return _overheard(name, curious)


def check_foreign_retained(cast: Cast) -> Finding:
    """What another has left with the broker is not handed out."""
    name = "foreign retained"
    owner, topic = cast.device(B), up(B, "kept")
    owner.publish(topic, b"kept", retain=True)
    try:
        if not cast.observer.hears(topic, b"kept"):
            return unknown(name, "a device's retained message did not arrive")
        curious = cast.fresh(A, up(B, "#"), topic)
        if not cast.device_hears(A):
            return unknown(name, "nothing was heard at all")
        return _overheard(name, curious)
    finally:
        cast.device(B).publish(topic, b"", retain=True)


def check_foreign_will(cast: Cast) -> Finding:
    """A device cannot have another declared dead by its will; its own will is sent."""
    name = "foreign will"
    targets = (up(B, "will"), down(B, "will"), f"{CHECK_TOPIC}/will")
    observer = cast.observer
    for topic in targets:
        cast.scene.connect(A, will=Message(topic, b"dead", 1)).vanish()
    own = cast.scene.connect(A, will=Message(up(A, "will"), b"dead", 1))
    own.vanish()
    if not observer.hears(up(A, "will"), b"dead", WILL_SECONDS):
        return unknown(name, "not even a device's own will was sent" if own.accepted else "a client with a will is refused")
    heard = [topic for topic in targets if _has(observer, topic)]
    if heard:
        return failed(name, f"a device's will was sent on {', '.join(heard)}", RULES)
    return ok(name, "is not sent; the own will is")


def check_system_topics(cast: Cast) -> Finding:
    """What the broker tells of itself is nobody's business."""
    name = "$SYS"
    curious = cast.fresh(A, "$SYS/#")
    if not cast.device_hears(A):
        return unknown(name, "nothing was heard at all")
    heard = [message.topic for message in curious.heard if message.topic.startswith("$")]
    if heard:
        return failed(name, f"a device reads {heard[0]} and {len(heard) - 1} others", RULES)
    return ok(name, "cannot be read")


def _forged(cast: Cast, name: str, topics: Sequence[str]) -> Finding:
    """Let the second device publish on topics that are not its own."""
    if not cast.observer_hears(B):  # or the first attempt might go into a connection that has ended unnoticed
        return unknown(name, "nothing was heard at all")
    observer = cast.observer
    for topic in topics:
        cast.device(B).publish(topic, b"forged")
    if not cast.observer_hears(B) or cast.observer is not observer:
        return unknown(name, "nothing was heard afterwards")
    heard = [topic for topic in topics if _has(observer, topic)]
    if heard:
        return failed(name, f"a device's message was passed on from {', '.join(heard)}", RULES)
    return ok(name, "is not passed on")


def _overheard(name: str, curious: Probe) -> Finding:
    """Judge everything that the first device has heard."""
    heard = [message.topic for message in curious.heard if not may_read(A, message.topic)]
    if heard:
        return failed(name, f"a device hears {heard[0]}", RULES)
    return ok(name, "yields nothing")


def _has(probe: Probe, topic: str) -> bool:
    return any(message.topic == topic for message in probe.heard)
