r"""Learned masks: which kernels to keep is found by training, for the highest correlation with the full feature.

Every relevant kernel has a logit s, at first the logarithm of its SNIP score, less the mean and divided by the
standard deviation over all of them. The circuit is the top k. While it is trained its mask is soft:

    m    = sigmoid((s - c) / T)                       c halfway between the k-th logit and the next one
    loss = 1 - (r + sum_n y_n r_n / sum_n y_n) / 2    over the views n of a step
    g    = dloss/dm q (1 - q),  q = sigmoid((s - c) / .5)
    s   <- s - speed a / (b^1/2 + 1)                  a, b: Adam's running means of g' = g / rms(g) and of g'^2

T, at most .5, is as large as lets the kernels left out add up to k / 5 in m. Of a hard mask a gradient says nothing of
kernels whose channel is not read, so that no path of two of them can come back; in a soft one each still passes
something on. If they pass on much, though, r is high without the k kernels: it does not see that all is a little
weaker. The factor q (1 - q), wider than m's own, leaves in peace those that are far from being kept or dropped.

Here r is the correlation of circuit and full network over all views and positions, r_n that within view n, and y_n the
standard deviation of the full feature there. Where each view has one position, loss = 1 - r. A view is a random part
of one of the images, the first 512 of them, in random colours, often with pieces of another one laid over it: without
that the images are learned, and not the feature. Further in, each channel c that enters a layer is made stronger or
weaker by exp(.3 z_ncp), z normal, another for each ninth p of its map, in both networks alike, so that a circuit has to
do what the network does also where channels go together otherwise than in these images: multiplicative noise as in
Srivastava et al., but of the question and not of the answer. The 1 beside b^1/2 serves the same end: Adam alone moves
all logits equally far, also of the many kernels that hardly matter and whose gradients are chance.

On the way from dense to sparse k_t = .4 K0 exp(-2 t / `steps`); where that reaches the wanted k, `steps` more with k
itself follow, in which speed and leak fall to 0. In the second half of these every eighth circuit, with a hard mask,
is judged on views that are not trained on, as SNIP's own is, and the one of the lowest loss is the result, as
exp(s / 4): of circuits of a few dozen kernels any step may cut the only path. What is learned for one amount does not
depend on which others are asked for.

References:
    Savarese, Silva, Maire, "Winning the lottery with continuous sparsification" (arXiv 1912.04427), for soft masks;
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", section 10 (JMLR 15, 2014).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxcircuits.layers import Masks

# Steps once the circuit has its size, and how many of them it takes on the way to shrink to 1/e.
STEPS, WAY = 400, 0.5
# The way to a small circuit begins here, as a fraction of the relevant kernels: to here SNIP's order will do.
START = 0.4
# How far a logit moves in a step, at most, and how far from c they move at all; in standard deviations of the first.
SPEED, WIDTH = 0.2, 0.5
# What all kernels that are left out may add up to in the soft mask, as a share of those that are kept.
LEAK = 0.2
# Standard deviation of the logarithm of what multiplies a channel in a step.
GAIN = 0.3
OPTIMIZER = optax.scale_by_adam(b1=0.9, b2=0.99, eps=1.0)


class State(NamedTuple):
    """Of one feature in training: logits {layer: (I, O)}, and what the optimizer remembers."""

    logits: Masks
    memory: optax.OptState


def loss(x: Array, y: Array, where: Array) -> Array:
    """Of a circuit's maps x and the full network's y, where `where` is 1: all (N, H, W). From 0 to 2."""
    scale = jnp.sqrt(_moments(y, y, where, (0, 1, 2))[0] / where.sum() + 1e-30)
    x, y = x / scale, y / scale  # what is added below is small then
    within = _moments(x, y, where, (1, 2))
    everywhere = _moments(x, y, where, (0, 1, 2))
    r = [xy / jnp.sqrt(xx * yy + 1e-12) for xx, yy, xy in (within, everywhere)]
    weights = jnp.sqrt(within[1] + 1e-12)
    mean = (r[0] * weights).sum() / weights.sum()
    return 1 - jnp.where((where.sum((1, 2)) > 1).all(), (r[1].sum() + mean) / 2, r[1].sum())


def _moments(x: Array, y: Array, where: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Sums of squares and products about the means over these axes."""
    number = where.sum(axes, keepdims=True)
    dx, dy = ((a - (a * where).sum(axes, keepdims=True) / number) * where for a in (x, y))
    return (dx * dx).sum(axes), (dy * dy).sum(axes), (dx * dy).sum(axes)


