"""A rollout machine and what has come of it: devices without a server, a database or a network.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

from collections.abc import Iterable

from edgefl.rollout_rules import Rules
from edgefl.server.rollout import step
from edgefl.server.rollout_events import DevicesChanged, Effect, Event, Heard, Member, Ordered, Reported
from edgefl.server.rollout_state import Rollout

THERE = Member(present=True, seen=1.0)


class Fleet:
    """A rollout and what has come of it."""

    def __init__(self, members: int | dict[str, Member], **rules: object) -> None:
        self.state = Rollout(1, Rules(**rules))  # type: ignore[arg-type]  # the tests give what belongs
        self.effects: list[Effect] = []
        self.now = 0.0
        self.members = {f"d{i:04}": THERE for i in range(members)} if isinstance(members, int) else members
        self.happen(DevicesChanged(self.members))

    def happen(self, event: Event) -> tuple[Effect, ...]:
        """Let something happen a second later."""
        self.now += 1.0
        self.state, effects = step(self.state, event, self.now)
        self.effects += effects
        return effects

    def order(self, word: str) -> tuple[Effect, ...]:
        """An operator's word."""
        return self.happen(Ordered(word))  # type: ignore[arg-type]  # a word

    def hear(self, names: Iterable[str], step_: str = "activated", **more: object) -> None:
        """Each of these devices reports, one after the other."""
        for name in names:
            self.happen(Heard((Reported(name, step_, **more),)))  # type: ignore[arg-type]  # a step

    def at(self, step_: str) -> list[str]:
        """The devices at a step."""
        return [name for name, device in self.state.devices.items() if device.step == step_]

    @property
    def told(self) -> int:
        """How many were told, set aside or not."""
        return sum(device.step != "waiting" for device in self.state.devices.values())
