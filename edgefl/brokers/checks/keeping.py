"""How much a broker takes, and what it keeps."""

from edgefl.brokers.acl import CHECK_TOPIC
from edgefl.brokers.checks.finding import Finding, failed, ok, unknown
from edgefl.brokers.checks.scene import A, B, Cast, Scene, down, up
from edgefl.brokers.running import running_broker
from edgefl.errors import StoreError
from edgefl.wire.messages import MAX_PACKET

TOO_LARGE = 200_000
LONGEST_AUTOSAVE = 300
"""Seconds of queued messages that a power cut may cost."""


def check_packet_limit(cast: Cast) -> Finding:
    """The largest message of the protocol passes, and a larger one goes no further than the broker."""
    name = "packet limit"
    observer = cast.observer
    before = observer.oversized
    cast.device(A).publish(up(A, "large"), b"x" * MAX_PACKET)
    if not observer.hears(up(A, "large"), b"x" * MAX_PACKET):
        return failed(
            name, f"{MAX_PACKET} bytes do not pass", f"Set `message_size_limit {MAX_PACKET}`, or a packet limit above it"
        )
    cast.device(A).publish(up(A, "large"), b"x" * TOO_LARGE)
    if not cast.observer_hears(A) or cast.observer is not observer:
        return unknown(name, "nothing was heard afterwards")
    if observer.oversized > before:
        return failed(name, f"{TOO_LARGE} bytes are passed on", f"Set `message_size_limit {MAX_PACKET}`")
    return ok(name, f"{MAX_PACKET} bytes pass, {TOO_LARGE} do not")


def check_kept_messages(cast: Cast) -> Finding:
    """A device that was away finds what was queued for it, and what is retained."""
    name, kept = "kept messages", f"{CHECK_TOPIC}/kept"
    cast.leave(B)
    with cast.scene.connect(B, clean_session=False) as first:
        first.subscribe(down(B, "#"))
    cast.observer.publish(down(B, "queued"), b"queued")
    cast.observer.publish(kept, b"retained", retain=True)
    with cast.scene.connect(B, clean_session=False) as again:
        queued = again.hears(down(B, "queued"), b"queued")
        again.subscribe(kept)
        retained = again.hears(kept, b"retained")
    cast.observer.publish(kept, b"", retain=True)
    cast.fresh(B)  # a clean session, so that the broker forgets the kept one
    wrong = [text for done, text in ((queued, "queued"), (retained, "retained")) if not done]
    if wrong:
        return failed(name, f"what was {' and '.join(wrong)} is lost", "Let the broker keep sessions and retained messages")
    return ok(name, "what was queued and what was retained is delivered")


def check_persistence(scene: Scene) -> Finding:
    """What is kept survives a restart, as far as the configuration of a broker on this machine tells."""
    name = "persistence"
    running = running_broker(scene.directory)
    if running is None or running.port != scene.port:
        return unknown(name, "only a restart would show it, and no `edgefl broker` runs here whose configuration could be read")
    if running.kind != "mosquitto":
        return failed(name, "the embedded broker keeps nothing over a restart", "Use Mosquitto for anything but demos")
    try:
        settings = _settings((scene.directory / "mosquitto.conf").read_text())
    except OSError as error:
        raise StoreError("cannot read the broker's configuration", found=str(error)) from error
    if settings.get("persistence") != "true":
        return failed(name, "is off", "Set `persistence true`")
    every = settings.get("autosave_interval", "1800")
    if not every.isdecimal() or not 0 < int(every) <= LONGEST_AUTOSAVE:
        return failed(name, f"saves every {every} seconds", f"Set `autosave_interval` to at most {LONGEST_AUTOSAVE}")
    return ok(name, f"on, saved every {every} seconds (read from the configuration; a restart was not tried)")


def _settings(text: str) -> dict[str, str]:
    lines = (line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#"))
    return {parts[0]: parts[1] if len(parts) > 1 else "" for parts in lines}
