"""Training masks: steps on random views of the images, the features of a chunk side by side."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcircuits.criteria import learned
from jaxcircuits.data import batches
from jaxcircuits.data.views import Views
from jaxcircuits.errors import InputError
from jaxcircuits.features import Place, place_weights
from jaxcircuits.gradients import activations
from jaxcircuits.layers import Masks, Variables
from jaxcircuits.masks import count, top
from jaxcircuits.plans import Plan
from jaxcircuits.taps import Network
from jaxcircuits.variables import with_masks

# Views of one step, and their side as a share of the image's: many small ones teach more than a few large ones.
VIEWS, SIDE = 16, 0.585
# Parts along each side of a layer's input, in each of which its channels are made stronger or weaker anew.
PARTS = 3
# Images that views are made of, read in blocks; and features that are trained side by side.
POOL, BLOCK, TOGETHER = 512, 16, 8
# Settling begins at this step's views: the same ones, however long the way was.
SETTLING = 1 << 20
# What is looked at in every `OFTEN`th step of settling's second half, and never trained on: the views of `HELD` steps
# from here. With two of them, some circuits of the first half are the best by chance.
HELD_OUT, HELD, OFTEN = 1 << 21, 8, 8


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


class Seen(NamedTuple):
    """Views, and what the full network makes of them.

    Attributes:
        images: (N, H, W, C).
        gains: {layer: (N, h, w, C)}, what multiplies the channels that enter a layer, in circuits too; none for views
            that judge.
        full: the features in the full network (F, N, H, W), or one of them (N, H, W).
    """

    images: Array
    gains: Masks
    full: Array


class Given(NamedTuple):
    """What a circuit of one feature is trained and judged on.

    Attributes:
        variables: the full network's.
        direction: (1, O).
        relevant: kernels {layer: (I, O)}.
        seen: views, with this feature's maps (N, H, W).
        kept: how many kernels the circuit has.
    """

    variables: Variables
    direction: Array
    relevant: Masks
    seen: Seen
    kept: Array


def learn(
    plan: Plan,
    smaller: Callable[[tuple[int, int, int]], Network],
    variables: Variables,
    images,
    directions: Array,
    values: Masks,
    relevant: Masks,
    kept: np.ndarray,
    *,
    steps: int,
    seed: int,
    progress: Callable[[int], object],
) -> list[Masks]:
    """Learned scores {layer: (F, I, O)} for each amount to keep.

    Args:
        plan: of SNIP's scores.
        smaller: the network for images of another shape, or an InputError.
        variables: the full network's.
        images: to learn from; the first `POOL` of them.
        directions: of F features (F, O).
        values, relevant: SNIP's scores and the relevant kernels, {layer: (F, I, O)}.
        kept: how many kernels the circuits have (K, F).
        steps, seed: of the training.
        progress: called with the number of features times views done since the last call.
    """
    pool = np.concatenate([block[:real] for block, real in itertools.islice(batches(images, BLOCK), POOL // BLOCK)])
    network = plan.network
    if plan.place is None:  # else the position is one of the full image
        height, width, channels = network.image_shape
        with contextlib.suppress(InputError):
            found = smaller((round(SIDE * height), round(SIDE * width), channels))
            if not any(found.layers[name].trouble for name in (*plan.layers, plan.target)):  # no map is empty
                network = found
    # the positions of some images say nothing of views of them
    task = Task(network, plan.target, plan.layers, None if plan.place == "given" else plan.place)
    views = Views(pool, network.image_shape[:2], seed)
    parts = []
    with jax.default_matmul_precision(plan.precision):
        for some in (slice(start, start + TOGETHER) for start in range(0, len(directions), TOGETHER)):
            first, there = ({name: a[some] for name, a in arrays.items()} for arrays in (values, relevant))
            parts.append(_train(task, variables, views, directions[some], first, there, kept[:, some], steps, progress))
    return [{n: jnp.concatenate([part[k][n] for part in parts]) for n in plan.layers} for k in range(len(kept))]


def length(keeps: Sequence[float], steps: int) -> int:
    """How many views `learn` takes of each feature for these fractions to keep."""
    return VIEWS * (learned.steps_to(min(keeps), steps) + steps * len(keeps))


def _train(
    task: Task,
    variables: Variables,
    views: Views,
    directions: Array,
    values: Masks,
    relevant: Masks,
    kept: np.ndarray,
    steps: int,
    progress: Callable[[int], object],
) -> list[Masks]:
    """`learn` for as many features as are trained side by side: they share views, and the full network's maps."""
    number = len(directions)
    amounts: list[list[int]] = kept.T.tolist()
    of = [{name: array[f] for name, array in relevant.items()} for f in range(number)]
    states = [learned.first({name: array[f] for name, array in values.items()}, of[f]) for f in range(number)]
    possible: list[int] = count(relevant).tolist()
    ways = [[learned.on_the_way(possible[f], k, steps) for k in amounts[f]] for f in range(number)]
    longest = [max(ways[f], key=len) for f in range(number)]
    held_out = [_looked_at(task, variables, views, directions, HELD_OUT + step) for step in range(HELD)]
    settling = {}

    def given(f: int, count: int, seen: Seen) -> Given:
        # no F in it: how many others are trained beside a feature must not change even its rounding
        return Given(variables, directions[f][None], of[f], seen._replace(full=seen.full[f]), jnp.int32(count))

    def judged(state: learned.State, f: int, count: int) -> float:
        return sum(float(_judged(task, state, given(f, count, seen))) for seen in held_out)

    def reached(f: int, t: int) -> None:
        settling.update({(f, k): states[f] for k in range(len(kept)) if len(ways[f][k]) == t})

    def step(state: learned.State, f: int, count: int, rate: float) -> learned.State:
        progress(VIEWS)
        return _step(task, state, given(f, count, seen), jnp.float32(rate))

    best = {(f, k): (judged(states[f], f, amounts[f][k]), states[f]) for f in range(number) for k in range(len(kept))}
    for f in range(number):
        reached(f, 0)
    for t in range(max(len(way) for way in longest)):
        seen = _looked_at(task, variables, views, directions, t)
        for f, way in enumerate(longest):
            if t < len(way):
                states[f] = step(states[f], f, int(way[t]), 1.0)
                reached(f, t + 1)
    for t in range(steps):
        seen = _looked_at(task, variables, views, directions, SETTLING + t)
        for (f, k), state in settling.items():
            settling[f, k] = step(state, f, amounts[f][k], 1 - t / steps)
            if t >= steps // 2 and (steps - 1 - t) % OFTEN == 0:
                now = judged(settling[f, k], f, amounts[f][k]), settling[f, k]
                best[f, k] = min(best[f, k], now, key=operator.itemgetter(0))
    parts = [[learned.scores(best[f, k][1], of[f]) for f in range(number)] for k in range(len(kept))]
    return [{name: jnp.stack([part[name] for part in row]) for name in task.layers} for row in parts]


