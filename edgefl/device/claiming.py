"""A board's first certificate: make a key, ask with the token, take the certificate.

Model: the board connects to the claim broker without a certificate of its own, under a client id that it draws at random, so that
nobody can throw it out. It listens for the reply before it asks, and asks again, ever more slowly, until there is one. The broker
has to show a certificate of the fleet: the token goes to no one else.

Rules:

* The key is on disk before the request is sent, the certificate before the token is deleted. A power cut at any moment ends in
  the same request being made again, which the server answers with the same certificate.
* `busy` is waited out. Any other refusal is final: only a new claim helps.
"""

import logging
import random
import secrets
import time
from collections.abc import Callable

from edgefl.device.config import Bundle
from edgefl.device.identity import ClaimFile, Draft, close_claim, draft, forget_tokens, install_pair, open_claim, pair_validity
from edgefl.errors import ConfigError, PeerError
from edgefl.identity.requests import check_answer
from edgefl.link.address import BrokerAddress
from edgefl.link.backoff import Backoff
from edgefl.link.contract import Arrived, Connected, Disconnected, Link
from edgefl.link.paho import PahoLink
from edgefl.wire import topics
from edgefl.wire.enrolment import ClaimReply, ClaimRequest
from edgefl.wire.messages import decode, encode

FIRST_PATIENCE = 2.0
"""Seconds that an answer may take before the board asks again; then ever more."""
BUSY = "busy"
SECOND_CLAIM_SECONDS = 60.0
"""How long a board that has a certificate tries to claim another one before it goes on with what it has."""
MESSAGES = {
    "token": "Check that this is the board's newest claim",
    "used": "Make a new claim with `edgefl provision ID --claim --again`",
    "expired": "Make a new claim with `edgefl provision ID --claim --again`",
}

log = logging.getLogger("edgefl.device")


def claim_if_open(bundle: Bundle, should_stop: Callable[[], bool]) -> bool:
    """Claim a certificate if a claim is open. The caller holds the state directory's lock.

    Returns:
        Whether the board has a certificate now; False only when it was told to stop before.

    Raises:
        ConfigError: the claim was refused, or `claim.toml` is malformed, and the board has no certificate.
        StoreError: the state directory cannot be written.
    """
    claim = open_claim(bundle)
    held = pair_validity(bundle) is not None
    if claim is None:
        forget_tokens(bundle)  # a bundle that was installed again brings its old one
        return held
    ends = time.monotonic() + SECOND_CLAIM_SECONDS
    try:
        return make_claim(bundle, claim, lambda: should_stop() or (held and time.monotonic() > ends)) or held
    except ConfigError as error:
        if not held:
            raise
        log.warning("going on with the certificate that is there: %s", error)
        return True


def make_claim(
    bundle: Bundle,
    claim: ClaimFile,
    should_stop: Callable[[], bool],
    connect: Callable[[BrokerAddress, str], Link] = PahoLink,
) -> bool:
    """Ask until there is an answer; False if told to stop before.

    Raises:
        ConfigError: the claim was refused.
        StoreError: the state directory cannot be written.
    """
    ours = draft(bundle, claim.mark[:16])
    name = secrets.token_hex(16)
    address = BrokerAddress(claim.host, claim.port, bundle.ca, None, None)
    link = connect(address, name)
    try:
        link.subscribe(topics.claim_reply(name))
        chain = _ask(link, name, _request(bundle, claim, ours), lambda reply: _judge(bundle, ours, reply), should_stop)
    finally:
        link.close(1.0)
    if not chain:
        return False
    install_pair(bundle, ours.key, chain)
    close_claim(bundle, claim)
    log.info("this board has claimed its certificate as %s", bundle.config.id)
    return True


def _request(bundle: Bundle, claim: ClaimFile, ours: Draft) -> bytes:
    config = bundle.config
    return encode(ClaimRequest(config.id, claim.token.encode(), ours.csr, config.profile))


def _ask(link: Link, name: str, request: bytes, judge: Callable[[bytes], bytes], should_stop: Callable[[], bool]) -> bytes:
    """Ask until `judge` takes a reply; empty if told to stop before."""
    pauses = Backoff(random.Random())  # noqa: S311 - jitter is no secret
    ask_at = 0.0
    while not should_stop():
        if link.connected and time.monotonic() >= ask_at:
            link.publish(topics.claim_request(name), request, qos=0)
            now = time.monotonic()
            pauses.failed(now)
            ask_at = max(pauses.due, now + FIRST_PATIENCE)
        for event in link.poll(min(0.5, max(0.0, ask_at - time.monotonic())) if link.connected else 0.5):
            match event:
                case Connected():
                    ask_at = 0.0  # the subscription has been sent, and the broker works in order
                case Disconnected(reason):
                    log.warning("cannot claim yet: %s", reason)
                case Arrived(topic, payload, _) if topic == topics.claim_reply(name):
                    if chain := judge(payload):
                        return chain
    return b""


def _judge(bundle: Bundle, ours: Draft, payload: bytes) -> bytes:
    """The chain in a reply; empty for one that is not believed or says `busy`. Raises ConfigError for a final refusal."""
    try:
        reply = decode(payload, ClaimReply)
        if reply.certificate:
            check_answer(reply.certificate, ours.key, bundle.config.id, bundle.ca.read_bytes())
            return reply.certificate
    except PeerError as error:
        log.warning("a reply that is not believed: %s", error)
        return b""
    if reply.code == BUSY:
        return b""
    raise ConfigError(
        f"the server refuses this board's claim ({reply.code})",
        found=reply.text[:200],
        remedy=MESSAGES.get(reply.code, "Ask who provisioned this board"),
    )
