"""What came of a simulation, as it is written to JSON."""

import msgspec

from edgefl.simulate.experiment import Experiment
from edgefl.simulate.fairness import Participation, Standing, Success


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """How good one structure or ensemble is on the hold-out examples.

    Attributes:
        name: `MODEL WIDTH`, or `MODEL WIDTH, N exits`; of an ensemble `uniform` or `weighted`.
        accuracy: in [0, 1]; None with the loss `mse`.
        loss: mean; None if it is not finite.
    """

    name: str
    accuracy: float | None
    loss: float | None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation. Bytes are those since the start.

    Attributes:
        round: after which it was made.
        time: simulated seconds since the start; 0 without `speeds`.
        accuracy: in [0, 1] on the hold-out examples; None with the loss `mse`.
        loss: on them; None if it is not finite.
        uplink_bytes: of all messages with updates.
        downlink_bytes: of all round orders and files that devices fetched.
        dense_uplink_bytes: what the same updates would be as plain float32 vectors, without any header.
        participants: updates that counted in this round.
        structures: with several groups each one's accuracy and loss, in the experiment's order; those of the row are the first's.
        ensembles: with an ensemble that of uniform weights, and that of fitted ones; those of the row are the last one's.
    """

    round: int
    time: float
    accuracy: float | None
    loss: float | None
    uplink_bytes: int
    downlink_bytes: int
    dense_uplink_bytes: int
    participants: int
    structures: tuple[Quality, ...] = ()
    ensembles: tuple[Quality, ...] = ()


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """The whole simulation.

    Attributes:
        rounds: that were closed.
        time: simulated seconds.
        updates: that counted.
        late, refused, failed: updates of them that came from an earlier round; that came too late to count or were not usable;
            trainings that failed.
        uplink_bytes, downlink_bytes, dense_uplink_bytes: as in the last row.
        bits_per_parameter: of an update's messages, mean.
        parameters: of an update; with several groups the mean over the devices.
        weights_bytes: of the newest weights' file of the first group.
        pruned: part of the prunable weights that is gone from these.
        final_accuracy, best_accuracy: of the last, and of the best evaluation.
        target_round: the first evaluated round with the target accuracy; None if it was not reached or there is none.
        target_time, target_uplink_bytes: when and at what cost that was.
        seconds: of real time.
    """

    rounds: int
    time: float
    updates: int
    late: int
    refused: int
    failed: int
    uplink_bytes: int
    downlink_bytes: int
    dense_uplink_bytes: int
    bits_per_parameter: float
    parameters: int
    final_accuracy: float | None
    best_accuracy: float | None
    target_round: int | None
    target_time: float | None
    target_uplink_bytes: int | None
    seconds: float
    weights_bytes: int = 0
    pruned: float = 0.0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a simulation tells.

    Attributes:
        experiment: what was simulated.
        edgefl: version of the package.
        rows: the evaluations, ascending by round.
        totals: over all rounds.
        participation: how evenly the devices took part.
        devices: accuracy of the final weights on the devices' own examples; None where no answer is right or wrong.
        own: accuracy of each device's own weights on the examples that it keeps for testing, after one more local training from
            the final weights; None if it keeps none.
        standing: what the aggregator thought of them.
        trouble: the first reason why an update was refused or a training failed; empty if none was.
    """

    experiment: Experiment
    edgefl: str
    rows: tuple[Row, ...]
    totals: Totals
    participation: Participation
    devices: Success | None
    standing: Standing
    trouble: str = ""
    own: Success | None = None

    def json(self) -> bytes:
        """Indented JSON; `read` gives the value back."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @staticmethod
    def read(data: bytes) -> "Result":
        """The result in JSON bytes. Raises msgspec.ValidationError when they hold none."""
        return msgspec.json.decode(data, type=Result)
