"""Training masks: steps on random views of the images, the features of a chunk side by side."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcircuits.criteria import learned
from jaxcircuits.data.views import Views
from jaxcircuits.features import Place, place_weights
from jaxcircuits.gradients import activations
from jaxcircuits.layers import Masks, Variables
from jaxcircuits.masks import top
from jaxcircuits.taps import Network, with_masks

# Views of one step.
VIEWS = 16


class Task(NamedTuple):
    """What a compiled step depends on besides its arguments.

    Attributes:
        network: at the size of the views.
        target: the features' layer.
        layers: those whose kernels are chosen.
        place: which positions count.
    """

    network: Network
    target: str
    layers: tuple[str, ...]
    place: Place


def train(
    task: Task,
    variables: Variables,
    views: Views,
    directions: Array,
    scores: Masks,
    relevant: Masks,
    kept: np.ndarray,
    progress: Callable[[int], object],
) -> list[Masks]:
    """Scores {layer: (F, I, O)} for each amount to keep.

    Args:
        task, variables: the full network.
        views: of the images to learn from.
        directions: F features (F, O).
        scores, relevant: SNIP's scores and the relevant kernels, {layer: (F, I, O)}.
        kept: how many kernels the circuits have (K, F).
        progress: called with the number of steps times features done since the last call.
    """
    number = len(directions)
    of = [{name: array[f] for name, array in relevant.items()} for f in range(number)]
    states = [learned.first({name: array[f] for name, array in scores.items()}, of[f]) for f in range(number)]
    possible = [int(sum(int(mask.sum()) for mask in masks.values())) for masks in of]
    ways = [learned.on_the_way(possible[f], int(kept[:, f].min())) for f in range(number)]
    reached = [[len(learned.on_the_way(possible[f], int(k))) for k in kept[:, f]] for f in range(number)]
    found = {(f, k): states[f] for f in range(number) for k in range(len(kept)) if reached[f][k] == 0}

    def step(state: learned.State, f: int, count: int, speed: float) -> learned.State:
        amount = jnp.int32(count), jnp.float32(speed)
        return _step(task, state, variables, directions, of[f], images, full, jnp.int32(f), *amount)

    for t in range(max(len(way) for way in ways)):
        images, full = _looked_at(task, variables, views, directions, t)
        for f, way in enumerate(ways):
            if t < len(way):
                states[f] = step(states[f], f, way[t], learned.SPEED)
                found |= {(f, k): states[f] for k in range(len(kept)) if reached[f][k] == t + 1}
                progress(1)
    for t in range(learned.SETTLING):
        images, full = _looked_at(task, variables, views, directions, -1 - t)
        speed = learned.SPEED * (1 - t / learned.SETTLING)
        for (f, k), state in found.items():
            found[f, k] = step(state, f, kept[k, f], speed)
            progress(1)
    parts = [[learned.scores(found[f, k], of[f]) for f in range(number)] for k in range(len(kept))]
    return [{name: jnp.stack([part[name] for part in row]) for name in task.layers} for row in parts]


def _looked_at(task: Task, variables: Variables, views: Views, directions: Array, step: int) -> tuple[Array, Array]:
    images = jnp.asarray(views.block(step % 2**32, VIEWS))
    return images, _full(task, variables, directions, images)


@functools.partial(jax.jit, static_argnames="task")
def _full(task: Task, variables: Variables, directions: Array, images: Array) -> Array:
    """The features in the full network (F, N, H, W)."""
    x = task.network.run(variables, images)[task.target]
    return activations(task.network.layers[task.target], variables, x, directions)


@functools.partial(jax.jit, static_argnames="task")
def _step(
    task: Task,
    state: learned.State,
    variables: Variables,
    directions: Array,
    relevant: Masks,
    images: Array,
    full: Array,
    f: Array,
    kept: Array,
    speed: Array,
) -> learned.State:
    """One step of one feature, against the gradient of the mask of its top `kept` kernels."""
    masks = top(task.layers, *({n: a[n][None] for n in task.layers} for a in (state.logits, relevant)), kept[None])
    masks = {name: mask[0].astype(jnp.float32) for name, mask in masks.items()}
    gradient = jax.grad(_loss)(masks, task, variables, directions[f][None], images, full[f])
    return learned.step(state, {name: g * relevant[name] for name, g in gradient.items()}, speed)


def _loss(masks: Masks, task: Task, variables: Variables, direction: Array, images: Array, full: Array) -> Array:
    """1 - r of one feature (1, O) in its circuit and in the full network (N, H, W)."""
    circuit = with_masks(task.network, variables, masks)
    x = task.network.run(circuit, images)[task.target]
    maps = activations(task.network.layers[task.target], circuit, x, direction)
    where = place_weights(task.place, full[None], jnp.zeros((len(images), 2), jnp.int32))
    return 1 - _correlation(maps[0], full, jnp.broadcast_to(where, maps.shape)[0])


def _correlation(x: Array, y: Array, where: Array) -> Array:
    """Pearson's r of two maps where `where` is 1; 0 where one of them is constant."""
    dx, dy = ((a - (a * where).sum() / where.sum()) * where for a in (x, y))
    return (dx * dy).sum() / jnp.sqrt((dx * dx).sum() * (dy * dy).sum() + 1e-12)
