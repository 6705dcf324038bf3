"""All checks of a broker, in an order in which each may rely on those before it."""

from collections.abc import Callable, Iterable, Iterator

from edgefl.brokers.checks.access import (
    check_foreign_publish,
    check_foreign_retained,
    check_foreign_subscription,
    check_foreign_will,
    check_own_topics,
    check_server_topics,
    check_system_topics,
)
from edgefl.brokers.checks.admission import (
    check_anonymous,
    check_client_id,
    check_expired,
    check_foreign,
    check_list,
    check_revoked,
    check_valid,
)
from edgefl.brokers.checks.finding import Finding, unknown
from edgefl.brokers.checks.keeping import check_kept_messages, check_packet_limit, check_persistence
from edgefl.brokers.checks.scene import Cast, Scene
from edgefl.brokers.checks.transport import check_authority, check_certificate, check_reachable, check_tls_version

STRANGERS: tuple[tuple[str, Callable[[Scene], Finding]], ...] = (
    ("no certificate", check_anonymous),
    ("foreign certificate", check_foreign),
    ("expired certificate", check_expired),
    ("revoked certificate", check_revoked),
)
MEMBERS: tuple[tuple[str, Callable[[Cast], Finding]], ...] = (
    ("kept messages", check_kept_messages),
    ("client id", check_client_id),
    ("foreign publish", check_foreign_publish),
    ("server's topics", check_server_topics),
    ("foreign subscription", check_foreign_subscription),
    ("foreign retained", check_foreign_retained),
    ("foreign will", check_foreign_will),
    ("$SYS", check_system_topics),
    ("packet limit", check_packet_limit),
)


def check_broker(scene: Scene, revoked: Iterable[int]) -> Iterator[Finding]:
    """Look at the broker; findings one by one, as they are made.

    Args:
        scene: the broker.
        revoked: serial numbers of all certificates that the registry has revoked.

    Raises:
        LinkError: nothing listens there.
        StoreError: a temporary file cannot be written, or the configuration cannot be read.
    """
    check_reachable(scene)
    yield check_tls_version(scene)
    yield check_certificate(scene)
    yield check_authority(scene)
    valid = check_valid(scene)
    yield valid
    if valid.state == "ok":
        yield from (check(scene) for _, check in STRANGERS)
    else:
        yield from (unknown(name, "not even a valid certificate is accepted") for name, _ in STRANGERS)
    yield check_list(scene, revoked)
    with Cast(scene) as cast:
        own = check_own_topics(cast)
        yield own
        if own.state == "ok":
            yield from (check(cast) for _, check in MEMBERS)
        else:
            yield from (unknown(name, "without own topics silence proves nothing") for name, _ in MEMBERS)
    yield check_persistence(scene)
