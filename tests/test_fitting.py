"""What a profile gets is proved to fit: the search learns from what was run, and one structure's failure is its own."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from edgefl.codec.weights import Precision
from edgefl.compress.budget import Candidate, Resting, Structure
from edgefl.compress.cost import BASE, Work
from edgefl.compress.sensitivity import Baseline
from edgefl.errors import EngineError, FitError, ModelError
from edgefl.layout import Layout, Tensor
from edgefl.profile import NATIVE, PORTABLE, Profile
from edgefl.recipe import PLAIN
from edgefl.server.cuts import Cut
from edgefl.server.fitting import MOST, TRIES, Fitting, budget_of
from edgefl.server.rehearsal import Measured
from edgefl.server.sensing import Offered
from edgefl.server.workshop import Workshop

MIB = 1 << 20


def board(memory_mb=4000, kib=1 << 20, **changes):
    """A profile."""
    fields = {
        "name": "pi", "title": "a board", "soc": "a chip", "architecture": "x86_64", "cores": 4, "ram_mb": 8192,
        "storage_kib": kib, "memory_mb": memory_mb, "threads": 1, "link_kbps": 1000, "engine": "portable",
        "sources": ("a data sheet; slowdown measured",),
    }  # fmt: skip
    return Profile(**fields | changes)


def structure(rows):
    """A dense layer of so many rows, which keeps a MiB of activations for each of them."""
    return Structure(f"s{rows}", 1.0, Layout((Tensor("a", (rows, 100)),)), Work(rows * MIB // 4, (("a", 1000),)))


@dataclass
class Model:
    """The source, as far as the search looks at it."""

    name: str = "toy"
    recipe: object = PLAIN


@dataclass
class Bench:
    """Makes nothing; remembers what it was asked for."""

    failing: dict = field(default_factory=dict)
    source: Model = field(default_factory=Model)
    batch: int = 1
    done: list = field(default_factory=list)

    def exported(self, engine, name):
        """Whether its graphs are there."""
        return (engine, name) in self.done

    def any_exported(self, engine):
        """Whether any are."""
        return any(kind == engine for kind, _ in self.done)

    def graph_bytes(self, engine, names):  # noqa: ARG002  as the real one
        """None takes any."""
        return dict.fromkeys(names, 0)

    def export(self, engine, cut):
        """Fails where it is told to."""
        if error := self.failing.get((engine, cut.structure.name)):
            raise error
        self.done.append((engine, cut.structure.name))

    def rests(self, structure, form, weights):
        """A codebook came."""
        self.rested = (structure, form.name, weights)

    def made(self, engine, candidate, cut):  # noqa: ARG002  as the real one
        """No files."""
        return ()

    def subject(self, engine, candidate, files):  # noqa: ARG002  as the real one
        """Engine and name."""
        return engine, candidate.name


@dataclass
class Rehearsals:
    """Takes what `took` says of a candidate, by its structure: Measured, or an error."""

    took: object
    ran: list = field(default_factory=list)

    def run(self, subject, profile):  # noqa: ARG002  as the real one
        """What a candidate took."""
        if subject not in self.ran:
            self.ran.append(subject)
        found = self.took(*subject)
        if isinstance(found, Exception):
            raise found
        return found


def search(sizes, took, accuracies=None, failing=None, precisions=(Precision.FP32,)):
    """A search among structures; without accuracies in their order."""
    cuts = {one.name: Cut(one, None, None) for one in map(structure, sizes)}
    baseline = Baseline(1.0, 0.1, 10**9) if accuracies else None
    drops = {name: 1.0 - accuracy for name, accuracy in zip(cuts, accuracies or [0.0] * len(cuts), strict=True)}
    offered = Offered(cuts, drops, dict.fromkeys(precisions, 0.0), baseline, "a look")
    bench, rehearsals, said = Bench(failing or {}), Rehearsals(took), []
    return Fitting(bench, rehearsals, offered, (), said.append), bench, rehearsals, said


def rows_of(name):
    """The number in a structure's name."""
    return int(name.split("-")[0][1:])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True),
    st.data(),
    st.floats(0.2, 5.0),
    st.integers(70, 300),
)
def test_what_is_taken_fits_and_is_the_best_that_does(sizes, data, factor, memory_mb):
    """Where estimates are wrong by one factor: the most accurate structure whose real memory is within the profile's."""
    accuracies = data.draw(st.lists(st.integers(1, 90).map(lambda n: n / 100), min_size=len(sizes), max_size=len(sizes)))

    def real(name):
        estimated = Candidate(structure(rows_of(name)), Precision.FP32, 0).estimate.memory
        return int(BASE + factor * (estimated - BASE))

    fitting, _, rehearsals, _ = search(sizes, lambda _, name: Measured(real(name), 0.001), accuracies)
    fitting_ones = [a for size, a in zip(sizes, accuracies, strict=True) if real(f"s{size}") <= memory_mb * MIB]
    if not fitting_ones:
        with pytest.raises(FitError, match="cannot be trained"):
            fitting.fitted(board(memory_mb), PORTABLE)
        assert rehearsals.ran
        return
    found = fitting.fitted(board(memory_mb), PORTABLE)
    assert found.measured.peak_bytes <= memory_mb * MIB
    assert found.candidate.accuracy == pytest.approx(max(fitting_ones))
    assert found.candidate.demand.measured
    assert len(rehearsals.ran) <= MOST


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 24), st.integers(70, 300))
def test_however_wrong_the_estimates_what_is_taken_fits_and_the_search_ends(data, count, memory_mb):
    """Memories that have nothing to do with the estimates: no wrong choice, and what might be better is refused by a proof.

    What was not run, would fit and is better is estimated to take as much as something that was proved too much, or was too late.
    """
    sizes = list(range(1, count + 1))
    took = {f"s{n}-fp32": (data.draw(st.integers(60, 400)), data.draw(st.booleans())) for n in sizes}

    def measured(_, name):
        memory, ended = took[name]
        return Measured(memory * MIB, 0.0 if ended else 0.001, ended=ended)

    fitting, _, rehearsals, _ = search(sizes, measured, [n / 25 for n in sizes])
    found, said = None, ""
    try:
        found = fitting.fitted(board(memory_mb), PORTABLE)
    except FitError as error:
        said = error.found
    ran = [name for _, name in rehearsals.ran]
    fits = {name for name, (memory, ended) in took.items() if memory <= memory_mb and not ended}
    assert len(ran) <= MOST
    better = fits if found is None else {name for name in fits if rows_of(name) > rows_of(found.candidate.name)}
    least = min((rows_of(name) for name in set(ran) - fits), default=99)
    assert len(ran) == MOST or all(rows_of(name) >= least for name in better)
    if found is None:
        assert fits.isdisjoint(ran)
        assert all(f"{name} took {max(memory_mb, took[name][0]) if took[name][1] else took[name][0]} MiB" in said for name in ran)
    else:
        assert found.candidate.name in fits
        assert {one.name for one in found.refused} == set(ran) - fits


