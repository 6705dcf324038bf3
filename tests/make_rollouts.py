"""Writes docs/rollouts.md: the text below, and the diagram of the rollout machine as its table of moves says it.

Run it after the table (`edgefl.server.rollout.MOVES`), the defaults or this text have changed; a test compares the file with what
this gives.

    python tests/make_rollouts.py
"""

from collections.abc import Iterator
from pathlib import Path

from edgefl.rollout_rules import Rules
from edgefl.server.rollout import MOVES
from edgefl.server.rollout_state import OPEN, Phase

DOCUMENT = Path(__file__).parent.parent / "docs" / "rollouts.md"
HEAD = """# Rollouts

This page is made by `tests/make_rollouts.py`; the diagram is drawn from the machine's own table of moves.

A push makes its version the *release* at once: what every device is to hold. `edgefl push --hold` holds it back, and a *rollout*
brings it to the fleet stage by stage:

    edgefl push my_model:make --name cam --hold
    edgefl rollout start cam --stages 1,5%,25%,100% --success 90% --abort 10%/3
    edgefl rollout status cam --watch

While a stage is open, as many devices are *told* as it says: one, then 5 %, 25 % and all. When the share `--success` of them
holds the version, the next stage opens. When all is done the version becomes the release, so that devices which come later get it
too.
"""
MEANING = """
## What moves it

* **gate passed**: enough of the devices that the stage tells hold the version. With `--approve` the rollout then waits for
  `edgefl rollout promote`. Stages that would tell nobody more are passed over.
* **too many failed**: of the devices that are done (hold the version, or have failed) the share of `--abort` has failed, and
  at least so many are done as it says. With `--at-limit abort` that ends the rollout.
* **gate out of reach**: so many have failed that the others cannot pass the gate; a single canary that fails is such a case.
* **promote** opens the next stage without waiting. **resume** after failures goes on without the devices that failed, and
  tells others in their place.
* **supersede** is a newer rollout of the model that concerns one of the same devices, or a push without `--hold`.

## Which devices

`--tag`, `--profile` and `--device` name them; without any of these, all. Of each kind one is enough, and all kinds must hold.
Tags are put on with `edgefl devices tag ID TAG...`. A device also needs a variant: the version must have been pushed for its
profile.

Devices stand in a queue whose order is a hash of rollout and device, so that each rollout has other canaries. Those that are
online go first. A device that is provisioned, tagged or comes back while the rollout runs joins the queue; one that is
revoked or loses its tag leaves.

A rollout for some devices only makes its version *theirs* when it has finished, and not the release: newcomers with the tag
get it, others do not.

## Several at a time

Rollouts of a model whose devices are not the same run beside each other, each with its own stages, gate and limit:

    edgefl rollout start cam@7 --tag north
    edgefl rollout start cam@7 --tag south --stages 100%
    edgefl rollout pause cam --rollout 12

A new rollout supersedes those that are meant for one of its devices, as they are tagged at that moment; one for all devices
meets every other. A device that is tagged later so that two open rollouts are meant for it belongs to the newer one, and leaves
the older. With several open, `pause`, `resume`, `promote` and `abort` ask which; `rollback` ends them all.

## What a device is to hold

The newest word about it counts. An open rollout speaks for the devices that it has told. A superseded one speaks on for those
that hold its version, until the newer rollout tells them; those still on the way drop it. A finished one speaks for its
devices. For all others it is the release. After an abort it is the release for all.

A device that fails goes back to what was before, and is not told of that version again, not even when it has become the
release. To try again is another rollout: `edgefl rollout start cam@3 --device cam-07 --stages 100%`.

`edgefl rollback cam` undoes the last thing that was said of the model. While a rollout runs, or has finished for some devices
only, every device is to hold the release again. Otherwise the release before becomes the release again, and a second rollback
goes one further back. What was held or rolled back is never gone back to, unless `--to VERSION` names it.

## What a device can say

| step | counts as |
|---|---|
| `waiting` | not told |
| `told`, `fetching`, `deferred`, `trial` | on its way |
| `activated` | holds the version; so does one whose inventory shows it, and one that trains it |
| `failed`, `reverted` | failed, for good in this rollout |
| `timed-out` | failed, unless it comes to hold the version after all |

A later step is never undone by an earlier one that arrives late or twice. `--json` gives every device's step, percent, bytes,
last error code and when it was last heard.

## What to know

* `--timeout` counts from when a device was told and there, and not while it is `deferred`. Without it a device that says nothing
  is waited for; the share of `--success` decides whether the rollout needs it. `edgefl rollout status` shows which devices it
  waits for, and `promote` goes on without them.
* Orders hold without a server, and devices hear of them when it runs.
"""


def document() -> str:
    """The text of docs/rollouts.md."""
    return HEAD + "\n```mermaid\n" + "\n".join(diagram()) + "\n```\n\n" + defaults() + MEANING


def diagram() -> Iterator[str]:
    """The machine as a Mermaid state diagram: one arrow for all causes that lead from one phase to another."""
    yield "stateDiagram-v2"
    yield "    [*] --> running: start"
    arrows: dict[tuple[Phase, Phase], list[str]] = {}
    for (before, cause), after in MOVES.items():
        arrows.setdefault((before, after), []).append(cause)
    for (before, after), causes in arrows.items():
        yield f"    {_name(before)} --> {_name(after)}: {' / '.join(causes)}"
    for phase in sorted(set(MOVES.values()) - set(OPEN)):
        yield f"    {_name(phase)} --> [*]"


def _name(phase: Phase) -> str:
    return phase.replace(" ", "_")


def defaults() -> str:
    """What holds when nothing is said."""
    rules = Rules()
    stages = ",".join(map(str, rules.stages))
    return (
        f"Defaults: `--stages {stages} --success {100 * rules.success:g}% --abort {100 * rules.abort:g}%/{rules.minimum} "
        f"--at-limit {rules.at_limit}`.\n"
    )


if __name__ == "__main__":
    DOCUMENT.write_text(document())
