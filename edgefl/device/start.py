"""Starting the agent on a real board: the state directory, session number, link, will, and a clean end."""

import os
from collections.abc import Callable

from edgefl.device.agent import Agent
from edgefl.device.config import Bundle
from edgefl.device.notify import Notifier
from edgefl.device.progress import Seen
from edgefl.device.timekeeping import steady_wall, wait_for_time
from edgefl.device.voice import death
from edgefl.device.watchdog import Watchdog
from edgefl.errors import ConfigError, StoreError
from edgefl.link.address import BrokerAddress
from edgefl.link.paho import PahoLink
from edgefl.sources.parse import open_source
from edgefl.store.atomic import remove_leftovers, store_error
from edgefl.store.counter import next_number
from edgefl.store.lock import file_lock


def run_device(bundle: Bundle, should_stop: Callable[[], bool]) -> None:
    """Run the agent until told to stop.

    Raises:
        ConfigError: the bundle names no source of examples.
        DataError: the source's name is no such name.
        StoreError: the state directory cannot be written, or another agent uses it.
    """
    config = bundle.config
    if not config.data:
        raise ConfigError(
            f"{bundle.directory / 'device.toml'} names no source of examples",
            expected="a source such as npz:/var/lib/sensor/examples.npz",
            remedy="Set the key `data`, or give --data",
        )
    open_source(config.data)
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
        _remove_leftovers(bundle)
        _run_agent(bundle, should_stop)


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
        agent = Agent(bundle, link, session, wall=wall, pulse=pulse)
        wait_for_time(wall, watchdog.waiting, should_stop)
        agent.run(should_stop)
    finally:
        watchdog.stopping()
        link.close(2.0, last=last_words)
        wall.close()


def _remove_leftovers(bundle: Bundle) -> None:
    """Clear away what a killed process left half-written."""
    for directory in (bundle.state, *[path for path in bundle.state.rglob("*") if path.is_dir()]):
        if os.access(directory, os.W_OK):
            remove_leftovers(directory)
