"""What an operator asks for with a push, and what of it can be refused before anything is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgefl.errors import DataError, ModelError, ProfileError
from edgefl.examples import Examples
from edgefl.names import check_id
from edgefl.profile import Profile
from edgefl.recipe import PLAIN, Recipe
from edgefl.server.quantising import DROP
from edgefl.server.retraining import Retraining, check_apart
from edgefl.wire.releases import Health
from edgefl.wire.sources import check_sources

MAX_BATCH = 65536
LENIENT = Health()
LIFETIME = 365 * 86400
"""Seconds after which a manifest is no longer valid, unless the request says otherwise."""


@dataclass(frozen=True, slots=True)
class PushRequest:
    """What the operator asks for.

    Attributes:
        model: the model's name in the fleet, an id as in `edgefl.names`.
        source: built-in architecture or `package.module:factory`.
        weights: safetensors or checkpoint of the full model; None starts from the factory's own initial weights.
        trained: whether it begins with the newest weights of the model's release instead, as the fleet has trained them.
        batch: rows of a training step.
        seed: of the initial weights.
        holdout: examples to measure each variant's accuracy on; None leaves it out.
        calibrate: examples to calibrate int8 graphs with; None makes none.
        int8_drop: accuracy that an int8 graph may lose on the hold-out examples, in [0, 1].
        lifetime: seconds until the manifests expire.
        recipe: loss and optimiser.
        freeze, personal: patterns of the names of tensors that are not trained, and of those that stay on each device.
        hold: whether devices get the version by a rollout only, instead of all at once.
        health: when the version may stay on a device.
        sources: where else the files may be had, see `Manifest.sources`.
        keys: directories with release keys beside the fleet's own.
        retraining: on what structures that only just do not fit may be retrained; None retrains nothing.
        freezable: whether a small board's variant may keep first layers frozen, where that lets a more accurate one fit.
    """

    model: str
    source: str
    weights: Path | None = None
    batch: int = 32
    seed: int = 0
    holdout: Examples | None = None
    lifetime: int = LIFETIME
    recipe: Recipe = PLAIN
    freeze: tuple[str, ...] = ()
    personal: tuple[str, ...] = ()
    hold: bool = False
    health: Health = LENIENT
    sources: tuple[str, ...] = ()
    keys: tuple[Path, ...] = ()
    calibrate: Examples | None = None
    int8_drop: float = DROP
    freezable: bool = False
    retraining: Retraining | None = None
    trained: bool = False


def check_request(request: PushRequest, profiles: Sequence[Profile]) -> None:
    """Refuse what can be refused before anything is exported.

    Raises:
        InputError: a name, number, source or profile is impossible, or what is asked for does not go together.
    """
    check_id(request.model, "model name")
    if not 1 <= request.batch <= MAX_BATCH or request.lifetime < 1:
        raise ModelError(
            "impossible push", expected=f"batch 1 to {MAX_BATCH}, lifetime above 0", found=f"{request.batch}, {request.lifetime}"
        )
    if request.trained and request.weights is not None:
        raise ModelError("a push begins with one set of weights", found=f"{request.weights}, and what the fleet has learned")
    if request.calibrate is not None and (request.holdout is None or not request.recipe.classifies):
        raise DataError(
            "an int8 graph cannot be judged",
            expected="hold-out examples, and a loss whose answers are right or wrong",
            found="no hold-out" if request.holdout is None else request.recipe.loss,
            remedy="Give --holdout, or leave --calibrate out",
        )
    check_apart(request.retraining, request.holdout)
    check_sources(request.sources)
    names = [profile.name for profile in profiles]
    if not names or len(set(names)) < len(names):
        raise ProfileError("impossible push", expected="one profile or more, each once", found=", ".join(names) or "none")
    for profile in profiles:
        if profile.engine == "none":
            raise ProfileError(
                f"profile {profile.name} can run no model",
                found=profile.reason,
                remedy="Give its devices another profile, or revoke them",
            )
