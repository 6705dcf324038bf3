"""The claim broker beside the fleet's: started with it, stopped with it, and no reason to stop it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from edgefl.brokers.claims import ClaimBroker, refuse_embedded
from edgefl.brokers.listener import Listener
from edgefl.brokers.mosquitto import find_mosquitto
from edgefl.errors import BrokerError
from edgefl.server.pairs import join_pairs
from edgefl.store.fleet import Fleet

LOOK_EVERY = 2.0
"""Seconds between two looks whether the broker's pair was renewed."""


@contextmanager
def claim_broker(fleet: Fleet, kind: str, bind: str) -> Iterator[None]:
    """Let boards claim for as long as the block lasts, at the fleet's claim port of the address `bind`.

    Args:
        fleet: whose.
        kind: of the fleet's broker, as the user has chosen it.
        bind: address of one interface, or `0.0.0.0`.

    Raises:
        BrokerError: the fleet's broker is the embedded one, a port is taken, or Mosquitto does not start.
        StoreError: a file cannot be written.
    """
    if kind == "embedded" or find_mosquitto() is None:
        refuse_embedded()
    join_pairs(fleet)
    settings, keys = fleet.settings, (fleet.root_certificate, fleet.broker_certificate, fleet.broker_key)
    with ClaimBroker(Listener(fleet.broker / "claims", *keys, settings.claim_port, bind)) as broker:
        ended = threading.Event()
        threading.Thread(target=_watch, args=(broker, fleet.broker_certificate, ended), daemon=True).start()
        click.echo(f"claims welcome on {bind}:{settings.claim_port}")
        try:
            yield
        finally:
            ended.set()


def _watch(broker: ClaimBroker, pair: Path, ended: threading.Event) -> None:
    """Let the claim broker read a new pair, and say it if it ends before it is asked to."""
    shown = pair.stat().st_mtime_ns
    while not broker.wait(LOOK_EVERY):
        with suppress(OSError):  # a pair that is being replaced
            if (now := pair.stat().st_mtime_ns) != shown:
                shown = now
                broker.reload()
    try:
        if not ended.is_set():
            broker.check()
    except BrokerError as error:
        click.echo(f"error: no more claims: {error}", err=True)