def _looked_at(task: Task, variables: Variables, views: Views, directions: Array, step: int) -> Seen:
    images = jnp.asarray(views.block(step, VIEWS))
    gains = {} if step >= HELD_OUT else _gains(task, np.random.default_rng([views.seed, step]))
    return Seen(images, gains, _full(task, variables, directions, images, gains))


def _gains(task: Task, rng: np.random.Generator) -> Masks:
    """Of the channels that enter each layer, but for the images' own."""
    shapes = {name: task.network.layers[name].input_shape for name in task.layers}
    shapes.pop(next(iter(task.network.layers)), None)
    parts = {name: (*(min(PARTS, size) for size in shape[:-1]), shape[-1]) for name, shape in shapes.items()}
    return {n: jnp.exp(learned.GAIN * rng.standard_normal((VIEWS, *part), np.float32)) for n, part in parts.items()}


@functools.partial(jax.jit, static_argnames="task")
def _full(task: Task, variables: Variables, directions: Array, images: Array, gains: Masks) -> Array:
    """The features in the full network (F, N, H, W)."""
    x = task.network.run(variables, images, gains=gains)[task.target]
    layer = task.network.layers[task.target]
    return jax.lax.map(lambda direction: activations(layer, variables, x, direction[None])[0], directions)


@functools.partial(jax.jit, static_argnames="task")
def _step(task: Task, state: learned.State, given: Given, rate: Array) -> learned.State:
    """One step of one feature, against the gradient of a soft mask about as large as its top `kept` kernels."""
    mask, slope = learned.soft(state.logits, _kept(task, state, given), given.relevant, rate)
    gradient = jax.grad(_loss)(mask, task, given.variables, given.direction, given.seen)
    return learned.step(state, {name: g * slope[name] for name, g in gradient.items()}, given.relevant, rate)


@functools.partial(jax.jit, static_argnames="task")
def _judged(task: Task, state: learned.State, given: Given) -> Array:
    """The loss of one feature's circuit of its top `kept` kernels."""
    masks = {name: mask.astype(jnp.float32) for name, mask in _kept(task, state, given).items()}
    return _loss(masks, task, given.variables, given.direction, given.seen)


def _kept(task: Task, state: learned.State, given: Given) -> Masks:
    """The top `kept` kernels {layer: (I, O)}."""
    arrays = ({name: a[name][None] for name in task.layers} for a in (state.logits, given.relevant))
    return {name: mask[0] for name, mask in top(task.layers, *arrays, given.kept[None]).items()}


def _loss(masks: Masks, task: Task, variables: Variables, direction: Array, seen: Seen) -> Array:
    """`learned.loss` of one feature (1, O) in its circuit; the full network has the maps (N, H, W)."""
    circuit = with_masks(task.network, variables, masks)
    x = task.network.run(circuit, seen.images, gains=seen.gains)[task.target]
    maps = activations(task.network.layers[task.target], circuit, x, direction)
    where = place_weights(task.place, seen.full[None], jnp.zeros((len(seen.images), 2), jnp.int32))
    return learned.loss(maps[0], seen.full, jnp.broadcast_to(where, maps.shape)[0])
