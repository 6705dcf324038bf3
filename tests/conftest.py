"""How random tests are made repeatable: the same examples every time, unless EDGEFL_EXPLORE is set.

A promise must not hold on one day and break on the next. New examples are looked for with `EDGEFL_EXPLORE=1 make test`; what is
found that way becomes a test of its own.
"""

import os

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("explore" if os.environ.get("EDGEFL_EXPLORE") else "repeatable")
