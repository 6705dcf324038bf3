"""The settings behind each result: what is simulated, under which label, and what was to be reached.

Model: a result is a list of cases that differ in as little as possible, so that they can be compared; each case is an experiment
of `edgefl simulate`, made from a shipped preset, and is run with several seeds. Peers' methods are played by the same codec:

* `STC` (Sattler et al. 2019) is ternary top-k with Golomb-coded positions, which is this codec without its context.
* `EDEN 1 bit` (Vargaftik et al. 2022) is the rotated dense quantiser.
* `top-k + fp32`: the accuracy is that of 8-bit values, which is not lower; its bytes are counted as 4 for the index and 4 for the
  value of every coordinate.
"""

from collections.abc import Mapping, Sequence

import msgspec

from benchmarks import taught
from benchmarks.case import Case, Study, case, dense, with_plan
from edgefl.codec.weights import Precision
from edgefl.plan import Plan
from edgefl.simulate.experiment import Attack, Dirichlet, Experiment, Group, Iid, Shards
from edgefl.simulate.presets import preset


def fedavg_mnist() -> Sequence[Case]:
    """100 IID devices with 400 examples each, all of them in each of 15 rounds."""
    base = preset("fedavg-mnist")
    return [
        case("edgefl", base),
        case("edgefl without context", base, plan=with_plan(base, context=False)),
        case("dense, 8 bits", base, plan=msgspec.structs.replace(dense(base), server_rate=1.0)),
    ]


def mcmahan_2nn() -> Sequence[Case]:
    """Rounds to 97 %, with one device of ten in a round."""
    return [case("edgefl IID", preset("mcmahan-iid")), case("edgefl non-IID", preset("mcmahan-noniid"))]


def stc() -> Sequence[Case]:
    """Accuracy against bytes with two classes per device."""
    base = preset("stc")
    plain = with_plan(base, context=False, price=0.0)
    return [
        case("edgefl", base),
        case("STC", base, plan=plain),
        case("EDEN 1 bit", base, plan=msgspec.structs.replace(plain, sparsity=1.0, bits=1, rotated=True, downlink_sparsity=1.0)),
        case("top-k + fp32", base, plan=msgspec.structs.replace(plain, bits=8), pairs=True),
    ]


def hapt() -> Sequence[Case]:
    """Activities of unseen people from raw windows."""
    base = preset("hapt")
    return [case("edgefl", base), case("centralised", base, central=True)]


def fedbuff() -> Sequence[Case]:
    """Simulated time to a target with heavy-tailed speeds: the same updates, buffered or waited for."""
    base = preset("fedbuff")
    fraction = base.active / base.devices
    waited = with_plan(base, fraction=fraction, staleness=0, cohort=base.active)
    equal = with_plan(base, fraction=base.plan.cohort / base.devices, staleness=0)
    return [
        case("buffered", base),
        case(f"synchronous, {base.active} devices", base, mode="synchronous", active=0, plan=waited),
        case(f"synchronous, {base.plan.cohort} devices", base, mode="synchronous", active=0, plan=equal),
    ]


def byzantine() -> Sequence[Case]:
    """A fifth of the devices attack."""
    base = preset("byzantine")
    plain = with_plan(base, aggregator="mean", clip=0.0, exclude=0.0)
    cases = [
        case("no attack, mean", base, attack=None, plan=plain),
        case("no attack, recommended", base, attack=None),
    ]
    for kind in ("sign-flip", "gaussian", "alie", "label-flip"):
        attack = Attack(kind=kind, fraction=0.2, strength=0.0 if kind == "alie" else 1.0)
        cases.append(case(f"{kind}, recommended", base, attack=attack))
        cases.append(case(f"{kind}, mean", base, attack=attack, plan=plain))
    return cases


LEVELS = (1.0, 0.5, 0.25, 0.125, 0.0625)
SLIMMABLE = "benchmarks.families:Slimmable"
EQUAL = 0.5
"""Width of the uniform model with the mean number of parameters of `LEVELS`: 33,770 of 33,112."""


def heterofl() -> Sequence[Case]:
    """Five widths of one model on equally many devices, against one width for all; two classes a device, and IID.

    With two classes a device, the loss is over the classes that it has, as in HeteroFL (`two-class`), or over all (`unmasked`).
    """
    plan = Plan(rounds=100, epochs=2, learning_rate=0.1, decay=0.985, fraction=0.1, sparsity=0.2, bits=4, context=False)
    base = Experiment(
        model="benchmarks.families:Nested",
        data="idx:$EDGEFL_DATA/mnist?split=train",
        holdout="idx:$EDGEFL_DATA/mnist?split=test",
        devices=100,
        batch=20,
        plan=plan,
        evaluate_every=100,
    )
    groups = tuple(Group(model=base.model, width=width) for width in LEVELS)
    unmasked = msgspec.structs.replace(base, split=Shards(each=2))
    masked = msgspec.structs.replace(unmasked, loss="masked-cross-entropy")
    iid = msgspec.structs.replace(base, split=Iid(), plan=with_plan(base, rounds=40, decay=0.95))
    settings = (("two-class", masked), ("unmasked", unmasked), ("iid", iid))
    return [found for name, one in settings for found in _levels(name, one, groups)]