def test_a_run_that_scales_the_others_out_does_not_refuse_them():
    """One that takes far more than was estimated says that all do; what is less is still run, and so is what lies between."""
    took = {4: 300, 2: 70, 1: 66}
    fitting, _, rehearsals, _ = search([4, 2, 1], lambda _, name: Measured(took[rows_of(name)] * MIB, 0.001))
    assert fitting.fitted(board(100), PORTABLE).candidate.name == "s2-fp32"
    assert [name for _, name in rehearsals.ran] == ["s4-fp32", "s1-fp32", "s2-fp32"]
    with pytest.raises(FitError, match="cannot be trained") as caught:
        fitting.fitted(board(60, name="least"), PORTABLE)
    assert all(f"s{rows}-fp32 took {memory} MiB" in caught.value.found for rows, memory in took.items())


def test_between_a_proof_and_a_refusal_one_run_decides():
    """Of what is better than what fits the least demanding is run; that it fails refuses all that is estimated to take more."""
    fitting, _, rehearsals, _ = search(
        [40, 30, 20, 10], lambda _, name: Measured((70 if rows_of(name) == 10 else 500) * MIB, 0.001), [0.9, 0.8, 0.7, 0.6]
    )
    found = fitting.fitted(board(110), PORTABLE)
    assert found.candidate.name == "s10-fp32"
    assert [name for _, name in rehearsals.ran] == ["s40-fp32", "s10-fp32", "s20-fp32"]
    assert [one.name for one in found.refused] == ["s40-fp32", "s20-fp32"]


