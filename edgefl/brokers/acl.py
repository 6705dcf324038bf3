"""Who may write and read what: one rule, said twice, as Mosquitto's access file and as functions for the embedded broker.

A device writes below `up/` with its own id and reads below `down/` with its own id and below `all/`; the server does anything
below the root; nobody else does anything. The tests run the same attacks against both brokers, so that the two cannot drift.
"""

from edgefl.names import SERVER, is_id
from edgefl.wire.topics import ROOT

MOSQUITTO_ACL = f"""# Written by `edgefl broker`; changes are lost. %u is the common name of the client's certificate.
user {SERVER}
topic readwrite {ROOT}/#

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


def may_publish(user: str, topic: str) -> bool:
    """Whether this user may publish (or leave a will) on a topic."""
    return _below(topic, (*_ROOT,)) if user == SERVER else is_id(user) and _below(topic, (*_ROOT, "up", user))


def may_read(user: str, topic: str) -> bool:
    """Whether this user may receive a topic, or everything that a topic filter can match.

    A filter with a wildcard inside the permitted prefix is refused as a whole: the levels must be equal, and `+` is not.
    """
    if user == SERVER:
        return _below(topic, _ROOT)
    return is_id(user) and (_below(topic, (*_ROOT, "down", user)) or _below(topic, (*_ROOT, "all")))


def _below(topic: str, prefix: tuple[str, ...]) -> bool:
    levels = topic.split("/")
    return len(levels) > len(prefix) and tuple(levels[: len(prefix)]) == prefix
