"""What this process uses of the machine."""

import re
from pathlib import Path


def peak_rss() -> int:
    """Peak resident memory of this process since it started, in bytes; 0 where the kernel does not tell.

    From VmHWM and not from getrusage, whose figure a child inherits from whoever started it (exec keeps the old maximum).
    """
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found.group(1)) * 1024 if found else 0
