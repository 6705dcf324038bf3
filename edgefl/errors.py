"""Every error that edgefl raises on purpose, in one tree, split by whose fault it is.

Rules of this file:

* Three families: `InputError` (the person at the keyboard), `PeerError` (the other end of the wire), `MachineError` (this
  computer: disk, network, missing program). A caller that retries, retries a `MachineError`; a server that counts bad
  messages, counts a `PeerError`; a command line prints any of them and exits with its code.
* An error says what is wrong, what was expected, what was found, and what to do next. The four parts are kept apart so that
  a test, a log line or a `--json` answer can use them.
* Foreign exceptions (OSError, ssl, sqlite3, onnxruntime) are turned into one of these where they are first caught.
"""

from typing import ClassVar, Literal

Fault = Literal["edgefl", "input", "peer", "machine"]
"""Whose fault an error is; `edgefl` means a bug."""


class EdgeflError(Exception):
    """Base of all; never raised itself.

    Args:
        problem: what is wrong, naming the thing (file, key, device, topic), without a full stop.
        expected: what would have been right.
        found: what came instead.
        remedy: what to do next, as an imperative sentence without a full stop.
    """

    fault: ClassVar[Fault] = "edgefl"
    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "bug"
    """One word for what happened, the same in reports of devices, in `--json` and in the documentation."""

    def __init__(self, problem: str, *, expected: str = "", found: str = "", remedy: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.expected = expected
        self.found = found
        self.remedy = remedy

    def __str__(self) -> str:
        text = self.problem
        if self.expected:
            text += f": expected {self.expected}"
        if self.found:
            text += f"{',' if self.expected else ':'} found {self.found}"
        return f"{text}. {self.remedy}." if self.remedy else f"{text}."


class InputError(EdgeflError):
    """A command, option or file that a person gave is wrong."""

    code = "input"
    fault = "input"
    exit_code = 2


class ProfileError(InputError):
    """A device profile is unknown, malformed or impossible."""


class ConfigError(InputError):
    """A configuration file (device.toml, plan) is missing or malformed."""


class FleetError(InputError):
    """The fleet directory is missing, incomplete, or does not hold what was asked for."""


class ModelError(InputError):
    """A model factory or its weights cannot be used."""


class FitError(ModelError):
    """A model cannot be made to fit a profile."""

    code = "fit"


class DataError(InputError):
    """Training or hold-out data is missing, corrupt or of the wrong shape."""

    code = "data"


class PeerError(EdgeflError):
    """The other end sent something wrong; nothing of it was used."""

    code = "peer"
    fault = "peer"
    exit_code = 3


class MessageError(PeerError):
    """A message that does not decode, is too large, or arrives on a topic that it does not belong to."""

    code = "message"


class SignatureError(PeerError):
    """A manifest or round order whose signature, key or expiry does not hold."""

    code = "signature"


class RollbackError(SignatureError):
    """Older metadata or an older assignment than has been believed before: somebody replays it."""

    code = "rollback"


class FreezeError(SignatureError):
    """Metadata or an assignment that has expired: somebody withholds newer ones, or the clock is wrong."""

    code = "freeze"


class MixError(SignatureError):
    """Metadata or a manifest that does not belong to what was announced with it: files of two versions are mixed."""

    code = "mix-and-match"


class ClaimError(PeerError):
    """A request for a certificate that is refused.

    Args:
        answer: the code in the reply: `token`, `used`, `expired`, `revoked`, `profile`, `request`, `name` or `busy`.
        problem: as for every error.
    """

    code = "claim"

    def __init__(self, answer: str, problem: str) -> None:
        super().__init__(problem)
        self.answer = answer


class WrongDeviceError(SignatureError):
    """A manifest or an assignment that is meant for another device or profile."""

    code = "wrong-device"


class EndlessDataError(PeerError):
    """More bytes than were promised or than are allowed."""

    code = "endless-data"


class SlowRetrievalError(PeerError):
    """Blocks come so slowly that the version cannot be there before its deadline."""

    code = "slow-retrieval"


class BlockError(PeerError):
    """A block or an assembled file whose bytes are not what the manifest promises."""

    code = "block"


class UpdateError(PeerError):
    """An update that does not decode, is not finite, or belongs to no known version, variant or round."""

    code = "update"


class MachineError(EdgeflError):
    """This machine cannot do it now: disk, network, a missing program or library."""

    code = "machine"
    fault = "machine"
    exit_code = 4


class StoreError(MachineError):
    """Reading or writing files failed (full disk, read-only, damaged file)."""

    code = "disk"


class LinkError(MachineError):
    """The broker cannot be reached or refuses the connection."""

    code = "link"


class BrokerError(MachineError):
    """The broker cannot be started here."""

    code = "broker"


class EngineError(MachineError):
    """The training engine is missing or failed."""

    code = "engine"
