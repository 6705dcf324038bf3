"""Run on both machines: what each encoded update decodes to, as one SHA-256 per file.

python decoded.py SIZE FILE...
"""

import hashlib
import sys
from pathlib import Path

from edgefl.codec.update import decode

for name in sys.argv[2:]:
    sparse = decode(Path(name).read_bytes(), int(sys.argv[1]))
    content = sparse.positions.astype("<i8").tobytes() + sparse.values.astype("<f4").tobytes()
    print(hashlib.sha256(content).hexdigest())
