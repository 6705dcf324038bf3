"""Which devices will soon want a file: those that are online and assigned the version that it belongs to.

Rule: this is a guess that saves bytes, and nothing depends on it. A device may hold the file already, have no time, or be about
to go: `server.gather` waits for nobody for long.
"""

from collections.abc import Iterator

from edgefl.server.catalogue import Catalogue

NOBODY: frozenset[str] = frozenset()


class Expected:
    """Who is expected to ask. Owned by the server's one thread."""

    def __init__(self) -> None:
        """Nobody is online, and nothing is on offer."""
        self._online: set[str] = set()
        self._assigned: dict[bytes, frozenset[str]] = {}
        self._known: dict[frozenset[str], frozenset[str]] = {}

    def heard(self, device: str, *, online: bool) -> None:
        """A device was born, or has died."""
        if online != (device in self._online):
            self._online ^= {device}
            self._known.clear()

    def refresh(self, catalogue: Catalogue) -> None:
        """Take up which file is for whom."""
        holders: dict[tuple[str, int, str], set[str]] = {}
        for device, (_, models) in catalogue.assigned.items():
            for one in models:
                holders.setdefault((one.model, one.version, catalogue.profiles[device]), set()).add(device)
        found: dict[bytes, set[str]] = {}
        for key, sha256 in _files(catalogue):
            found.setdefault(sha256, set()).update(holders.get(key, ()))
        self._assigned = {sha256: frozenset(devices) for sha256, devices in found.items()}
        self._known.clear()

    def of(self, sha256: bytes) -> frozenset[str]:
        """The devices that are expected to want this file."""
        assigned = self._assigned.get(sha256, NOBODY)
        if assigned not in self._known:
            self._known[assigned] = assigned & self._online
        return self._known[assigned]


def _files(catalogue: Catalogue) -> Iterator[tuple[tuple[str, int, str], bytes]]:
    """Each file on offer, by the model, version and profile that it is for."""
    for record in catalogue.announced:
        manifest = record.manifest
        key = (manifest.model, manifest.version, record.profile)
        for ref in manifest.offered:
            yield key, ref.sha256
        training = catalogue.trainings.get(manifest.model) if manifest.trains else None
        if training is not None and training.record.version == manifest.version and manifest.variant in training.offer.files:
            yield key, training.offer.files[manifest.variant].sha256
            for difference in training.offer.differences[manifest.variant]:
                yield key, difference.file.sha256
