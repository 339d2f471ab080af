"""FORCE's rounds: score circuits instead of the full network, every circuit in one pass over the images."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcircuits.data import batches
from jaxcircuits.features import Features
from jaxcircuits.gradients import activations
from jaxcircuits.layers import Masks, Variables
from jaxcircuits.masks import top
from jaxcircuits.passes import Plan, by_output, program
from jaxcircuits.taps import Network, with_masks


def rounds(
    plan: Plan,
    variables: Variables,
    images,
    number: int,
    features: Features,
    values: Masks,
    relevant: Masks,
    counts: np.ndarray,
    batch: int,
    progress: Callable[[int], object],
) -> Masks:
    """The scores {layer: (F, I, O)} after the last of T rounds.

    Args:
        plan: of the scores; its criterion is SNIP, and it is not sparse.
        variables: the full network's.
        images, number: of them.
        features: F of them, resolved. One may stand there several times, with different counts.
        values, relevant: the first scores and the relevant kernels, {layer: (F, I, O)}.
        counts: how many kernels each round keeps (T, F).
        batch: images a device call.
        progress: called with how many features times images were scored since the last call.
    """
    weights = by_output(plan.network, plan.layers, variables)
    # what is looked at stays where it is in the full network
    places = [features.places(number)] * len(features)
    if plan.place == "argmax":
        places = list(_strongest(plan, variables, images, features, batch))
        plan = plan._replace(place="given")
    places = [np.concatenate([p, np.zeros((batch, 2), p.dtype)]).astype(np.int32) for p in places]
    directions = jnp.asarray(features.matrix(plan.network.layers[plan.target].outputs))
    compiled = program(plan, variables, 1, batch)
    for kept in counts:
        masks = top(plan.layers, values, relevant, jnp.asarray(kept))
        sums, done = [plan.nothing(1) for _ in range(len(features))], 0
        for block, real in batches(images, batch):
            for f in range(len(features)):
                circuit = _circuit(plan.network, variables, masks, jnp.int32(f))
                given = jnp.asarray(places[f][done : done + batch])
                sums[f] = compiled.step(
                    sums[f], circuit, weights, directions[f : f + 1], given, jnp.asarray(block), jnp.int32(real)
                )
            done += real
            progress(real * len(features))
        found = []
        for f, total in enumerate(sums):
            possible = {name: relevant[name][f : f + 1] for name in plan.layers}
            found.append(compiled.finish(total, weights, directions[f : f + 1], possible, jnp.int32(number)))
        values = {name: jnp.concatenate([scores[name] for scores in found]) for name in plan.layers}
    return values


@functools.partial(jax.jit, static_argnames="network")
def _circuit(network: Network, variables: Variables, masks: Masks, f: Array) -> Variables:
    return with_masks(network, variables, {name: mask[f] for name, mask in masks.items()})


def _strongest(plan: Plan, variables: Variables, images, features: Features, batch: int) -> np.ndarray:
    """Each feature's strongest position on each image in the full network: (F, N, 2)."""
    layer = plan.network.layers[plan.target]
    directions = jnp.asarray(features.matrix(layer.outputs))

    @jax.jit
    def find(variables: Variables, block: Array) -> Array:
        maps = activations(layer, variables, plan.network.run(variables, block)[plan.target], directions)
        return maps.reshape(*maps.shape[:2], -1).argmax(-1)

    found = []
    with jax.default_matmul_precision(plan.precision):
        for block, real in batches(images, batch):
            found.append(np.asarray(find(variables, jnp.asarray(block)))[:, :real])
    return np.stack(np.divmod(np.concatenate(found, 1), layer.positions[1]), -1)
