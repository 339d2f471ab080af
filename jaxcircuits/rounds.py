"""FORCE's rounds: score circuits instead of the full network, every circuit in one pass over the images."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcircuits.chunks import Sizes, cores
from jaxcircuits.data import batches
from jaxcircuits.features import Features, strongest
from jaxcircuits.gradients import activations
from jaxcircuits.layers import Arrays, Masks, Variables
from jaxcircuits.masks import top
from jaxcircuits.passes import program
from jaxcircuits.plans import Plan, Sums, Weights
from jaxcircuits.streams import side_by_side
from jaxcircuits.taps import Network
from jaxcircuits.variables import kernels, masked_kernels, with_kernels

# With more layers than this before the target, to compile what leaves out dead channels takes longer than it saves.
SHORT = 16


def rounds(
    plan: Plan,
    variables: Variables,
    weights: Weights,
    images,
    number: int,
    directions: Array,
    places: np.ndarray,
    values: Masks,
    relevant: Masks,
    counts: np.ndarray,
    batch: int,
    progress: Callable[[int], object],
) -> Masks:
    """The scores {layer: (F, I, O)} after the last of T rounds.

    Args:
        plan: of the scores in circuits; its criterion is SNIP, and no layer is sparse.
        variables, weights: the full network's, the latter as `arranged` makes them.
        images, number: of them.
        directions, places: F features (F, O), and where each is looked at (F, N, 2), as `looked_at` tells.
        values, relevant: the first scores and the relevant kernels, {layer: (F, I, O)}.
        counts: how many kernels each round keeps (T, F).
        batch: images a device call.
        progress: called with how many features times images were scored since the last call.
    """
    spare = np.pad(places, ((0, 0), (0, batch), (0, 0)))  # for a last block that is filled up
    compiled, full = program(plan, variables, Sizes(1, batch, 1)), kernels(plan.network, variables, plan.layers)

    def step(masks: Masks, done: int, block: Array, real: Array, f: int, total: Sums) -> Sums:
        """Of feature f in its circuit."""
        circuit = with_kernels(plan.network, variables, _circuit(full, masks, jnp.int32(f)))
        given = jnp.asarray(spare[f, done : done + batch])
        return compiled.step(total, circuit, weights, directions[f : f + 1], given, block, real)

    features = range(len(places))
    with side_by_side(cores()) as mapped:
        for kept in counts:
            masks = top(plan.layers, values, relevant, jnp.asarray(kept))
            sums, done = [plan.nothing(1) for _ in features], 0
            for block, real in batches(images, batch):
                one = functools.partial(step, masks, done, jnp.asarray(block), jnp.int32(real))
                sums = mapped(one, features, sums)
                done += real
                progress(real * len(places))
            found = []
            for f, total in enumerate(sums):
                possible = {name: relevant[name][f : f + 1] for name in plan.layers}
                found.append(compiled.finish((total,), weights, directions[f : f + 1], possible, jnp.int32(number)))
            values = {name: jnp.concatenate([scores[name] for scores in found]) for name in plan.layers}
    return values


@jax.jit
def _circuit(full: Arrays, masks: Masks, f: Array) -> Arrays:
    """Feature f's kernels."""
    return masked_kernels(full, {name: mask[f] for name, mask in masks.items()})


def looked_at(
    plan: Plan, variables: Variables, images, number: int, features: Features, batch: int
) -> tuple[Plan, np.ndarray]:
    """Where each feature is looked at in its circuits, the same as in the full network: the plan, and (F, N, 2)."""
    if plan.place != "argmax":
        return plan, np.broadcast_to(features.places(number), (len(features), number, 2))
    directions = jnp.asarray(features.matrix(plan.network.layers[plan.target].outputs))
    found = []
    with jax.default_matmul_precision(plan.precision):
        for block, real in batches(images, batch):
            found.append(np.asarray(_strongest(plan.network, plan.target, variables, directions, block))[:, :real])
    return plan._replace(place="given"), np.concatenate(found, 1).astype(np.int32)


@functools.partial(jax.jit, static_argnames=("network", "target"))
def _strongest(network: Network, target: str, variables: Variables, directions: Array, images: Array) -> Array:
    """(F, N, 2)"""
    x = network.run(variables, images)[target]
    return jnp.stack(strongest(activations(network.layers[target], variables, x, directions)), -1)
