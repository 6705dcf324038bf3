"""How good the final weights are on the devices themselves, when the last round is closed.

Model: each honest device is asked once more, as if for a round: how accurate the weights are on its own examples, or what its
usual training makes of them, on examples that it has kept for testing. Nothing is sent, and nothing counts.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgefl.plan import Plan
from edgefl.simulate.fairness import Success, success
from edgefl.simulate.fleet import Fleet
from edgefl.simulate.jobs import Job
from edgefl.simulate.scene import Scene
from edgefl.simulate.workers import Workers
from edgefl.wire.tasks import task_of


@dataclass(frozen=True)
class OnDevices:
    """Measures weights that the workers have.

    Attributes:
        workers: play the devices.
        fleet, scene: who they are, and what they hold.
        number: of the round under which the weights were shared.
    """

    workers: Workers
    fleet: Fleet
    scene: Scene
    number: int

    def before_training(self) -> Success | None:
        """On each honest device's own examples; None if no device could say."""
        devices = [device for device in self._honest if self.scene.samples(device)]
        return self._asked([Job(self.number, None, (self.fleet.player(device, self.number),)) for device in devices])

    def after_training(self, plan: Plan) -> Success | None:
        """On what each honest device has kept for testing, after its usual training; None if no device could say."""
        task, devices = task_of(plan, self.number), [device for device in self._honest if self.scene.tested[device]]
        return self._asked([Job(self.number, task, (self.fleet.player(device, self.number),), test=True) for device in devices])

    @cached_property
    def _honest(self) -> list[int]:
        honest: list[int] = np.flatnonzero(~self.fleet.hostile).tolist()
        return honest

    def _asked(self, jobs: list[Job]) -> Success | None:
        accuracies = [played.accuracy for answer in self.workers.run(jobs) for played in answer]
        known = [accuracy for accuracy in accuracies if accuracy is not None]
        return success(known) if known else None
