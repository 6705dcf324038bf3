"""Who may write and read what: one rule, said twice, as Mosquitto's access file and as functions for the embedded broker.

A device writes below `up/` with its own id and reads below `down/` with its own id and below `all/`; the server does anything
below the root; a revoked device and everybody else do nothing. The observer is the fleet's own eye during `edgefl broker check`:
it sees and plays the server's part for two devices that do not exist, so that the real server need not give up its place. The
tests run the same attacks against both brokers, so that the two cannot drift.
"""

from collections.abc import Iterable

from edgefl.names import CHECK_DEVICES, OBSERVER, SERVER, is_id
from edgefl.wire.topics import ROOT

CHECK_TOPIC = f"{ROOT}/all/check"
"""What the observer says to all; nobody else listens to it."""
OBSERVED = (*(f"{ROOT}/{way}/{device}" for device in CHECK_DEVICES for way in ("up", "down")), CHECK_TOPIC)
"""Where the observer may write and read, with everything below."""
MOSQUITTO_ACL = f"""# Written by `edgefl broker`; changes are lost. %u is the common name of the client's certificate.
user {SERVER}
topic readwrite {ROOT}/#

user {OBSERVER}
{"".join(f"topic readwrite {prefix}/#{chr(10)}" for prefix in OBSERVED)}
pattern write {ROOT}/up/%u/#
pattern read {ROOT}/down/%u/#
pattern read {ROOT}/all/#
"""

CLAIM_ACL = f"""# Written by `edgefl broker --claims`; changes are lost. %c is the client id, which a board draws at random.
pattern write {ROOT}/claim/%c/request
pattern read {ROOT}/claim/%c/reply
"""
CLAIM_SERVER_ACL = f"""# Written by `edgefl broker --claims`; changes are lost.
user {SERVER}
topic read {ROOT}/claim/+/request
topic write {ROOT}/claim/+/reply
"""
"""Of the claim broker's two listeners, see `broker/claims.conf`."""

_ROOT = tuple(ROOT.split("/"))


def mosquitto_acl(revoked: Iterable[str] = ()) -> str:
    """Mosquitto's access file. Its deny lines silence sessions that were open before a device was revoked."""
    return MOSQUITTO_ACL + "".join(f"\nuser {device}\ntopic deny #\n" for device in revoked)


def may_publish(user: str, topic: str) -> bool:
    """Whether this user may publish (or leave a will) on a topic."""
    if user == SERVER:
        return _below(topic, _ROOT)
    return is_id(user) and (_below(topic, (*_ROOT, "up", user)) or _observes(user, topic))


def may_read(user: str, topic: str) -> bool:
    """Whether this user may receive a topic, or everything that a topic filter can match.

    A filter with a wildcard inside the permitted prefix is refused as a whole: the levels must be equal, and `+` is not.
    """
    if user == SERVER:
        return _below(topic, _ROOT)
    own = _below(topic, (*_ROOT, "down", user)) or _below(topic, (*_ROOT, "all"))
    return is_id(user) and (own or _observes(user, topic))


def _observes(user: str, topic: str) -> bool:
    return user == OBSERVER and any(_below(topic, tuple(prefix.split("/"))) for prefix in OBSERVED)


def _below(topic: str, prefix: tuple[str, ...]) -> bool:
    levels = topic.split("/")
    return len(levels) > len(prefix) and tuple(levels[: len(prefix)]) == prefix
