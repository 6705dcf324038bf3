"""Run on both machines: what each encoded update decodes to, as one SHA-256 per file.

python decoded.py HISTORY FILE...
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

from edgefl.codec.history import History
from edgefl.codec.update import decode

with np.load(sys.argv[1]) as known:
    shapes = tuple(tuple(known[f"shape{i}"].tolist()) for i in range(len(known.files) - 2))
    history = History(known["start"], known["start"], known["now"], shapes)
for name in sys.argv[2:]:
    sparse = decode(Path(name).read_bytes(), len(history.now), history)
    content = sparse.positions.astype("<i8").tobytes() + sparse.values.astype("<f4").tobytes()
    print(hashlib.sha256(content).hexdigest())
