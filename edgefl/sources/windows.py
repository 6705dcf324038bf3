"""Windows of a long recording, cut out when they are loaded: raw sensor data of several people in one numpy archive.

    signal     (channels, n) integers or floats
    scale      (channels,) factor of each channel
    win_start  (m,) where each window begins in `signal`
    win_len    () its length
    win_label  (m,) its class
    win_user   (m,) whose it is
    test_users (t,) people whose windows are for testing: nobody's windows are on both sides

Rule: a split is by person, never at random: neighbouring windows overlap.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgefl.errors import DataError
from edgefl.examples import Examples
from edgefl.layout import Index
from edgefl.sources.arrays import MAX_VALUES, Array, examples_of
from edgefl.sources.npz import read_npz

_ARRAYS = ("signal", "scale", "win_start", "win_len", "win_label", "win_user", "test_users")


@dataclass(frozen=True, slots=True)
class WindowsSource:
    """The windows of the people for training, or of those for testing; x has shape `(n, channels, length)`.

    Attributes:
        path: the archive.
        split: `train` or `test`; empty takes everybody.
    """

    path: Path
    split: str = ""

    def load(self) -> Examples:
        """The windows in the order of the archive. Raises DataError."""
        found = read_npz(self.path, _ARRAYS)
        chosen = self._chosen(found)
        signal, starts, length = found["signal"], found["win_start"][chosen].astype(np.int64), int(found["win_len"])
        if signal.ndim != 2 or found["scale"].shape != (len(signal),) or not 0 < length <= signal.shape[1]:
            raise DataError(f"the recording in {self.path} does not fit", expected="a scale for each channel, windows inside")
        if len(starts) * length * len(signal) > MAX_VALUES or starts.min() < 0 or starts.max() > signal.shape[1] - length:
            raise DataError(
                f"the windows of {self.path} do not fit", expected=f"at most {MAX_VALUES} values, inside the recording"
            )
        windows = np.lib.stride_tricks.sliding_window_view(signal, length, axis=1)[:, starts].swapaxes(0, 1)
        x = windows.astype(np.float32) * found["scale"].astype(np.float32)[:, None]
        return examples_of(x, found["win_label"][chosen], str(self.path))

    def clients(self) -> Index:
        """Whose each loaded window is, int64, shape `(n,)`. Raises DataError."""
        found = read_npz(self.path, _ARRAYS)
        return found["win_user"][self._chosen(found)].astype(np.int64)

    def _chosen(self, found: dict[str, Array]) -> Index:
        owners = found["win_user"]
        if len({len(found[name]) if found[name].ndim == 1 else -1 for name in ("win_start", "win_label", "win_user")}) != 1:
            raise DataError(f"the windows of {self.path} do not fit", expected="a start, a label and a user for each")
        wanted = np.full(len(owners), fill_value=True)
        if self.split:
            wanted = np.isin(owners, found["test_users"]) == (self.split == "test")
        if not wanted.any() or found["win_len"].ndim:
            raise DataError(f"{self.path} has no windows for {self.split or 'anybody'}")
        return np.flatnonzero(wanted)
