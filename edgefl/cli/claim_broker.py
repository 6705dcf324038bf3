"""The claim broker beside the fleet's: started with it, stopped with it, and no reason to stop it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

from edgefl.brokers.claims import ClaimBroker, refuse_embedded
from edgefl.brokers.listener import Listener
from edgefl.brokers.mosquitto import find_mosquitto
from edgefl.errors import BrokerError
from edgefl.store.fleet import Fleet


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
    settings, keys = fleet.settings, (fleet.root_certificate, fleet.broker_certificate, fleet.broker_key)
    with ClaimBroker(Listener(fleet.broker / "claims", *keys, settings.claim_port, bind)) as broker:
        ended = threading.Event()
        threading.Thread(target=_watch, args=(broker, ended), daemon=True).start()
        click.echo(f"claims welcome on {bind}:{settings.claim_port}")
        try:
            yield
        finally:
            ended.set()


def _watch(broker: ClaimBroker, ended: threading.Event) -> None:
    """Say it if the claim broker ends before it is asked to."""
    broker.wait()
    try:
        if not ended.is_set():
            broker.check()
    except BrokerError as error:
        click.echo(f"error: no more claims: {error}", err=True)
