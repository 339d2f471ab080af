"""Weights, kernels, filters: the three granularities of scores and masks, and the rules that make one of another.

An array's number of axes tells its granularity. For F features and a layer with K weights in a kernel, I inputs and O
outputs: weights (F, K, I, O), kernels (F, I, O), filters (F, O); a filter is all that makes one output channel.
Relevance is always that of kernels, (F, I, O): a weight is relevant if its kernel is, a filter if one of its kernels
is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcircuits.errors import InputError
from jaxcircuits.layers import Arrays, Layer, Masks
from jaxcircuits.scores import Scores

AXES = {"weight": 4, "kernel": 3, "filter": 2}
GRANULARITIES = tuple(AXES)


def check_granularity(granularity: str) -> None:
    if granularity not in AXES:
        raise InputError(f"unknown granularity {granularity!r}; expected one of {', '.join(AXES)}")


def granularity_of(array: Array | np.ndarray, name: str) -> str:
    """What the entries of a layer's scores or masks belong to, by its number of axes."""
    for granularity, axes in AXES.items():
        if array.ndim == axes:
            return granularity
    raise InputError(f"the array of {name!r} has shape {array.shape}; expected (F, K, I, O), (F, I, O) or (F, O)")


def shape_at(layer: Layer, granularity: str) -> tuple[int, ...]:
    """The shape of one feature's scores or mask of a layer."""
    return (math.prod(layer.window), layer.inputs, layer.outputs)[-(AXES[granularity] - 1) :]


def relevant_at(relevant: Array, axes: int) -> Array:
    """Relevant kernels (F, I, O) so that they broadcast to scores with so many axes."""
    return relevant.any(1) if axes == 2 else relevant[:, None] if axes == 4 else relevant


def count_relevant(relevant: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """How many weights, kernels or filters are relevant to each feature: (F,).

    Args:
        relevant: {layer: (F, I, O) bool}.
        shapes: {layer: the shape of one feature's scores}.
    """
    total = np.zeros((), int)
    for name, shape in shapes.items():
        there = relevant_at(jnp.asarray(relevant[name]), len(shape) + 1)
        each = math.prod(shape) // math.prod(there.shape[1:])
        total = total + each * np.asarray(there.sum(tuple(range(1, there.ndim)), dtype=jnp.int32))
    return total


def coarser(scores: Array, relevant: Array, granularity: str) -> Array:
    """Scores of a layer at this granularity or, where they are that coarse already, as they are; rules: `scores_at`."""
    if scores.ndim == 4 and granularity != "weight":
        scores = scores.mean(1)
    if scores.ndim == 3 and granularity == "filter":
        scores = jnp.where(relevant, scores, 0).sum(1) / jnp.maximum(relevant.sum(1), 1)
    return scores


def fitted(scores: Array, relevant: Array, granularity: str) -> Array:
    """Scores of a layer as they stand in `Scores`: at this granularity, and 0 where not relevant."""
    scores = coarser(scores, relevant, granularity)
    return jnp.where(relevant_at(relevant, scores.ndim), scores, 0)


def scores_at(scores: Scores, granularity: str) -> Scores:
    """The same scores at a coarser granularity.

    A kernel's score is the mean of its weights' scores, a filter's the mean of its relevant kernels' scores (the others
    cannot change the feature and do not count), 0 where there is none. SNIP and magnitude of kernels and filters are
    just that. ActGrad of filters is not: it looks at the whole output, in which kernels' contributions may cancel.

    Args:
        scores: of weights, kernels or filters.
        granularity: "weight", "kernel" or "filter".

    Raises:
        InputError: an unknown granularity, or one finer than the scores.
    """
    check_granularity(granularity)
    if AXES[granularity] > AXES[scores.record.granularity]:
        raise InputError(f"scores of {scores.record.granularity}s cannot be told apart by {granularity}")
    values = {name: coarser(scores.values[name], scores.relevant[name], granularity) for name in scores.layers}
    record = scores.record._replace(granularity=granularity)
    if granularity != scores.record.granularity:
        record = record._replace(kernels=None, schedule=None)  # numbers of what there was before
    return replace(scores, values=values, record=record)


def masks_at(masks: Arrays, granularity: str, *, relevant: Arrays | None = None) -> Masks:
    """The same masks at another granularity.

    A kernel is kept if any of its weights is, a filter if any of its kernels is. The other way, the kept kernels are
    the *relevant* ones of the kept filters, whether or not what they read still has a filter of its own: those that
    have lost all they read are not among `effective_kernels`.

    Args:
        masks: {layer: (F, K, I, O), (F, I, O) or (F, O) bool}.
        granularity: "kernel" or "filter", or the one that they have.
        relevant: {layer: (F, I, O) bool}, as `relevant_kernels` or `Scores` have it; to get from filters to kernels.

    Raises:
        InputError: an unknown granularity, weights asked of kernels or filters, or no relevant kernels given.
    """
    check_granularity(granularity)
    found = {}
    for name, mask in masks.items():
        mask = jnp.asarray(mask, bool)
        old = granularity_of(mask, name)
        if granularity == "weight" != old:
            raise InputError(f"masks of {old}s need not become masks of weights; they are taken as they are")
        if old == "filter" and granularity == "kernel":
            if relevant is None or name not in relevant:
                raise InputError(f"masks of filters become masks of relevant kernels; give those of {name!r}")
            found[name] = jnp.asarray(relevant[name], bool) & mask[:, None]
        else:
            found[name] = mask.any(tuple(range(1, 1 + mask.ndim - AXES[granularity])))
    return found