def _levels(name: str, base: Experiment, groups: tuple[Group, ...]) -> Sequence[Case]:
    slimmable = tuple(Group(model=SLIMMABLE, width=group.width) for group in groups)
    return [
        case(f"{name} fp32", base, plan=dense(base), precision=Precision.FP32),
        case(f"{name} five-widths", base, groups=groups),
        case(f"{name} slimmable", base, model=SLIMMABLE, groups=slimmable, plan=with_plan(base, learning_rate=0.2)),
        case(f"{name} equal-mean-cost", base, width=EQUAL),
        case(f"{name} smallest-for-all", base, width=LEVELS[-1]),
    ]


DEPTHS = (4, 3, 2, 1)
AS_DEEP = (1.0, 0.66, 0.35, 0.15)
"""Widths with about as many parameters as each of these depths."""
AS_MEAN = 0.57
"""Width of the uniform model with their mean number of parameters."""


def depthfl() -> Sequence[Case]:
    """Four depths of one model on equally many devices, against widths of equal cost; classes dealt unevenly, and IID."""
    plan = Plan(rounds=20, learning_rate=0.1, fraction=0.25, sparsity=0.2, bits=4, context=False)
    base = Experiment(
        model="benchmarks.families:Straight",
        data="idx:$EDGEFL_DATA/mnist?split=train",
        holdout="idx:$EDGEFL_DATA/mnist?split=test",
        devices=40,
        examples=600,
        batch=50,
        split=Dirichlet(alpha=0.5),
        plan=plan,
        evaluate_every=20,
    )
    deep = msgspec.structs.replace(base, model="benchmarks.families:Stairs", plan=with_plan(base, learning_rate=0.3))
    # Without lessons the loss is the mean of cross-entropies, each of which moves its exit as at a quarter of the rate.
    fast = with_plan(base, learning_rate=0.6)
    depths = tuple(Group(model=deep.model, exits=exits) for exits in DEPTHS)
    widths = tuple(Group(model=base.model, width=width) for width in AS_DEEP)
    smallest = (Group(model=deep.model, exits=1),)
    cases = [
        case("four depths", deep, groups=depths, plan=fast),
        case("four depths, self-distillation", deep, groups=depths, loss="self-distillation"),
        case("four depths, slow self-distillation", deep, groups=depths, loss="self-distillation", plan=with_plan(deep, ramp=60)),
        case("four widths", base, groups=widths),
        case("equal mean cost", base, width=AS_MEAN),
        case("all use the smallest", deep, groups=smallest),
        case("only those that hold all exits", deep, devices=10),
    ]
    return [*cases, *(case(f"{one.label}, IID", one.experiment, split=Iid()) for one in cases)]


def smoke() -> Sequence[Case]:
    """Digits, which need no data: to see that everything works."""
    base = preset("digits")
    quick = with_plan(base, rounds=3)
    return [
        case("edgefl", base, plan=quick, split=Iid()),
        case("top-k + fp32", base, plan=with_plan(base, rounds=3, bits=8), pairs=True, split=Shards(each=2)),
        case("centralised", base, plan=quick, central=True),
    ]


STUDIES: Mapping[str, Study] = {
    "fedavg-mnist": Study("at least 0.960 after 15 rounds with uplink at most 1/300 of dense fp32", fedavg_mnist),
    "mcmahan-2nn": Study("97 % within 10 % of 87 (IID) and 664 (non-IID) rounds at 1/200 of the bytes", mcmahan_2nn),
    "stc": Study("accuracy against bytes above STC, 1-bit EDEN and top-k + fp32", stc, curves=True),
    "hapt": Study("within 0.01 of centralised at no more than 0.1 bits per parameter and round", hapt),
    "fedbuff": Study("time to target at least 3 times better than synchronous at equal bytes", fedbuff),
    "byzantine": Study("within 0.01 of the clean run for the recommended aggregator", byzantine),
    "heterofl": Study("at least 0.989 non-IID, above the smallest for all and the uniform model of equal mean cost", heterofl),
    "depthfl": Study(
        "above widths of equal cost, the smallest for all, and the devices that hold the whole model alone", depthfl
    ),
    "ensemble": Study(
        "one served model above the best family alone, and each structure better than without the others", taught.ensemble
    ),
    "ensemble-xray": Study("the same on chest X-rays", taught.ensemble_xray),
    "smoke": Study("runs", smoke),
}
