"""How good the current weights are on the examples that the operator keeps back.

Rule: a training goes on without it. Without a hold-out set there is no answer; with one that cannot be used neither, and the log
says why.
"""

import logging
import time
from collections.abc import Mapping

from edgefl.engine.contract import Engine, Evaluation
from edgefl.engine.open import open_engine
from edgefl.errors import EdgeflError
from edgefl.examples import Examples
from edgefl.layout import Float32
from edgefl.server.variants import Variant
from edgefl.sources.parse import open_source
from edgefl.store.blobs import BlobStore

THREADS = 1
LONG_EVALUATION = 5.0
"""Seconds; nothing else is served meanwhile."""

log = logging.getLogger("edgefl.server")


class Evaluator:
    """Evaluates one variant on one hold-out set; loads both on first use and keeps them.

    Args:
        variant: usually the widest of a version.
        blobs: where its graphs are.
        holdout: source name; empty for none.
    """

    def __init__(self, variant: Variant, blobs: BlobStore, holdout: str) -> None:
        self._variant = variant
        self._blobs = blobs
        self._holdout = holdout
        self._loaded: tuple[Engine, Examples] | None = None

    def evaluate(self, parent: Float32, about: Mapping[str, str | int]) -> Evaluation | None:
        """Loss and accuracy of the variant as its devices receive it; None if they cannot be measured.

        Args:
            parent: float32, the weights of the full model.
            about: what a log line says in fields of their own, among them the `model`.
        """
        if not self._holdout:
            return None
        began = time.monotonic()
        try:
            return self._evaluated(parent)
        except EdgeflError as error:
            log.error("%s cannot be evaluated: %s", about["model"], error, extra=about)
            return None
        finally:
            if (took := time.monotonic() - began) > LONG_EVALUATION:
                log.warning("%s: evaluating took %.0f s; use fewer hold-out examples", about["model"], took)

    def _evaluated(self, parent: Float32) -> Evaluation:
        """Evaluate.

        Raises:
            DataError: the hold-out set is missing or does not fit the model.
            EngineError: the runtime failed.
        """
        if self._loaded is None:
            manifest = self._variant.manifest
            examples = open_source(self._holdout).load().shaped(manifest.input_shape, manifest.classes, manifest.recipe.loss)
            self._loaded = (open_engine(self._variant.files(self._blobs), threads=THREADS), examples)
        engine, examples = self._loaded
        engine.set_vector(self._variant.as_received(parent))
        return engine.evaluate(examples)
