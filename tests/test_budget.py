from dataclasses import replace

import pytest

from edgefl.codec.weights import Precision, weights_length
from edgefl.compress.budget import WIDTHS, Candidate, Structure, candidates
from edgefl.compress.choice import choose
from edgefl.compress.evidence import Demand
from edgefl.compress.planner import Budget
from edgefl.errors import FitError
from edgefl.layout import Layout, Tensor


def layout(width: float) -> Layout:
    """A two-layer network whose hidden layer scales."""
    hidden = round(200 * width)
    return Layout((Tensor("fc1.weight", (hidden, 784)), Tensor("fc1.bias", (hidden,)), Tensor("fc2.weight", (10, hidden))))


STRUCTURES = [Structure(f"w{w:g}", w, layout(w)) for w in WIDTHS]
OFFERED = candidates(STRUCTURES, {one.name: 10_000 for one in STRUCTURES})


def test_the_ladder_goes_from_wide_and_precise_to_narrow_and_coarse() -> None:
    """Order of preference: width before precision."""
    names = [c.name for c in OFFERED]
    assert names[:4] == ["w1-fp32", "w1-fp16", "w1-int8", "w0.75-fp32"]
    assert names[-1] == "w0.0625-int8"
    assert len(names) == 24


def test_the_footprint_counts_everything_the_board_holds() -> None:
    """Graphs, three weights files and two residuals; a frozen tensor has no residual."""
    one = Candidate(STRUCTURES[2], Precision.INT8, 1234)
    weights = weights_length(layout(0.5), Precision.INT8)
    assert one.footprint == 1234 + 3 * weights + 8 * layout(0.5).size
    assert one.file_bytes == 1234 + weights
    first, *others = layout(0.5).tensors
    partly = Layout((Tensor(first.name, first.shape, "frozen"), *others))
    frozen = Candidate(Structure("frozen", 0.5, partly), Precision.INT8, 1234)
    assert one.footprint - frozen.footprint == 8 * first.size


@pytest.mark.parametrize(
    "budget", [*range(200_000, 4_500_000, 200_000), *(c.footprint for c in OFFERED), *(c.footprint - 1 for c in OFFERED[:-1])]
)
def test_the_choice_fits_and_nothing_preferable_does(budget: int) -> None:
    """For every budget: the choice is within it, and every candidate before it is not."""
    chosen, planned = choose("board", Budget(budget), OFFERED)
    assert chosen.footprint <= budget
    assert all(better.footprint > budget for better in OFFERED[: OFFERED.index(chosen)])
    assert not planned.informed


def test_a_wide_coarse_model_wins_over_a_narrow_precise_one() -> None:
    """Where both would fit, width 1 in int8 is chosen before width 0.5 in fp32."""
    assert choose("board", Budget(OFFERED[2].footprint), OFFERED)[0].name == "w1-int8"


def test_what_does_not_fit_is_explained() -> None:
    """The error says by how many bytes, which tensor is to blame, and which profile would do."""
    least = OFFERED[-1].footprint
    with pytest.raises(FitError) as caught:
        choose("tiny", Budget(least - 7), OFFERED, [("huge", 10**9), ("right", least), ("small", least - 1)])
    text = str(caught.value)
    assert "7 bytes too large" in text
    assert "w0.0625-int8" in text
    assert "fc1.weight" in text
    assert "profile right" in text
    with pytest.raises(FitError, match="smaller model"):
        choose("tiny", Budget(10), OFFERED)


def test_what_cannot_be_trained_is_explained() -> None:
    """Storage would do and memory does not: the error says so, and what it would take."""
    with pytest.raises(FitError, match=r"cannot be trained on profile tiny.*memory at most .* MiB \(memory_mb\)"):
        choose("tiny", Budget(10**9, 1000), OFFERED)


def test_a_step_that_nobody_measured_is_called_an_estimate() -> None:
    """Of a run that was ended the memory is what it took or more, and its step is about so much."""
    ended = replace(OFFERED[0], demand=Demand(300 << 20, 50.0, measured=False, bound=True))
    with pytest.raises(FitError) as caught:
        choose("tiny", Budget(10**9, 100 << 20, 20.0), [ended])
    memory, step = caught.value.found.rsplit(", ", 1)
    assert memory.startswith("memory 300 MiB or more, of which")
    assert step == "step about 50 ms"
    assert caught.value.remedy.endswith("a step_ms of about 50")
    measured = replace(OFFERED[0], demand=Demand(50 << 20, 50.0, measured=True))
    with pytest.raises(FitError) as caught:
        choose("tiny", Budget(10**9, 100 << 20, 20.0), [measured])
    assert caught.value.found == "step 50 ms"
    assert caught.value.remedy.endswith("a step_ms of at least 50")
