"""What this device is to hold: it follows the fleet's metadata and its own assignment to the manifests that they name.

Model: three kinds of retained messages come in any order. The metadata says which manifests exist and whose assignments count;
the assignment says which version of each model this device is to hold; a manifest of one of these versions is believed when the
metadata lists it. `advance` takes every step that is possible now.

    metadata -> believed? -> assignment -> believed? -> subscribe to its manifests -> manifest -> believed? -> handed out

Rules:

* Messages that belong together may come apart. So what cannot be believed now is looked at again with every new message, and is
  called by its name only when it has stayed so for `PATIENCE` seconds.
* The assignment that was believed last is on disk before it is followed; an older one is a replay, also after a restart.
* A manifest is handed out once for each assignment that names it. What is kept in memory is bounded: one manifest for each model.
"""

import logging
from collections.abc import Callable, Iterator

from edgefl.device.config import Bundle
from edgefl.device.trust import believed_assignment, believed_manifest
from edgefl.errors import EdgeflError, PeerError
from edgefl.identity.metadata import TrustedMetadata
from edgefl.link.contract import Link
from edgefl.store.atomic import read_file, write_file
from edgefl.wire import topics
from edgefl.wire.releases import Assigned, Assignment, Manifest

PATIENCE = 10.0
"""Seconds for which what belongs together may come apart."""

log = logging.getLogger("edgefl.device")


class Following:
    """Follows for one device. Owned by the agent's one thread.

    Args:
        bundle: configuration, first root, and where the state is.
        link: to the broker.
        clock: monotonic seconds.
        wall: seconds since 1970.
        signed_at: told when something was signed that is believed (seconds since 1970): it is not earlier than that.

    Raises:
        SignatureError: the bundle's root metadata is none.
        StoreError: the state directory cannot be used.
    """

    def __init__(
        self,
        bundle: Bundle,
        link: Link,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        signed_at: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._config = bundle.config
        self._link = link
        self._clock = clock
        self._wall = wall
        self._signed_at = signed_at
        self._file = bundle.state / "trust" / "assignment"
        self._metadata = TrustedMetadata(bundle.state / "trust", read_file(bundle.root), wall)
        self._assignment = self._kept()
        self._heard_assignment = b""
        self._heard: dict[str, bytes] = {}
        self._wanted: dict[str, Assigned] = {}
        self._news = False
        self._waiting_since: float | None = None
        self._told = ""

    def begin(self) -> None:
        """Subscribe to everything that is followed."""
        self._link.subscribe(topics.metadata("+"))
        self._link.subscribe(topics.assignment(self._config.id))
        self._want()

    def hear(self, kind: str, name: str, payload: bytes) -> None:
        """A retained message has come.

        Args:
            kind: `tuf`, `assignment` or `manifest`.
            name: of the metadata, or the manifest's path.
            payload: what came, at most one packet.

        Raises:
            SignatureError: there is no such metadata.
            EndlessDataError: more metadata than a fleet can have.
        """
        if kind == "tuf":
            self._news |= self._metadata.hear(name, payload)
        elif kind == "assignment" and payload != self._heard_assignment:
            self._heard_assignment, self._news = payload, True
        elif kind == "manifest" and name in self._wanted:
            self._heard[name], self._news = payload, True

    @property
    def online_key(self) -> bytes:
        """The 32 raw bytes of the key that the fleet's root appoints for assignments."""
        return self._metadata.online_key

    def rollout(self, model: str) -> int:
        """The rollout that the assignment of a model names; 0 for none."""
        models = self._assignment.models if self._assignment else ()
        return next((one.rollout for one in models if one.model == model), 0)

    def wait(self) -> float:
        """Seconds until `advance` has something to say."""
        if self._waiting_since is None or self._told:
            return 3600.0
        return max(0.0, self._waiting_since + PATIENCE - self._clock())

    def advance(self) -> Iterator[tuple[Manifest, bytes]]:
        """Take every step that is possible now.

        Yields:
            Each manifest that is believed now, and its bytes.

        Raises:
            PeerError: what has been tried for `PATIENCE` seconds and is not believed; raised once.
            StoreError: the disk fails.
        """
        if not self._news and self.wait() > 0.0:
            return
        self._news = False
        trouble: EdgeflError | None = None
        for step in (self._believe_metadata, self._believe_assignment):
            try:
                step()
            except PeerError as error:
                trouble = trouble or error
        for path in [path for path in self._heard if path in self._wanted]:
            try:
                manifest = self._believe_manifest(path)
            except PeerError as error:
                trouble = trouble or error
                continue
            if manifest is not None:
                yield manifest, self._heard.pop(path)
        self._settle(trouble)

    def _settle(self, trouble: EdgeflError | None) -> None:
        """Be patient with trouble, and then tell it."""
        if trouble is None:
            self._waiting_since, self._told = None, ""
            return
        if self._waiting_since is None:
            self._waiting_since = self._clock()
        if self._clock() - self._waiting_since >= PATIENCE and str(trouble) != self._told:
            self._told = str(trouble)
            raise trouble

    def _believe_metadata(self) -> None:
        self._metadata.refresh()

    def _believe_assignment(self) -> None:
        if not self._heard_assignment:
            return
        counter = self._assignment.counter if self._assignment else 0
        believed = believed_assignment(self._heard_assignment, self._metadata.online_key, self._config, counter, self._now)
        if believed != self._assignment:
            write_file(self._file, self._heard_assignment)
            self._assignment = believed
            self._want()

    def _now(self, signed: float) -> float:
        self._signed_at(signed)
        return self._wall()

    def _believe_manifest(self, path: str) -> Manifest | None:
        """The manifest of a path; None while the metadata does not list it: it may be on its way."""
        sha256 = self._metadata.manifest_hash(path)
        return believed_manifest(self._heard[path], path, sha256, self._config, self._wall()) if sha256 is not None else None

    def _want(self) -> None:
        """Subscribe to the manifests that the assignment names, and to no others."""
        models = self._assignment.models if self._assignment else ()
        profile = self._config.profile
        wanted = {topics.target_path(one.model, profile, one.version): one for one in models}
        for path in [path for path, one in self._wanted.items() if wanted.get(path) != one]:
            gone = self._wanted.pop(path)
            self._link.unsubscribe(topics.manifest(gone.model, profile, gone.version))
            self._heard.pop(path, None)
        for path in wanted.keys() - self._wanted.keys():  # also of the same version under another rollout: it is handed out again
            one = self._wanted[path] = wanted[path]
            self._link.subscribe(topics.manifest(one.model, profile, one.version))

    def _kept(self) -> Assignment | None:
        """The assignment on disk, if the key that counts now has signed it."""
        try:
            payload = self._file.read_bytes()
            return believed_assignment(payload, self._metadata.online_key, self._config, 0, lambda _: 0.0)
        except (OSError, PeerError):
            return None
