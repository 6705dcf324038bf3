"""Starting the agent on a real board: the state directory, session number, link, will, and a clean end."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgefl.device.agent import Agent
from edgefl.device.claimcode import read_code
from edgefl.device.claiming import claim_if_open, make_claim
from edgefl.device.config import Bundle
from edgefl.device.identity import open_claim, take_over
from edgefl.device.notify import Notifier
from edgefl.device.progress import Seen
from edgefl.device.timekeeping import steady_wall, wait_for_time
from edgefl.device.voice import death
from edgefl.device.watchdog import Watchdog
from edgefl.errors import ConfigError, StoreError
from edgefl.link.address import BrokerAddress
from edgefl.link.paho import PahoLink
from edgefl.profile import trains
from edgefl.sources.parse import open_source
from edgefl.store.atomic import remove_leftovers, store_error
from edgefl.store.counter import next_number
from edgefl.store.lock import file_lock


def run_device(bundle: Bundle, should_stop: Callable[[], bool]) -> None:
    """Run the agent until told to stop.

    Raises:
        ConfigError: the bundle names no source of examples, and the board is to train.
        DataError: the source's name is no such name.
        StoreError: the state directory cannot be written, or another agent uses it.
    """
    config = bundle.config
    if not config.data and trains(config.engine):
        raise ConfigError(
            f"{bundle.directory / 'device.toml'} names no source of examples",
            expected="a source such as npz:/var/lib/sensor/examples.npz",
            remedy="Set the key `data`, or give --data",
        )
    if config.data:
        open_source(config.data)
    with _alone(bundle):
        _remove_leftovers(bundle)
        take_over(bundle)
        if not claim_if_open(bundle, should_stop):
            _give_up(bundle, should_stop)
            return
        _run_agent(bundle, should_stop)


@contextmanager
def _alone(bundle: Bundle) -> Iterator[None]:
    """The state directory, made if need be, for this process alone. Raises StoreError."""
    try:
        bundle.state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise store_error("create", bundle.state, error) from error
    with file_lock(bundle.state / "lock", wait=False) as alone:
        if not alone:
            raise StoreError(
                f"another agent runs with the state in {bundle.state}",
                remedy="End it first: two would send each other's updates",
            )
        yield


def _run_agent(bundle: Bundle, should_stop: Callable[[], bool]) -> None:
    config = bundle.config
    session = next_number(bundle.state / "session")
    address = BrokerAddress(config.host, config.port, bundle.ca, bundle.certificate, bundle.key)
    last_words = death(config.id, session)
    link = PahoLink(address, config.id, will=last_words)
    wall, watchdog = steady_wall(bundle), Watchdog(Notifier())

    def pulse(seen: Seen) -> None:
        wall()  # time is remembered although nobody asks for it
        watchdog.turn(seen)

    try:
        agent = Agent(bundle, link, session, wall=wall, pulse=pulse, signed_at=wall.at_least)
        wait_for_time(wall, watchdog.waiting, should_stop)
        agent.run(should_stop)
    finally:
        watchdog.stopping()
        link.close(2.0, last=last_words)
        wall.close()


def _give_up(bundle: Bundle, should_stop: Callable[[], bool]) -> None:
    """No certificate: somebody has stopped us, or there is none. Raises ConfigError for the latter."""
    if not should_stop():
        raise ConfigError(
            f"{bundle.directory} holds no certificate and no open claim",
            remedy="Make a new claim with `edgefl provision ID --claim --again`, or copy the whole bundle again",
        )


def claim_only(bundle: Bundle, should_stop: Callable[[], bool], *, code: str | None = None) -> bool:
    """Claim the board's certificate and do nothing else; False if told to stop before.

    Args:
        bundle: whose.
        should_stop: asked between attempts.
        code: a claim code, used instead of a `claim.toml`.

    Raises:
        ConfigError: there is no open claim, or it was refused.
        InputError: the code cannot be used.
        StoreError: the state directory cannot be written, or an agent uses it.
    """
    claim = open_claim(bundle) if code is None else read_code(code, bundle.config.id)
    if claim is None:
        raise ConfigError(
            f"{bundle.directory} holds no open claim",
            remedy="Make one with `edgefl provision ID --claim`, with --again if need be",
        )
    with _alone(bundle):
        return make_claim(bundle, claim, should_stop)


def _remove_leftovers(bundle: Bundle) -> None:
    """Clear away what a killed process left half-written."""
    for directory in (bundle.state, *[path for path in bundle.state.rglob("*") if path.is_dir()]):
        if os.access(directory, os.W_OK):
            remove_leftovers(directory)