def first(scores: Masks, relevant: Masks) -> State:
    """The state before the first step, from SNIP's scores {layer: (I, O)}."""
    possible = sum(jnp.sum(mask) for mask in relevant.values())
    largest = jnp.stack([jnp.abs(score).max() for score in scores.values()]).max()
    smallest = jnp.where(largest > 0, 1e-6 * largest, 1)  # scores that are all 0 are all alike
    logs = {name: jnp.log(jnp.abs(score) + smallest) for name, score in scores.items()}
    mean = sum(jnp.sum(logs[name] * relevant[name]) for name in logs) / possible
    square = sum(jnp.sum((logs[name] - mean) ** 2 * relevant[name]) for name in logs) / possible
    logits = {name: jnp.where(relevant[name], (log - mean) / jnp.sqrt(square + 1e-12), 0) for name, log in logs.items()}
    # in steps of 1/1024: training makes much of little, and what is beside a feature changes its scores' last digits
    logits = {name: jnp.round(1024 * s) / 1024 for name, s in logits.items()}
    return State(logits, OPTIMIZER.init(logits))


def soft(logits: Masks, kept: Masks, relevant: Masks, rate: Array | float = 1.0) -> tuple[Masks, Masks]:
    """m and dm/ds of the circuit that keeps these kernels: both {layer: (I, O)}."""
    out = {name: relevant[name] & ~kept[name] for name in logits}
    lowest = jnp.stack([jnp.where(kept[name], s, jnp.inf).min() for name, s in logits.items()]).min()
    highest = jnp.stack([jnp.where(out[name], s, -jnp.inf).max() for name, s in logits.items()]).max()
    middle = jnp.where(jnp.isfinite(highest), (lowest + highest) / 2, -jnp.inf)  # all of a circuit of all is kept

    def at(temperature: Array | float) -> Masks:
        masks = {name: jax.nn.sigmoid((s - middle) / temperature) for name, s in logits.items()}
        return {name: jnp.where(relevant[name], mask, 0) for name, mask in masks.items()}

    def halved(_: int, between: tuple[Array, Array]) -> tuple[Array, Array]:
        half = sum(between) / 2
        masks = at(jnp.exp(half))
        much = sum(jnp.sum(masks[name] * out[name]) for name in out) > most
        return jnp.where(much, between[0], half), jnp.where(much, half, between[1])

    most = LEAK * rate * sum(jnp.sum(mask) for mask in kept.values())
    low, _ = jax.lax.fori_loop(0, 10, halved, (jnp.log(1e-3), jnp.log(WIDTH)))
    return at(jnp.exp(low)), {name: mask * (1 - mask) for name, mask in at(WIDTH).items()}


def step(state: State, gradient: Masks, relevant: Masks, rate: Array | float = 1.0) -> State:
    """The state after one step against dloss/ds, at this rate: 1, and falling to 0 in the end."""
    there = {name: g * relevant[name] for name, g in gradient.items()}
    square, number = (
        sum(jnp.sum(a) for a in arrays) for arrays in ((g * g for g in there.values()), relevant.values())
    )
    scale = jax.lax.rsqrt(square / number + 1e-30)
    update, memory = OPTIMIZER.update({name: scale * g for name, g in there.items()}, state.memory)
    return State(jax.tree.map(lambda s, u: s - SPEED * rate * u, state.logits, update), memory)


def scores(state: State, relevant: Masks) -> Masks:
    """The logits as scores over 0 in the same order, {layer: (I, O)}."""
    highest = jnp.stack([s.max() for s in state.logits.values()]).max()
    return {name: jnp.where(relevant[name], jnp.exp((s - highest) / 4), 0) for name, s in state.logits.items()}


def on_the_way(relevant: int, kept: int, steps: int = STEPS) -> np.ndarray:
    """How many kernels the steps before the settling keep, none fewer than k: (T,).

    For a larger k it is the beginning of that for a smaller one.
    """
    t = np.arange(1, steps_to(kept / relevant, steps) + 1)
    return np.ceil(START * relevant * np.exp(-t / (WAY * steps))).astype(np.int32)


def steps_to(share: float, steps: int = STEPS) -> int:
    """How many steps it takes to shrink to this share of the relevant kernels."""
    return max(0, int(WAY * steps * np.log(START / share)))
