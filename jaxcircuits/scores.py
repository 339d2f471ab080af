"""Score every relevant kernel of many features over a set of images."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcircuits.chunks import chunk_size, in_chunks
from jaxcircuits.criteria import ABSOLUTE, BASELINES, CRITERIA, Criterion
from jaxcircuits.criteria import criterion as find_criterion
from jaxcircuits.criteria.common import Statistic
from jaxcircuits.data import batches, count, image_shape
from jaxcircuits.errors import InputError
from jaxcircuits.features import Features, Place, cotangents, place_weights
from jaxcircuits.gradients import gradients, scored_layers
from jaxcircuits.layers import Masks
from jaxcircuits.model import Model
from jaxcircuits.ops import features_last
from jaxcircuits.paths import relevant
from jaxcircuits.taps import Network

# as `jax.default_matmul_precision` calls them
PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}


Sums = dict[str, Array]


class Record(NamedTuple):
    """How scores came about; stands in the manifest of every circuit made of them."""

    criterion: str
    absolute: str | None
    objective: str
    images: int
    seed: int | None
    precision: str


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "relevant"], meta_fields=["layers", "record"]
)
@dataclass(frozen=True)
class Scores:
    """Saliency of each kernel for each feature.

    Attributes:
        values: {layer: (F, I, O) float32}, at least 0 unless absolute="none"; 0 where not relevant.
        relevant: {layer: (F, I, O) bool}, the kernels from which a path leads to the feature.
        layers: their names in call order (`jit` sorts dictionaries).
        record: how they came about.
    """

    values: Mapping[str, Array]
    relevant: Mapping[str, Array]
    layers: tuple[str, ...]
    record: Record


class Plan(NamedTuple):
    """What a compiled scoring step depends on besides its arguments."""

    network: Network
    target: str
    layers: tuple[str, ...]
    criterion: Criterion
    objective: str
    place: Place
    on_support: bool

    def statistic(self, name: str) -> Statistic:
        """How this layer's sum is made."""
        layer = self.network.layers[name]
        if name == self.target:
            return self.criterion.target
        gathered = self.on_support and layer.kind == "conv" and layer.groups == 1
        return self.criterion.on_support if gathered else self.criterion.dense

    def nothing(self, features: int) -> Sums:
        """The sums over no images."""
        return {
            name: jnp.zeros(self.statistic(name).shape(self.network.layers[name], features)) for name in self.layers
        }


def score(
    model: Model,
    images,
    features: Features,
    *,
    criterion: str = "snip",
    absolute: str = "per_image",
    layers: Sequence[str] | None = None,
    seed: int = 0,
    precision: str = "float32",
    chunk: int | None = None,
    batch: int = 1,
    progress: Callable[[int], object] = lambda done: None,
) -> Scores:
    """Score the kernels of every layer before the features, and of their own.

    Args:
        model: the network and its weights.
        images: what `read_images` returns, or a normalised float array (N, H, W, C).
        features: F of them, of one layer.
        criterion: "snip", "actgrad", "magnitude" or "random"; the equations stand in `jaxcircuits.criteria`.
        absolute: where absolute values are taken: "per_image" (the default), "whole_set" (SNIP only) or "none". The
            three are different quantities; none depends on how images are batched.
        layers: those to score; by default all convolutions before the features and, for a feature of a dense layer, the
            dense layers too.
        seed: of criterion "random".
        precision: of matrix products: "float32", or on hardware that has them "tf32" and "bfloat16".
        chunk: features scored together; by default as many as fit in memory.
        batch: images in one device call.
        progress: called with the number of features times images done since the last call.

    Returns:
        Scores for all F features, in their order.

    Raises:
        InputError: an unknown name, a channel, direction or position that the layer does not have, no images, images of
            another shape than the model takes, or weights that are missing.
    """
    check_options(criterion, absolute, precision, chunk, batch)
    network = model.network(image_shape(images))
    features = features.resolve(network.layers)
    chosen = scored_layers(network, features.layer, tuple(layers) if layers is not None else None)
    model.check_weights((*chosen, features.layer))
    number = count(images)
    record = Record(criterion, absolute, features.objective, number, None, precision)
    if criterion in BASELINES:
        possible = relevant(network, model.variables, features, chosen)
        weights = {name: network.layers[name].weight(model.variables) for name in chosen}
        values = BASELINES[criterion](weights, features.identities, seed=seed)
        values = {name: jnp.where(possible[name], values[name], 0) for name in chosen}
        record = record._replace(absolute=None, seed=seed if criterion == "random" else None)
        return Scores(values, possible, chosen, record)
    rule = find_criterion(criterion, absolute)
    chunk = chunk or chunk_size(network, chosen, batch=batch, whole_set=absolute == "whole_set")
    gather = features_last(min(chunk, len(features)))
    plan = Plan(network, features.layer, chosen, rule, features.objective, features.place, gather)
    with jax.default_matmul_precision(PRECISIONS[precision]):
        weights = _weights(plan, model.variables)
        parts = [
            _over_images(plan, model, weights, images, number, part, batch, progress)
            for part in in_chunks(features, chunk)
        ]
    values, possible = (_joined(arrays, len(features)) for arrays in zip(*parts, strict=True))
    return Scores(values, possible, chosen, record)


