"""Bytes that a simulation counts are those that the live system sends."""

import hashlib

import numpy as np
import pytest

from edgefl.layout import Layout, Tensor
from edgefl.plan import Plan
from edgefl.simulate.downlink import Downlink
from edgefl.simulate.experiment import Experiment
from edgefl.simulate.jobs import Played
from edgefl.simulate.traffic import file_length, order_length, publish_length, update_length
from edgefl.wire import topics
from edgefl.wire.blocks import file_ref
from edgefl.wire.messages import encode
from edgefl.wire.rounds import PART_SIZE, UpdatePart
from edgefl.wire.tasks import task_of

LAYOUT = Layout((Tensor("a", (100, 100)), Tensor("b", (100,))))


@pytest.mark.parametrize("payload", [1, 100, 127 - 30, 128, 16_000, 100_000])
def test_a_publish_is_as_long_as_a_real_one(payload: int) -> None:
    """The computed length is that of the packet which an MQTT library builds."""
    amqtt = pytest.importorskip("amqtt.mqtt.publish")
    topic = topics.update("s0-00001")
    packet = amqtt.PublishPacket.build(topic, bytes(payload), 7, dup_flag=False, qos=1, retain=False)
    assert publish_length(topic, payload) == len(packet.to_bytes())


def test_an_update_of_several_parts_counts_each_head() -> None:
    """The length is that of all messages which a device would publish."""
    data = bytes(PART_SIZE + 10)
    sha256 = hashlib.sha256(data).digest()
    played = Played(1, 40, data, 2.0, 1.0, 3)
    parts = (data[:PART_SIZE], data[PART_SIZE:])
    messages = [encode(UpdatePart("m", 1, "w1-fp32", 4, 40, 2.0, 1.0, sha256, i, 2, d, 3)) for i, d in enumerate(parts)]
    expected = sum(publish_length(topics.update("cam-01"), len(message)) for message in messages)
    assert update_length("cam-01", "m", "w1-fp32", 4, played) == expected


def test_files_and_orders_cost_a_little_more_than_their_content() -> None:
    """A file costs its bytes and some percent for its blocks' heads; an order a few hundred bytes."""
    ref = file_ref("weights", bytes(1_000_000))
    assert 1_000_000 < file_length(ref) < 1_005_000
    assert 200 < order_length("m", "w1-fp32", 1, ref, task_of(Plan(), 1)) < 1500


def test_devices_that_hold_recent_weights_fetch_a_short_difference() -> None:
    """With a sparse downlink the way from the last round is shorter than from the version's own, and that than the file."""
    rng = np.random.default_rng(0)
    parent = rng.standard_normal(LAYOUT.size).astype(np.float32)
    experiment = Experiment(plan=Plan(downlink_sparsity=0.01))
    downlink, task = Downlink(experiment, LAYOUT, parent), task_of(experiment.plan, 1)
    first = downlink.publish(1, task)
    assert first.differences == {}
    np.testing.assert_array_equal(first.weights, parent)
    for number in range(2, 14):
        parent = parent + 0.1 * rng.standard_normal(LAYOUT.size).astype(np.float32)
        downlink.take(downlink.next(parent))
        published = downlink.publish(number, task)
        assert published.fetched(number - 1).length <= published.fetched(0).length < published.file.length
        assert np.count_nonzero(published.weights != downlink.weights) == 0
    assert published.fetched(1) == published.fetched(0)  # too long ago: from the version's own


def test_a_dense_downlink_sends_the_parent_itself() -> None:
    """Without sparsity devices decode exactly the parent, as a whole file."""
    downlink = Downlink(Experiment(), LAYOUT, np.zeros(LAYOUT.size, dtype=np.float32))
    parent = np.random.default_rng(0).standard_normal(LAYOUT.size).astype(np.float32)
    downlink.take(downlink.next(parent))
    published = downlink.publish(2, task_of(Plan(), 2))
    np.testing.assert_array_equal(published.weights, parent)
    assert published.fetched(1) == published.file
