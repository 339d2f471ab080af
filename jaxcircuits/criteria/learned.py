r"""Learned masks: which kernels to keep is found by training, for the highest correlation with the full feature.

Every relevant kernel has a logit s, at first the logarithm of its SNIP score, less the mean and divided by the
standard deviation over all of them. The circuit is the top k; its mask m is used as it is forwards, and as if it were s
backwards (a straight-through estimator), so that the kernels left out are trained as well:

    loss = 1 - (r + sum_n y_n r_n / sum_n y_n) / 2    over the views n of a step
    g    = dloss/dm / rms(dloss/dm)                   the root mean square over all relevant kernels
    s   <- s - speed a / (b^1/2 + 1)                  a, b: Adam's running means of g and g^2

Here r is the correlation of circuit and full network over all views and positions, r_n that within view n, and y_n the
standard deviation of the full feature there. Where each view has one position, loss = 1 - r. A view is a random part
of one of the images, the first 512 of them, in random colours, often with pieces of another one laid over it: without
that the images are learned, and not the feature. Further in, each channel c that enters a layer is made stronger or
weaker by exp(.3 z_nc), z normal, in both networks alike, so that a circuit has to do what the network does also where
channels go together otherwise than in these images: multiplicative noise as in Srivastava et al., but of the question
and not of the answer. The 1 beside b^1/2 serves the same end: Adam alone moves all logits equally far, also of the many
kernels that hardly matter and whose gradients are chance.

On the way from dense to sparse k_t = .4 K0 exp(-t / `steps`); where that reaches the wanted k, another
`steps` with k itself follow, at a falling rate. Now and then the circuit is judged on views that are not trained on, as
SNIP's own is, and the one of the lowest loss is the result, as exp(s / 4): of circuits of a few dozen kernels any step
may cut the only path. What is learned for one amount does not depend on which others are asked for.

References:
    Bengio, Leonard, Courville, "Estimating or propagating gradients through stochastic neurons" (arXiv 1308.3432);
    Ramanujan et al., "What's hidden in a randomly weighted neural network?" (arXiv 1911.13299);
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", section 10 (JMLR 15, 2014).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxcircuits.layers import Masks

# Steps while the circuit shrinks to 1/e of its size, and as many once it has its size.
STEPS = 100
# The way to a small circuit begins here, as a fraction of the relevant kernels: to here SNIP's order will do.
START = 0.4
# How far a logit moves in a step, at most; in standard deviations of the first ones.
SPEED = 0.2
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
    smallest = 1e-6 * jnp.stack([jnp.abs(score).max() for score in scores.values()]).max()
    logs = {name: jnp.log(jnp.abs(score) + smallest) for name, score in scores.items()}
    mean = sum(jnp.sum(logs[name] * relevant[name]) for name in logs) / possible
    square = sum(jnp.sum((logs[name] - mean) ** 2 * relevant[name]) for name in logs) / possible
    logits = {name: jnp.where(relevant[name], (log - mean) / jnp.sqrt(square + 1e-12), 0) for name, log in logs.items()}
    return State(logits, OPTIMIZER.init(logits))


def step(state: State, gradient: Masks, relevant: Masks, speed: Array | float = SPEED) -> State:
    """The state after one step against dloss/dm."""
    there = {name: g * relevant[name] for name, g in gradient.items()}
    square, number = (
        sum(jnp.sum(a) for a in arrays) for arrays in ((g * g for g in there.values()), relevant.values())
    )
    scale = jax.lax.rsqrt(square / number + 1e-30)
    update, memory = OPTIMIZER.update({name: scale * g for name, g in there.items()}, state.memory)
    return State(jax.tree.map(lambda s, u: s - speed * u, state.logits, update), memory)


def scores(state: State, relevant: Masks) -> Masks:
    """The logits as scores over 0 in the same order, {layer: (I, O)}."""
    highest = jnp.stack([s.max() for s in state.logits.values()]).max()
    return {name: jnp.where(relevant[name], jnp.exp((s - highest) / 4), 0) for name, s in state.logits.items()}


def on_the_way(relevant: int, kept: int, steps: int = STEPS) -> np.ndarray:
    """How many kernels the steps before the settling keep, none fewer than k: (T,).

    For a larger k it is the beginning of that for a smaller one.
    """
    first = START * relevant
    t = np.arange(1, int(steps * np.log(first / kept)) + 1)
    return np.ceil(first * np.exp(-t / steps)).astype(np.int32)
