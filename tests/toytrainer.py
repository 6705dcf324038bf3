"""What a toy board learns with: an engine whose training is known beforehand, and a trainer without a process of its own.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import numpy as np

from edgefl.device.job import TrialJob
from edgefl.device.trainer import Trainer, answer
from edgefl.engine.contract import Evaluation, Trained
from edgefl.layout import Layout, Tensor

LAYOUT = Layout((Tensor("w", (40, 10)),))


def delta_of(number):
    """What the board learns in a round: always the same."""
    return np.random.default_rng(number).normal(size=LAYOUT.size).astype(np.float32)


class ScriptedEngine:
    """An engine whose training adds the round's delta; the round stands in the weights."""

    layout = LAYOUT

    def __init__(self, *_, **__):
        self._vector = np.zeros(LAYOUT.size, dtype=np.float32)

    def set_vector(self, vector):
        """Keep it."""
        self._vector = vector.copy()

    def vector(self):
        """Give it back."""
        return self._vector

    def train(self, *_, **__):
        """Move by the round's delta, computed so that the difference is exact enough."""
        self._vector = self._vector + delta_of(round(float(self._vector[0])))
        return Trained(1, 1.0, 0.5)

    def predict(self, x):
        """Its first weight, whatever is asked."""
        return np.full((len(x), 3), self._vector[0], dtype=np.float32)

    def evaluate(self, examples):
        """Half of the answers are right."""
        return Evaluation(0.5, 0.5, len(examples))


class InlineTrainer:
    """Takes the place of the trainer process: the real `Trainer` in this one, run when the agent looks for an answer."""

    peak_rss = 0
    wake = ()
    patience = 0
    """How many looks a job takes."""

    def __init__(self, *_, **__):
        self._job = None
        self._looks = 0
        self.started = []
        self.cancelled = 0

    @property
    def busy(self):
        """Whether a job is running."""
        return self._job is not None

    def start(self, job):
        """Take a job."""
        assert self._job is None
        self._job, self._looks = job, self.patience
        if not isinstance(job, TrialJob):
            self.started.append(job.round)

    def poll(self):
        """Run it."""
        if self._job is None:
            return None
        self._looks -= 1
        if self._looks >= 0:
            return None
        job, self._job = self._job, None
        return self.run(job)

    def run(self, job):
        """What the job comes to."""
        return answer(Trainer(1), job)

    def cancel(self):
        """Forget it."""
        self.cancelled += self._job is not None
        self._job = None
