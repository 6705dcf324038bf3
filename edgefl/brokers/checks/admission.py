"""Who gets in: only who shows a certificate of the fleet that is neither expired nor revoked, and only as himself."""

import time
from collections.abc import Iterable

from edgefl.brokers.checks.finding import Finding, failed, ok, unknown
from edgefl.brokers.checks.scene import A, B, Cast, Scene, down
from edgefl.brokers.checks.transport import DAY, NEAR_END_DAYS
from edgefl.brokers.revoked import canary_files, current_list
from edgefl.errors import EdgeflError, SignatureError
from edgefl.link.address import BrokerAddress
from edgefl.link.probe import Probe

DEMAND = "Set `require_certificate true` and `allow_anonymous false`, and let `cafile` name the fleet's root alone"


def check_valid(scene: Scene) -> Finding:
    """A valid certificate is let in: otherwise no refusal means anything."""
    with scene.connect(A) as probe:
        if probe.accepted:
            return ok("valid certificate", "is accepted")
        return failed("valid certificate", f"is refused: {probe.reason}", "Give the broker this fleet's root as `cafile`")


def check_anonymous(scene: Scene) -> Finding:
    """Without a certificate there is no connection."""
    return _refused("no certificate", scene.address(A), DEMAND, anonymous=True)


def check_foreign(scene: Scene) -> Finding:
    """Another authority's certificate opens nothing, whatever names it bears."""
    return _refused("foreign certificate", scene.foreign(), DEMAND)


def check_expired(scene: Scene) -> Finding:
    """An expired certificate opens nothing."""
    return _refused("expired certificate", scene.expired(), DEMAND + "; check the clock of the broker's machine")


def check_revoked(scene: Scene) -> Finding:
    """A revoked certificate opens nothing: the canary is in every list from the first one on."""
    files = canary_files(scene.directory)
    if files is None:
        remedy = "Run `edgefl broker configure`, let the broker read crl.pem, and check again"
        return unknown("revoked certificate", "the fleet has not made a list of revoked certificates yet", remedy)
    remedy = f"Set `crlfile {scene.directory / 'crl.pem'}`, and let the broker reload"
    return _refused("revoked certificate", scene.wallet.of_files(*files), remedy)


def check_list(scene: Scene, revoked: Iterable[int]) -> Finding:
    """The list is this fleet's, holds for a while yet, and names every certificate that the registry has revoked."""
    name, remedy = "revocation list", "Sign a new one with `edgefl broker configure`, and let the broker reload"
    try:
        crl = current_list(scene.directory, scene.authority)
    except SignatureError as error:
        return failed(name, error.problem, remedy)
    except EdgeflError as error:
        return unknown(name, str(error))
    if crl is None:
        return failed(name, "there is none", remedy)
    missing = len(set(revoked) - crl.serials)
    if missing:
        return failed(name, f"does not name {missing} revoked certificates", remedy)
    days = (crl.ends - time.time()) / DAY
    if days < NEAR_END_DAYS or crl.begins > time.time():
        return failed(name, f"ends in {days:.0f} days, and then locks everybody out", remedy)
    return ok(name, f"names {len(crl.serials)} certificates, ends in {days:.0f} days")


def check_client_id(cast: Cast) -> Finding:
    """A device that asks for another's client id neither ends its session nor hears its messages."""
    name = "client id"
    cast.leave(B)  # a broker that corrects the client id gives the rogue this device's own place
    victim = cast.fresh(A)
    with Probe(cast.scene.address(B), A) as rogue:
        rogue.subscribe(down(A, "#"))
        heard = cast.observer.publish(down(A, "id"), b"mine") and victim.hears(down(A, "id"), b"mine")
        stolen = any(message.topic == down(A, "id") for message in rogue.heard)
    if not victim.alive or stolen:
        return failed(
            name,
            "a device takes another's place by its client id",
            "Set `use_identity_as_username` and `use_username_as_clientid`",
        )
    if not heard:
        return unknown(name, "the device kept its place, but heard nothing that could have been stolen")
    return ok(name, "nobody takes another's place")


def _refused(name: str, address: BrokerAddress, remedy: str, *, anonymous: bool = False) -> Finding:
    with Probe(address, A, anonymous=anonymous) as probe:
        if probe.accepted:
            return failed(name, "is accepted", remedy)
        return ok(name, f"is refused ({probe.reason})")
