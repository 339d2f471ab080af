"""How well a circuit computes its feature: the feature's maps in the masked network against those in the full one."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcircuits import masked
from jaxcircuits.chunks import in_chunks
from jaxcircuits.data import batches, count, image_shape
from jaxcircuits.errors import InputError
from jaxcircuits.features import Features, Place, find_layer, place_weights
from jaxcircuits.gradients import activations
from jaxcircuits.granularity import granularity_of, shape_at
from jaxcircuits.layers import Arrays, Masks
from jaxcircuits.masks import top_kernels
from jaxcircuits.model import Model
from jaxcircuits.scores import Level, Scores, score_levels
from jaxcircuits.taps import Network, with_masks

KEEPS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01, 0.005, 0.001)
"""The 13 keep levels of the paper's curves."""

# Features whose full maps are computed together, and images in one device call.
CHUNK, BATCH = 64, 16


def correlation(model: Model, images, features: Features, masks: Arrays, *, batch: int = BATCH) -> np.ndarray:
    """Pearson correlation r of each feature in its circuit with the feature in the full network: (F,) float64.

    With x and y the two over all images and positions (or each image's one position, where the features have one),
    flattened as in the paper:  r = sum (x - mean x)(y - mean y) / sqrt(sum (x - mean x)^2  sum (y - mean y)^2).

    Args:
        model: the full network.
        images: as for `score`; other images than those that scored judge a circuit fairly.
        features: F of them.
        masks: {layer: (F, I, O) bool}, of weights (F, K, I, O), of filters (F, O); layers that are not named keep all.
        batch: images in one device call.

    Returns:
        r between -1 and 1; nan, with a warning that names the feature, where one of the two is constant.

    Raises:
        InputError: as `score`, and masks of other layers or shapes than the model's.
    """
    return correlations(model, images, features, [masks], batch=batch)[:, 0]


def curve(
    model: Model, images, features: Features, scores: Scores, keeps: Sequence[float] = KEEPS, *, batch: int = BATCH
) -> np.ndarray:
    """`correlation` of the circuits that keep each of these fractions of the relevant kernels: (F, K) float64.

    Scores that depend on how much is kept ("force") are made again for each fraction, with these images.
    """
    record, levels = scores.record, [scores] * len(keeps)
    if record.steps is not None:
        levels = score_levels(
            model, images, features, [Level(keep=keep, steps=record.steps) for keep in keeps],
            criterion=record.criterion, absolute=record.absolute or "per_image", layers=scores.layers,
            granularity=record.granularity, precision=record.precision,
        )  # fmt: skip
    masks = [top_kernels(found, keep=keep) for found, keep in zip(levels, keeps, strict=True)]
    return correlations(model, images, features, masks, batch=batch)


def correlations(
    model: Model,
    images,
    features: Features,
    masks: Sequence[Arrays],
    *,
    batch: int = BATCH,
    progress: Callable[[int], object] = lambda done: None,
) -> np.ndarray:
    """`correlation` for K masks of each feature, which share the full network's maps: (F, K) float64."""
    if batch < 1:
        raise InputError(f"batch is {batch}; expected at least 1")
    network = model.network(image_shape(images))
    features = features.resolve(network.layers)
    model.check_weights([features.layer])
    for mask in masks:
        _check_masks(network, mask, len(features))
    number = count(images)
    places = features.places(number, batch)
    moments = np.empty((len(features), len(masks)), object)
    directions = features.matrix(network.layers[features.layer].outputs)
    size = min(CHUNK, len(features))
    plan = Plan(network, features.layer, features.place)
    by_terms = [masked.suited(network.layers, features.layer, mask) for mask in masks]
    near = tuple(dict.fromkeys(name for names in by_terms for name in names[: masked.NEAR]))
    with jax.default_matmul_precision("highest"):
        for start, part in zip(range(0, len(features), size), in_chunks(features, size), strict=True):
            d = jnp.asarray(part.matrix(directions.shape[1]))
            done = 0
            for block, real in batches(images, batch):
                block, given = jnp.asarray(block), jnp.asarray(places[done : done + batch])
                full, where, outputs = _full_maps(plan, near, model.variables, d, given, block, jnp.int32(real))
                for f, k in np.ndindex(min(size, len(features) - start), len(masks)):
                    mask = {name: m[start + f] for name, m in masks[k].items()}
                    terms = masked.all_terms(network.layers, by_terms[k], mask, outputs)
                    rest = {name: m for name, m in mask.items() if name not in terms}
                    found = _moments(plan, model.variables, rest, terms, d, full, where, jnp.int32(f), block)
                    moments[start + f, k] = _merged(moments[start + f, k], found)
                done += real
                progress(real * min(size, len(features) - start))
    return _pearson(moments, features.labels)


