"""What processes use of the machine. Where the kernel does not tell, or the process is gone, the answer is 0."""

import contextlib
import ctypes
import gc
import os
import re
from pathlib import Path


def peak_rss() -> int:
    """Peak resident memory of this process since it started, in bytes.

    From VmHWM and not from getrusage, whose figure a child inherits from whoever started it (exec keeps the old maximum).
    """
    return _status("self", "VmHWM")


def resident(pid: int) -> int:
    """Resident memory of a process now, in bytes."""
    return _status(str(pid), "VmRSS")


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used until now, all its threads together, in seconds."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name before may hold anything
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def give_back() -> None:
    """Give memory that was freed back to the system, where the C library can (glibc): a big start leaves holes behind."""
    with contextlib.suppress(OSError, AttributeError):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


def _status(process: str, key: str) -> int:
    try:
        found = re.search(rf"^{key}:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found.group(1)) * 1024 if found else 0