def test_what_differs_by_no_more_than_precisions_do_is_run_too():
    """A refusal by a few per cent says nothing of the same structure in another precision; one by far does."""
    precisions = (Precision.FP32, Precision.INT8)
    took = {"s40-fp32": 103, "s40-int8": 99, "s10-fp32": 70, "s10-int8": 70}
    for factor, expected in ((1.0, "s40-int8"), (1.2, "s10-fp32")):
        fitting, _, rehearsals, _ = search(
            [40, 10], lambda _, name, f=factor: Measured(int(f * took[name] * MIB), 0.001), [0.9, 0.8], precisions=precisions
        )
        assert fitting.fitted(board(100), PORTABLE).candidate.name == expected
        assert ((PORTABLE, "s40-int8") in rehearsals.ran) == (factor == 1.0)


def test_where_nothing_fits_the_smallest_is_the_last_to_be_run():
    """Three runs say so where estimates gave hope, one where they gave none; the error names limit, figure and way out."""
    sizes = range(1, 30)
    fitting, _, rehearsals, _ = search(sizes, lambda _, name: Measured((90 + rows_of(name)) * MIB, 0.001))
    with pytest.raises(FitError) as caught:
        fitting.fitted(board(75), PORTABLE)
    assert [name for _, name in rehearsals.ran] == ["s10-fp32", "s3-fp32", "s1-fp32"]
    assert caught.value.expected == "memory at most 75 MiB (memory_mb)"
    assert caught.value.found.startswith("memory 91 MiB, of which its tensors are about 1")
    assert caught.value.remedy.startswith("No smaller model helps")
    assert caught.value.remedy.endswith("memory_mb of at least 91")
    fitting, _, rehearsals, _ = search(sizes, lambda _, name: Measured((90 + rows_of(name)) * MIB, 0.001))
    with pytest.raises(FitError):
        fitting.fitted(board(50), PORTABLE)
    assert [name for _, name in rehearsals.ran] == ["s1-fp32"]


def test_a_large_model_that_does_not_fit_is_told_to_become_smaller():
    """Where its own tensors are what is too much, a smaller model helps."""
    fitting, _, _, _ = search([200], lambda *_: Measured(300 * MIB, 0.001))
    with pytest.raises(FitError, match="Use a smaller --batch, a smaller model, or a profile with a memory_mb of at least 300"):
        fitting.fitted(board(100), PORTABLE)


def test_what_was_ended_is_never_offered_with_what_it_had_reached():
    """Who looks at the offers after a run, as retraining does, sees that it takes more than the profile allows."""
    ended, proved = Measured(70 * MIB, 0.0, ended=True), Measured(70 * MIB, 0.001)
    fitting, _, _, _ = search([4, 2], lambda _, name: ended if rows_of(name) == 4 else proved)
    profile = board(100)
    fitting.fitted(profile, PORTABLE)
    (offer,) = [one for one in fitting.offers(profile, PORTABLE) if one.name == "s4-fp32"]
    assert "memory" in budget_of(profile).excess(offer.cost)
    assert (offer.demand.bound, offer.demand.measured) == (True, False)


def test_a_run_that_was_ended_proves_no_fit():
    """However little it had taken by then, what was ended for its memory is out for the profile, and runs once."""
    ended, proved = Measured(70 * MIB, 0.0, ended=True), Measured(70 * MIB, 0.001)
    fitting, _, rehearsals, said = search([4, 2, 1], lambda _, name: ended if rows_of(name) == 4 else proved)
    found = fitting.fitted(board(100), PORTABLE)
    assert (found.candidate.name, found.measured) == ("s2-fp32", proved)
    assert [one.name for one in found.refused] == [name for _, name in rehearsals.ran if rows_of(name) == 4] != []
    assert "s4-fp32 is too much for pi (memory): 100 MiB or more" in said


def test_where_every_run_is_ended_nothing_fits():
    """The error says of each how far it came at least; nothing is published as proof of a fit."""
    fitting, _, rehearsals, _ = search([2, 1], lambda *_: Measured(70 * MIB, 0.0, ended=True))
    with pytest.raises(FitError, match="cannot be trained") as caught:
        fitting.fitted(board(100), PORTABLE)
    assert all(f"{name} took 100 MiB or more" in caught.value.found for _, name in rehearsals.ran)
    assert rehearsals.ran


