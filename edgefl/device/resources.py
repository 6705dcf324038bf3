"""What this process uses of the machine."""

import resource


def peak_rss() -> int:
    """Peak resident memory of this process since it started, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
