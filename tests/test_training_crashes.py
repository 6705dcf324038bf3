"""A server that dies at any point of a training: started again, it ends with the same bits."""

import functools

import pytest

import toyfleet as toy
from edgefl.codec.difference import encode_difference
from edgefl.link.memory import MemoryLink
from edgefl.server import downlink
from edgefl.server.variants import load_parent
from edgefl.store.blobs import BlobStore
from edgefl.store.database import Database
from toyupdates import WIDE


class KilledError(BaseException):
    """The process ends here."""


class Points:
    """Every place where a server touches the world, counted; at one of them it dies."""

    def __init__(self, monkeypatch, fleet):
        """Count from now on what services do; the fleet's own connection is left alone."""
        self.count, self.at = 0, None
        for owner, name in ((Database, "execute"), (Database, "executemany"), (Database, "__exit__"), (BlobStore, "put")):
            self._watch(monkeypatch, owner, name, lambda it: it is not fleet.database)
        self._watch(monkeypatch, MemoryLink, "publish", lambda it: it._client_id == "edgefl-server")

    def _watch(self, monkeypatch, owner, name, concerns):
        original = getattr(owner, name)

        def watched(it, *arguments, **options):
            if not concerns(it):
                return original(it, *arguments, **options)
            self.pass_by()
            result = original(it, *arguments, **options)
            self.pass_by()
            return result

        monkeypatch.setattr(owner, name, watched)

    def pass_by(self):
        """One more place has been reached."""
        if self.at is not None:
            self.count += 1
            if self.count == self.at:
                raise KilledError


def course(fleet, points):
    """Two rounds of three devices; whenever the server dies it is started again, and devices send again."""
    fleet.train(rounds=2, cohort=3)
    devices = [fleet.device(name) for name in "acb"]
    deaths = 0
    server = None
    for _ in range(30):
        if fleet.rows("SELECT state FROM trainings") == [("finished",)]:
            break
        try:
            if server is None:
                server = fleet.serve()
            for device in devices:
                device.hear()
                if device.orders and device.orders[-1].task is not None:
                    device.send(device.orders[-1].round)
                    server.turns()
        except KilledError:
            points.at = None
            deaths += 1
            if server is not None:  # otherwise it died while it started
                server.kill()
            server = None
    if server is not None:
        server.kill()
    return deaths


@pytest.mark.slow
def test_death_at_any_point_changes_nothing(tmp_path):
    """Killed before or after any statement, file or message, a restarted server ends with the same bits, all counted once."""
    results, points_passed, kill_at = set(), 10**9, 0
    differences = functools.cache(encode_difference)  # every course has the same weights
    while kill_at <= points_passed:
        with pytest.MonkeyPatch.context() as patch:
            root = tmp_path / str(kill_at)
            root.mkdir()
            patch.setattr("os.fsync", lambda _: None)  # processes die here, not the power
            patch.setattr(downlink, "encode_difference", differences)
            fleet = toy.fleet_of_four(root)
            points = Points(patch, fleet)
            points.at = kill_at or 10**9
            deaths = course(fleet, points)
            if kill_at == 0:
                points_passed = points.count
            else:
                assert deaths == 1
            counted = fleet.rows("SELECT device, round, counted FROM updates ORDER BY counted, device")
            assert counted == [(device, number, number) for number in (1, 2) for device in "abc"]
            ((sha256,),) = fleet.rows("SELECT result FROM rounds WHERE round=2")
            results.add(sha256)
            assert len(load_parent(fleet.blobs, sha256)) == WIDE.size
            fleet.database.close()
        kill_at += 1
    assert points_passed > 60
    assert len(results) == 1