class Plan(NamedTuple):
    """What a compiled evaluation depends on besides its arguments."""

    network: Network
    target: str
    place: Place


@functools.partial(jax.jit, static_argnames=("plan", "near"))
def _full_maps(
    plan: Plan, near: tuple[str, ...], variables, directions: Array, places: Array, images: Array, real: Array
) -> tuple[Array, Array, Masks]:
    """The features in the full network (F, N, H, W), and where they count: 1 or 0, of the same shape; the outputs of
    the layers `near`."""
    network = plan.network
    inputs = network.run(variables, images)
    maps = activations(network.layers[plan.target], variables, inputs[plan.target], directions)
    where = place_weights(plan.place, maps, places) * (jnp.arange(len(images)) < real)[:, None, None]
    outputs = {name: masked.outputs(network.layers[name], variables, inputs[name]) for name in near}
    return maps, jnp.broadcast_to(where, maps.shape), outputs


@functools.partial(jax.jit, static_argnames="plan")
def _moments(
    plan: Plan, variables, masks, terms, directions: Array, full: Array, where: Array, f: Array, images: Array
):
    """Count, means, centred second moments and extremes of feature f in its circuit (x) and in the full network (y)."""
    variables = with_masks(plan.network, variables, masks)
    inputs = plan.network.run(variables, images, terms=terms)[plan.target]
    x = activations(plan.network.layers[plan.target], variables, inputs, directions[f][None])[0]
    y, counts = full[f], where[f]
    n = counts.sum()
    mean_x, mean_y = (x * counts).sum() / n, (y * counts).sum() / n
    dx, dy = (x - mean_x) * counts, (y - mean_y) * counts
    here = counts > 0
    extremes = [jnp.where(here, sign * a, jnp.inf).min() * sign for a in (x, y) for sign in (1, -1)]
    return jnp.stack([n, mean_x, mean_y, (dx * dx).sum(), (dy * dy).sum(), (dx * dy).sum(), *extremes])


def _merged(old: np.ndarray | None, new: Array) -> np.ndarray:
    """The moments of two sets of values together, in float64 (Chan, Golub, LeVeque 1979)."""
    b = np.asarray(new, np.float64)
    if old is None:
        return b
    n = old[0] + b[0]
    dx, dy = b[1] - old[1], b[2] - old[2]
    between = np.array([dx * dx, dy * dy, dx * dy]) * old[0] * b[0] / n
    low, high = np.minimum(old[6:], b[6:]), np.maximum(old[6:], b[6:])
    return np.array([n, old[1] + dx * b[0] / n, old[2] + dy * b[0] / n, *(old[3:6] + b[3:6] + between),
                     low[0], high[1], low[2], high[3]])  # fmt: skip


def _pearson(moments: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    r = np.full(moments.shape, np.nan)
    for f, k in np.ndindex(moments.shape):
        *_, xx, yy, xy, low_x, high_x, low_y, high_y = moments[f, k]
        if low_x < high_x and low_y < high_y:
            r[f, k] = np.clip(xy / np.sqrt(xx * yy), -1, 1)  # rounding may lead beyond
        else:
            what = "circuit" if low_y < high_y else "full network"
            warnings.warn(f"{labels[f]} is constant in the {what}, so that r is not defined", stacklevel=4)
    return r


def _check_masks(network: Network, masks: Arrays, features: int) -> None:
    for name, mask in masks.items():
        layer = find_layer(network.layers, name)
        if layer.trouble:
            raise InputError(layer.trouble)
        expected = (features, *shape_at(layer, granularity_of(mask, name)))
        if tuple(mask.shape) != expected:
            raise InputError(f"the mask of {name!r} has shape {tuple(mask.shape)}; expected {expected}")
