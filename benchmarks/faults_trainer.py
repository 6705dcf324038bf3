"""The trainer's process with a fuse in it: `python -m benchmarks.faults_trainer THREADS`."""

import sys

from benchmarks.faults_fuse import Fuse
from edgefl.device.trainer import main

if __name__ == "__main__":
    Fuse.handed_on("trainer").install()
    main(sys.argv[1:])