def check_options(criterion: str, absolute: str, precision: str, chunk: int | None, batch: int) -> None:
    """Raise an InputError for what `score` does not know or cannot do, whatever the features."""
    if criterion not in CRITERIA:
        raise InputError(f"unknown criterion {criterion!r}; expected one of {', '.join(CRITERIA)}")
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}; expected one of {', '.join(PRECISIONS)}")
    if absolute not in ABSOLUTE:
        raise InputError(f"unknown absolute {absolute!r}; expected one of {', '.join(ABSOLUTE)}")
    if criterion not in BASELINES:
        find_criterion(criterion, absolute)
    for name, size in (("chunk", chunk), ("batch", batch)):
        if size is not None and size < 1:
            raise InputError(f"{name} is {size}; expected at least 1")


# the plans and numbers of features whose last step is compiled
_FINISHED: weakref.WeakKeyDictionary[Network, set] = weakref.WeakKeyDictionary()


def _over_images(
    plan: Plan,
    model: Model,
    weights: dict[str, Array],
    images,
    number: int,
    features: Features,
    batch: int,
    progress: Callable[[int], object],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Scores and relevant kernels {layer: (F, I, O)} of one chunk of features."""
    network, variables = plan.network, model.variables
    possible = relevant(network, variables, features, plan.layers)
    directions = jnp.asarray(features.matrix(network.layers[plan.target].outputs))
    places = np.concatenate([features.places(number), np.zeros((batch, 2), np.int32)])
    total, done = plan.nothing(len(features)), 0
    finish = functools.partial(_finish, plan, possible=possible, number=jnp.float32(number))
    if (ready := (plan, len(features))) not in (seen := _FINISHED.setdefault(network, set())):
        # of zeros, so that nothing is left to compile after the first images
        finish(total, weights, directions)
        seen.add(ready)
    for block, real in batches(images, batch):
        given = jnp.asarray(places[done : done + batch])
        total = _step(plan, total, variables, weights, directions, given, jnp.asarray(block), jnp.int32(real))
        done += real
        progress(real * len(features))
    return finish(total, weights, directions), possible


def _joined(parts: tuple[dict[str, Array], ...], features: int) -> dict[str, Array]:
    """The chunks' arrays as one, without what fills up the last chunk."""
    if len(parts) == 1:
        return parts[0]
    return {name: jnp.concatenate([part[name] for part in parts])[:features] for name in parts[0]}


@functools.partial(jax.jit, static_argnames="plan")
def _weights(plan: Plan, variables) -> dict[str, Array]:
    """Of the scored layers, as criteria take them; made once for all images."""
    return {name: plan.network.layers[name].weight_by_output(variables) for name in plan.layers}


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="total")
def _step(
    plan: Plan, total: Sums, variables, weights: Masks, directions: Array, places: Array, images: Array, real: Array
) -> Sums:
    """Each layer's sum with the first `real` of some more images."""
    counts = (jnp.arange(len(images)) < real)[:, None, None]

    def objective(maps: Array) -> Array:
        where = place_weights(plan.place, maps, places)
        return cotangents(plan.objective, maps, where) * counts

    arguments = plan.network, variables, plan.target, plan.layers, images, directions, objective
    found = gradients(*arguments, on_support=plan.on_support)
    sums = {}
    for name in plan.layers:
        layer, x = plan.network.layers[name], found.inputs[name]
        if name == plan.target:
            seen = (found.cotangents, directions)
        elif name in found.supports:
            seen = (found.outputs[name], found.supports[name])
        else:
            seen = (found.outputs[name],)
        sums[name] = plan.statistic(name).add(total[name], layer, x, *seen, weights[name])
    return sums


@functools.partial(jax.jit, static_argnames="plan")
def _finish(
    plan: Plan, total: Sums, weights: Masks, directions: Array, possible: Masks, number: Array
) -> dict[str, Array]:
    scores = {}
    for name in plan.layers:
        layer = plan.network.layers[name]
        own = (directions,) if name == plan.target else ()
        found = plan.statistic(name).finish(total[name], layer, *own, weights[name], number)
        scores[name] = jnp.where(possible[name], found, 0)
    return scores