def test_a_long_step_is_a_budget_and_one_run_calibrates_it():
    """The largest is run first; what it took says which one is quick enough on the board, and that one is proved."""
    fitting, _, rehearsals, _ = search([8, 4, 2, 1], lambda _, name: Measured(70 * MIB, 0.001 * rows_of(name)))
    found = fitting.fitted(board(step_ms=50.0, slowdown=20.0), PORTABLE)
    assert found.candidate.name == "s2-fp32"
    assert found.candidate.cost.step == pytest.approx(40.0)
    assert [name for _, name in rehearsals.ran] == ["s8-fp32", "s2-fp32", "s4-fp32"]
    assert "step binds: s4-fp32" in found.planned.reason
    assert [one.name for one in found.refused] == ["s8-fp32", "s4-fp32"]
    with pytest.raises(FitError, match=r"step at most 10 ms") as caught:
        fitting.fitted(board(step_ms=10.0, slowdown=20.0), PORTABLE)
    assert "s1-fp32 took 70 MiB, 20 ms a step" in caught.value.found


def test_profiles_share_what_was_run():
    """A second profile of the same threads starts with what the first has shown."""
    fitting, _, rehearsals, said = search([40, 20, 10], lambda _, name: Measured(BASE + 5 * rows_of(name) * MIB, 0.001))
    assert fitting.fitted(board(130), PORTABLE).candidate.name == "s10-fp32"
    assert [name for _, name in rehearsals.ran] == ["s40-fp32", "s10-fp32", "s20-fp32"]
    assert any("s40-fp32 is too much for pi (memory): 264 MiB" in line for line in said)
    assert fitting.fitted(board(170, name="other"), PORTABLE).candidate.name == "s20-fp32"
    assert [name for _, name in rehearsals.ran] == ["s40-fp32", "s10-fp32", "s20-fp32"]


def test_what_was_refused_is_known_however_often_a_profile_is_asked_for():
    """A second search runs nothing again, says of nothing that it does, and still tells what was too much; so does another's."""
    fitting, _, rehearsals, said = search(
        [40, 30, 20, 10], lambda _, name: Measured((70 if rows_of(name) == 10 else 500) * MIB, 0.001), [0.9, 0.8, 0.7, 0.6]
    )
    first, told = fitting.fitted(board(110), PORTABLE), list(said)
    ran = list(rehearsals.ran)
    for profile in (board(110), board(105, name="other")):
        again = fitting.fitted(profile, PORTABLE)
        assert (again.candidate.name, again.measured) == ("s10-fp32", first.measured)
        assert [one.name for one in again.refused] == [one.name for one in first.refused] == ["s40-fp32", "s20-fp32"]
    assert fitting.fitted(board(600, name="large"), PORTABLE).refused == ()
    assert (rehearsals.ran, said) == (ran, told)


@pytest.mark.parametrize("spare", [0, 2])
def test_a_profile_has_so_many_runs_however_often_it_is_asked_for(spare):
    """Each one fits by less than the next is thought to take more: a second search goes on with the runs that the first left."""
    sizes = range(40, 60)
    took = {f"s{rows}-fp32": 100 * MIB - int(MIB / 2 / 3 ** (rows - 40)) for rows in sizes}
    fitting, _, rehearsals, _ = search(sizes, lambda _, name: Measured(took[name], 0.001), [rows / 100 for rows in sizes])
    profile, ran = board(100), []
    for most in (MOST - spare, MOST, MOST):
        found = fitting.fitted(profile, PORTABLE, spare=MOST - most)
        ran = [name for _, name in rehearsals.ran]
        assert ran == list(took)[:most]
        assert found.candidate.name == ran[-1]


@dataclass
class Retrainer:
    """Makes an excellent codebook of one structure."""

    cut: Cut

    def wanted(self, *_):
        """That one."""
        return (self.cut,)

    def retrained(self, cut):  # noqa: ARG002  as the real one
        """Nothing better there is."""
        return b"file", Resting(400, 0.99)


def test_what_was_retrained_can_still_be_run():
    """Where the search alone would take all runs, some are left to prove that a codebook fits."""
    sizes = range(40, 60)
    took = {rows: 100 * MIB - int(MIB / 2 / 3 ** (rows - 40)) for rows in sizes}
    fitting, _, rehearsals, _ = search(sizes, lambda _, name: Measured(took[rows_of(name)], 0.001), [n / 100 for n in sizes])
    workshop = object.__new__(Workshop)
    workshop._fitting, workshop._retrainer = fitting, Retrainer(fitting._offered.cuts["s40"])
    assert workshop._best(board(100), PORTABLE).candidate.name == "s40-codebook"
    assert len(rehearsals.ran) <= MOST
    assert (PORTABLE, "s45-fp32") in rehearsals.ran


