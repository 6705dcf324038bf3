"""What the tests of rollouts share: twenty devices, what operators order, and what devices report.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import toyfleet as toy
from edgefl.rollout_rules import Rules, Target, parse_stages
from edgefl.server.rollout_orders import order, roll_back, start_rollout
from edgefl.server.wanted import wanted
from edgefl.store.database import transaction
from edgefl.store.releases import release
from edgefl.store.versions import get_version
from edgefl.wire import topics
from edgefl.wire.messages import encode
from edgefl.wire.presence import Installed, Report, State
from toyupdates import MODEL

NAMES = [f"d{i:02}" for i in range(20)]
ONE_THEN_ALL = Rules(stages=parse_stages("1,100%"))
ALL = Rules(stages=parse_stages("100%"))


def push(fleet, **options):
    """Push a version and make it the release, as a push without --hold does."""
    version = fleet.push(**options, hold=True)
    with transaction(fleet.database):
        release(fleet.database, MODEL, version, fleet.clock.wall())
    return version


def start(fleet, version=2, rules=ONE_THEN_ALL, **target):
    """Start a rollout of the toy."""
    meant = Target(**{what: tuple(names) for what, names in target.items()})
    return start_rollout(fleet.database, get_version(fleet.database, MODEL, version), rules, meant, fleet.clock.wall())


def say(fleet, word):
    """An operator's order."""
    return order(fleet.database, MODEL, word, fleet.clock.wall())


def back(fleet, **options):
    """A rollback."""
    return roll_back(fleet.database, MODEL, fleet.clock.wall(), **options)


def holding(fleet, version):
    """The devices that are to hold a version."""
    found = wanted(fleet.database).items()
    return [device for device, models in found if [one.version for one in models] == [version]]


def report(fleet, names, step="activated", version=2, **more):
    """Devices report."""
    for name in names:
        device = fleet.device(name)
        device.say("report", Report(MODEL, version, 0, step, **more))
        device.link.close()


def be_born(fleet, names, version, session=1):
    """Devices say that they are there with a version."""
    for name in names:
        device = fleet.device(name)
        state = State(session, online=True, models=(Installed(MODEL, version, "w1-fp32"),))
        device.link.publish(topics.state(name), encode(state), retain=True)
        device.link.close()


def twenty(root):
    """A fleet of twenty devices with version 1 as the release; version 2 is held."""
    fleet = toy.ToyFleet(root)
    fleet.provision(**dict.fromkeys(NAMES, "big"))
    push(fleet)
    fleet.push(seed=2, hold=True)
    return fleet
