"""The embedded broker: amqtt in this process, on loopback, for demos, tests and machines without Mosquitto.

It keeps nothing over a restart, speaks MQTT 3.1.1 only, serves tens of devices, and drops a QoS 1 message that is not
acknowledged within five seconds. Therefore it refuses every address that another machine could reach.
"""

import asyncio
import ipaddress
import logging
import signal
from collections.abc import Callable
from contextlib import suppress

from edgefl.brokers.listener import Listener, check_free
from edgefl.errors import BrokerError

SHUTDOWN_SECONDS = 5.0


def check_loopback(bind: str) -> None:
    """Refuse an address that another machine could reach.

    Raises:
        BrokerError: the address is not a loopback address.
    """
    try:
        loopback = ipaddress.ip_address(bind).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise BrokerError(
            "the embedded broker listens on this machine only",
            expected="127.0.0.1",
            found=bind,
            remedy="Install Mosquitto for other machines, and use --broker mosquitto",
        )


async def serve(listener: Listener, stopped: asyncio.Event, ready: Callable[[], None]) -> None:
    """Run the broker until `stopped` is set; calls `ready` when it listens.

    Raises:
        BrokerError: amqtt is not installed, the address is not loopback, or the port is taken.
    """
    check_loopback(listener.bind)
    check_free(listener)
    try:
        from amqtt.contexts import BrokerConfig, ListenerConfig  # noqa: PLC0415 - only a server has amqtt
        from amqtt.errors import AMQTTError  # noqa: PLC0415

        from edgefl.brokers.gate import GatedBroker  # noqa: PLC0415
    except ImportError as error:
        raise BrokerError(
            "the embedded broker is not installed", found=str(error), remedy="Install edgefl-fleet[server], or use Mosquitto"
        ) from None
    for name in ("amqtt", "transitions"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # every refused client is an error to amqtt, with a traceback
    host = f"[{listener.bind}]" if ":" in listener.bind else listener.bind
    config = BrokerConfig(
        listeners={
            "default": ListenerConfig(
                bind=f"{host}:{listener.port}",
                ssl=True,
                cafile=listener.ca,
                certfile=listener.certificate,
                keyfile=listener.key,
                max_connections=500,
            )
        },
        plugins={"edgefl.brokers.gate.CertificateAuth": {}},
    )
    try:
        broker = GatedBroker(config, listener.crl)
        await broker.start()
    except (AMQTTError, OSError) as error:
        raise BrokerError("the embedded broker does not start", found=str(error)) from error
    with suppress(NotImplementedError):  # no signals outside the main thread, or on Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, broker.reload)
    ready()
    await stopped.wait()
    try:
        async with asyncio.timeout(SHUTDOWN_SECONDS):
            await broker.shutdown()
    except TimeoutError:
        return
