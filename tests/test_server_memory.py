"""What a server keeps in memory does not grow with the rounds that it has closed or the devices that have come and gone."""

import gc
import tracemalloc

import toyfleet as toy
from edgefl.server.founding import create_fleet
from edgefl.wire.messages import encode
from edgefl.wire.presence import Report, State
from toyupdates import MODEL

FEW = 8
ROUNDS = 24
SLACK = 15_000
"""Bytes: the noise of caches, less than a leak of one update a round would come to."""


def held():
    """Bytes that the package's own lines hold."""
    gc.collect()
    package = [tracemalloc.Filter(True, "*/edgefl/server/*"), tracemalloc.Filter(True, "*/edgefl/store/*")]
    package += [tracemalloc.Filter(True, f"*/edgefl/{name}/*") for name in ("codec", "aggregate", "wire", "identity")]
    return sum(line.size for line in tracemalloc.take_snapshot().filter_traces(package).statistics("filename"))


def test_closed_rounds_leave_nothing_behind(tmp_path):
    """After twenty-four rounds, each with births, updates and reports, the server holds what it held after eight."""
    fleet = toy.ToyFleet(create_fleet(tmp_path / "fleet", name="test").path)
    fleet.provision(a="big", b="big", c="small")
    fleet.push()
    fleet.train(rounds=ROUNDS + 5, cohort=3, staleness=2)
    served = fleet.serve()
    devices = [fleet.device(name) for name in "abc"]
    sizes = {}
    tracemalloc.start()
    try:
        for number in range(1, ROUNDS + 1):
            for device in devices:
                device.say("state", encode(State(number, online=True)))
                device.send(number)
                device.say("report", encode(Report(MODEL, 1, number, "trained")))
                device.receipts.clear()
                device.orders.clear()
            served.turns(3)
            if number in (FEW, ROUNDS):
                sizes[number] = held()
    finally:
        tracemalloc.stop()
    assert served.training.state.number == ROUNDS + 1
    assert sizes[ROUNDS] - sizes[FEW] < SLACK
    served.kill()