def test_a_run_that_was_ended_refuses_nothing_for_its_step():
    """Nobody measured it: what takes less memory and a longer step by estimate is run, and is the best that fits."""
    took = {4: Measured(300 * MIB, 0.0, ended=True), 2: Measured(70 * MIB, 0.012), 1: Measured(70 * MIB, 0.005)}
    fitting, _, rehearsals, said = search([4, 2, 1], lambda _, name: took[rows_of(name)], [0.9, 0.8, 0.6])
    for name, activations, reuse in (("s4", 6, 1000), ("s2", 2, 2200), ("s1", 1, 400)):
        cut = fitting._offered.cuts[name]
        fitting._offered.cuts[name] = replace(
            cut, structure=replace(cut.structure, work=Work(activations * MIB, (("a", reuse),)))
        )
    profile = board(71, step_ms=30.0, slowdown=1.0)
    found = fitting.fitted(profile, PORTABLE)
    assert [name for _, name in rehearsals.ran] == ["s1-fp32", "s4-fp32", "s2-fp32"]
    assert found.candidate.name == "s2-fp32"
    assert "s4-fp32 is too much for pi (memory): 300 MiB or more" in said


@pytest.mark.parametrize("error", [ModelError("no gradient"), EngineError("no kernel")])
def test_a_structure_that_the_native_engine_cannot_export_is_out_for_it_alone(error):
    """The next one is taken, natively; the portable engine can still have it."""
    fitting, bench, _, _ = search([4, 2], lambda *_: Measured(70 * MIB, 0.001), failing={(NATIVE, "s4"): error})
    assert fitting.fitted(board(), NATIVE).candidate.name == "s2-fp32"
    assert fitting.lost(NATIVE)
    assert fitting.fitted(board(), PORTABLE).candidate.name == "s4-fp32"
    assert bench.done == [(NATIVE, "s2"), (PORTABLE, "s4")]


def test_a_structure_that_fails_in_the_trainer_is_out_for_a_native_engine():
    """As one that cannot be exported; behind the portable engine there is nobody, and the error is the push's."""
    took = {"s4-fp32": EngineError("it fails"), "s2-fp32": Measured(70 * MIB, 0.001)}
    fitting, _, _, _ = search([4, 2], lambda _, name: took[name])
    assert fitting.fitted(board(), NATIVE).candidate.name == "s2-fp32"
    with pytest.raises(EngineError, match="it fails"):
        fitting.fitted(board(), PORTABLE)


def test_an_engine_that_manages_nothing_is_given_up():
    """After a few structures, with the last error, and for the next profile at once."""
    sizes = range(10, 0, -1)
    failing = {(NATIVE, f"s{n}"): ModelError(f"not {n}") for n in sizes}
    fitting, _, _, said = search(sizes, lambda *_: Measured(70 * MIB, 0.001), failing=failing)
    for _ in range(2):
        with pytest.raises(ModelError, match=f"not {10 - TRIES + 1}"):
            fitting.fitted(board(), NATIVE)
    assert len(said) == TRIES


def test_a_codebook_is_offered_once_it_is_there():
    """With the length of its file, the room of int4 rounds, and the accuracy that it was measured to have."""
    precisions = (Precision.FP32, Precision.INT4)
    fitting, bench, _, _ = search([40, 20], lambda *_: Measured(70 * MIB, 0.001), [0.9, 0.5], precisions=precisions)
    coarse = Candidate(structure(40), Precision.INT4, 0)
    tight = board(kib=(coarse.footprint - 500) // 1024)
    assert fitting.fitted(tight, PORTABLE).candidate.name == "s20-int4"
    fitting.rests("s40", b"file", Resting(400, 0.89))
    found = fitting.fitted(tight, PORTABLE).candidate
    assert (found.name, found.file_bytes, found.accuracy) == ("s40-codebook", 400, 0.89)
    assert found.footprint == 400 + 2 * coarse.weight_bytes + 8 * 4000 <= tight.storage_bytes
    assert bench.rested == ("s40", "codebook", b"file")
