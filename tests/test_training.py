"""A training on the server: how its rounds go on over stops, new starts, wrong clocks and whatever else happens."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import toyfleet as toy
from edgefl.store.ledger import end_training, rounds
from toyupdates import MODEL, reference


@pytest.fixture
def fleet(tmp_path):
    """A fleet of two wide and two narrow devices with one version."""
    return toy.fleet_of_four(tmp_path)


def test_weights_that_cannot_be_written_are_given_up(fleet, monkeypatch, caplog):
    """If the mean cannot be written the round closes with the weights that it began with, and the training goes on."""
    from edgefl.errors import ModelError

    fleet.train(rounds=3, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    before = server.training.parent.copy()
    with monkeypatch.context() as patch:

        def refuse(*_):
            raise ModelError("these weights cannot be written")

        patch.setattr("edgefl.server.variants.Variant.weights", refuse)
        device.send(1)
        server.turns()
    assert "diverged" in caplog.text
    assert server.training.state.number == 2
    np.testing.assert_array_equal(server.training.parent, before)
    assert server.answer(device, 2).stored


def test_rounds_count_on_over_the_trainings_of_a_version(fleet):
    """A second training goes on with the next round number and the weights of the first; nothing counts in both."""
    first = fleet.train(rounds=2, cohort=1)
    server, device, other = fleet.serve(), fleet.device("a"), fleet.device("b")
    for number in (1, 2):
        server.answer(device, number)
    ended = server.training.parent.copy()
    fleet.train(rounds=2, cohort=2)
    server.turns()
    assert server.training.state.number == 3
    np.testing.assert_array_equal(server.training.parent, ended)
    assert server.answer(device, 2).stored  # its receipt had been lost
    assert server.answer(other, 2).stored  # one round late, and new
    assert fleet.rows("SELECT device, round, training FROM updates WHERE counted IS NULL") == [("b", 2, first + 1)]


def test_training_started_again_takes_over_what_waits(fleet):
    """Updates of a round that was stopped count when the training of the version is started again, once."""
    training = fleet.train(rounds=5, cohort=3)
    server, devices = fleet.serve(), [fleet.device(name) for name in "acb"]
    begun = server.training.parent.copy()
    for device in devices[:2]:
        assert server.answer(device, 1).stored
    end_training(fleet.database, training, "stopped")
    server.turns()
    fleet.train(rounds=5, cohort=3)
    server.turns()
    assert server.answer(devices[0], 1).stored
    assert server.answer(devices[2], 2).stored
    assert server.training.state.number == 3
    expected = reference(begun, [("a", "big", 1), ("c", "small", 1), ("b", "big", 2)], number=2)
    np.testing.assert_allclose(server.training.parent, expected, rtol=1e-6, atol=1e-7)


def test_command_between_two_looks_of_the_server_loses_no_update(fleet):
    """Stopped and started again before the server looks: what it is sent meanwhile gets no receipt, or counts."""
    training = fleet.train(rounds=5, cohort=2)
    server, a, c = fleet.serve(), fleet.device("a"), fleet.device("c")
    assert server.answer(a, 1).stored
    end_training(fleet.database, training, "stopped")
    again = fleet.train(rounds=5, cohort=2)
    server.service._look_at = fleet.clock.now + 100.0
    assert server.answer(c, 1) is None
    server.service._look_at = fleet.clock.now
    server.turns()
    assert server.answer(c, 1).stored
    assert fleet.rows("SELECT device, counted FROM updates WHERE training=? ORDER BY device", again) == [("a", 2), ("c", 2)]


def test_round_of_a_stopped_training_does_not_close(fleet):
    """A cohort that is complete after the stop, before the server has looked, changes no weights."""
    training = fleet.train(rounds=5, cohort=4, deadline=60.0)
    server = fleet.serve()
    server.answer(fleet.device("a"), 1)
    end_training(fleet.database, training, "stopped")
    fleet.clock.now += 100.0
    begun = server.training.parent.copy()
    server.service._guarded(lambda: server.service._advance(MODEL))
    np.testing.assert_array_equal(server.training.parent, begun)
    assert (server.training.state.number, server.training.state.finished) == (1, True)
    assert fleet.rows("SELECT closed, result FROM rounds") == [(None, None)]


def test_round_opened_by_a_clock_that_was_ahead_is_not_waited_for(fleet):
    """After the clock has been put right and the server started again, the deadline counts from the start."""
    fleet.clock.now = 365 * 86400.0
    fleet.train(rounds=2, cohort=4, deadline=60.0)
    fleet.clock.now = 0.0
    server, device = fleet.serve(), fleet.device("a")
    server.answer(device, 1)
    server.turns(2, seconds=60.0)
    assert server.training.state.number == 2


def test_content_of_an_update_goes_with_its_round(fleet):
    """After the aggregation the row stays, so that a repetition is known, and the device's delta is deleted."""
    fleet.train(rounds=3, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    server.answer(device, 1)
    assert fleet.rows("SELECT device, round, counted, data FROM updates") == [("a", 1, 1, b"")]


def test_holdout_that_is_gone_costs_the_measurement_and_not_the_round(fleet, caplog):
    """Without its hold-out examples a round closes unmeasured, and the log says why."""
    fleet.train(rounds=2, cohort=1, holdout="npz:/nowhere/at-all.npz")
    server, device = fleet.serve(), fleet.device("a")
    server.answer(device, 1)
    assert "cannot be evaluated" in caplog.text
    assert [(r.closed is not None, r.accuracy) for r in rounds(fleet.database, 1)] == [(True, None), (False, None)]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from("abcd"), st.integers(0, 3)),
        st.tuples(st.just("restart"), st.just(""), st.just(0)),
        st.tuples(st.just("wait"), st.just(""), st.integers(1, 90)),
        st.tuples(st.just("stop and start"), st.just(""), st.integers(2, 3)),
    ),
    min_size=5,
    max_size=30,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTIONS)
def test_whatever_happens_every_acknowledged_update_counts_once(tmp_path_factory, monkeypatch, actions):
    """Whatever arrives, is repeated, restarted or stopped: each receipt has its row, and the rows' dense mean is the result."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    fleet = toy.fleet_of_four(tmp_path_factory.mktemp("toy"))
    training = fleet.train(rounds=50, cohort=3, quorum=1, deadline=60.0, staleness=2)
    server, devices = fleet.serve(), {name: fleet.device(name) for name in "abcd"}
    begun = server.training.parent.copy()
    promised = set()
    for kind, name, number in actions:
        if kind == "send":
            trained_for = max(0, server.training.state.number - number)
            receipt = server.answer(devices[name], trained_for)
            promised |= {(name, trained_for)} if receipt.stored else set()
        elif kind == "restart":
            server.kill()
            server = fleet.serve()
        elif kind == "wait":
            server.turns(1, seconds=float(number))
        else:
            end_training(fleet.database, training, "stopped")
            training = fleet.train(rounds=50, cohort=number, quorum=1, deadline=60.0, staleness=2)
        server.turns()
    rows = fleet.rows("SELECT device, round, counted FROM updates")
    assert {(device, trained_for) for device, trained_for, _ in rows} == promised
    assert len(rows) == len(promised)
    parent = begun.astype(np.float64)
    for number in sorted({counted for _, _, counted in rows if counted}):
        updates = [(device, fleet.profiles[device], trained_for) for device, trained_for, counted in rows if counted == number]
        parent = reference(parent.astype(np.float32).astype(np.float64), updates, number=number)
    np.testing.assert_allclose(server.training.parent, parent, rtol=1e-5, atol=1e-6)
    fleet.database.close()
    server.kill()
