"""How good the current weights are on the examples that the operator keeps back."""

from edgefl.engine.contract import Engine, Evaluation
from edgefl.engine.open import open_engine
from edgefl.examples import Examples
from edgefl.layout import Float32
from edgefl.server.variants import Variant
from edgefl.sources.parse import open_source
from edgefl.store.blobs import BlobStore

THREADS = 1


class Evaluator:
    """Evaluates one variant on one hold-out set; loads both on first use and keeps them.

    Args:
        variant: usually the widest of a version.
        blobs: where its graphs are.
        holdout: source name.
    """

    def __init__(self, variant: Variant, blobs: BlobStore, holdout: str) -> None:
        self._variant = variant
        self._blobs = blobs
        self._holdout = holdout
        self._loaded: tuple[Engine, Examples] | None = None

    def evaluate(self, parent: Float32) -> Evaluation:
        """Loss and accuracy of the variant as its devices receive it.

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
