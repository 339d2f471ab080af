"""How kernels are scored: the options that `score`, `extract`, `compare` and atlases share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxcircuits.chunks import Sizes, sizes
from jaxcircuits.criteria import ABSOLUTE, BASELINES, CRITERIA, STEPS
from jaxcircuits.criteria import criterion as find_criterion
from jaxcircuits.data import count, image_shape
from jaxcircuits.errors import InputError, check_count, check_seed
from jaxcircuits.features import Features, joined
from jaxcircuits.gradients import scored_layers
from jaxcircuits.granularity import check_granularity
from jaxcircuits.model import Model
from jaxcircuits.taps import Network

# as `jax.default_matmul_precision` calls them
PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}


@dataclass(frozen=True)
class Options:
    """The arguments of `score` that have these names.

    Raises:
        InputError: a name that is not known, or a value that the criterion cannot have, whatever the features.
    """

    criterion: str = "snip"
    absolute: str = "per_image"
    layers: Sequence[str] | None = None
    granularity: str = "kernel"
    steps: int | None = None
    seed: int = 0
    precision: str = "float32"
    chunk: int | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise InputError(f"unknown criterion {self.criterion!r}; expected one of {', '.join(CRITERIA)}")
        if self.precision not in PRECISIONS:
            raise InputError(f"unknown precision {self.precision!r}; expected one of {', '.join(PRECISIONS)}")
        if self.absolute not in ABSOLUTE:
            raise InputError(f"unknown absolute {self.absolute!r}; expected one of {', '.join(ABSOLUTE)}")
        check_granularity(self.granularity)
        if self.criterion not in BASELINES:
            find_criterion(self.criterion, self.absolute, self.granularity)
        for name in ("chunk", "batch", "steps"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_seed(self.seed)
        for name in ("chunk", "batch", "steps", "seed"):  # NumPy's numbers have no place in a manifest
            if getattr(self, name) is not None:
                object.__setattr__(self, name, int(getattr(self, name)))

    @property
    def by_weight(self) -> bool:
        """Whether there are sums over images for every weight, not only for every kernel."""
        return self.granularity == "weight" or (self.absolute == "whole_set" and self.criterion not in BASELINES)

    def scored(self, network: Network, target: str) -> tuple[str, ...]:
        """The layers to be scored for features of the target layer, in the network's order."""
        return scored_layers(network, target, None if self.layers is None else tuple(self.layers))

    def sizes(self, network: Network, layers: Sequence[str], images: Any, features: int | None = None) -> Sizes:
        """How many features and images go into one device call."""
        asked: Any = {"by_weight": self.by_weight, "chunk": self.chunk, "batch": self.batch, "features": features}
        return sizes(network, tuple(layers), images=count(images), **asked)


def check_steps(steps: int | None, criteria: Sequence[str]) -> None:
    """Raise an InputError if there are steps but no criterion that takes any."""
    if steps is not None and not set(criteria) & set(STEPS):
        raise InputError(f"steps are those of {' and '.join(STEPS)}; {', '.join(criteria)} takes none")


def able(absolute: str, granularity: str) -> tuple[str, ...]:
    """The criteria that have such scores."""

    def has(name: str) -> bool:
        try:
            Options(name, absolute, granularity=granularity)
        except InputError:
            return False
        return True

    check_granularity(granularity)
    return tuple(name for name in CRITERIA if has(name)) or CRITERIA  # whose error tells what is wrong with the rest


def resolved(
    model: Model, images: Any, features: Features | Iterable[Features], options: Options
) -> list[tuple[Features, tuple[str, ...]]]:
    """The features, those that share their passes together, and the layers to be scored for them.

    Raises:
        InputError: no feature at all, one that the network does not have or whose weights are missing, layers that do
            not lead to it, or places that are not as many as the images.
    """
    network, number = model.network(image_shape(images)), count(images)
    every = [features] if isinstance(features, Features) else list(features)
    found = [(f, options.scored(network, f.layer)) for f in joined(f.resolve(network.layers) for f in every)]
    if not found:
        raise InputError("there are no features; expected at least one")
    for f, layers in found:
        model.check_weights((*layers, f.layer))
        f.places(number)
    return found
