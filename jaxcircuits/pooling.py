"""Max pooling as PyTorch does it, with a fast gradient.

Shapes: N images, H W positions, C channels.
"""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_batching import custom_vmap

from jaxcircuits.ops import FEW, LARGE, features_last


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def max_pool(x: Array, window: int, stride: int, padding: int = 0, ceil_mode: bool = False) -> Array:
    """Max pooling as PyTorch does it: x (N, H, W, C) -> (N, H', W', C).

    Its gradient goes to the first largest element of a window in row-major order, as PyTorch's does, and is 4 to 7
    times faster on CPU than that of `flax.linen.max_pool`. Forward-mode differentiation (`jax.jvp`) is not provided.

    Args:
        x: images or feature maps.
        window: side of the square window.
        stride: step between windows.
        padding: rows and columns of minus infinity added at each side, at most half the window.
        ceil_mode: let windows reach over the lower right edge, where they must still start inside.
    """
    # along one axis after the other: on a CPU four times as fast as `lax.reduce_window`
    x = jnp.pad(x, _pooling(x.shape, window, stride, padding, ceil_mode)[2], constant_values=-jnp.inf)
    for axis in (1, 2):
        span = (x.shape[axis] - window) // stride * stride + 1
        views = [lax.slice_in_dim(x, a, a + span, stride, axis) for a in range(window)]
        x = functools.reduce(jnp.maximum, views)
    return x


def _pooling(shape, window: int, stride: int, padding: int, ceil_mode: bool):
    """Window, strides and padding of each axis, as `lax.reduce_window` takes them."""
    edges = [(0, 0)]
    for n in shape[1:3]:
        steps = (n + 2 * padding - window) / stride
        outputs = (math.ceil(steps) if ceil_mode else math.floor(steps)) + 1
        if (outputs - 1) * stride >= n + padding:
            outputs -= 1
        edges.append((padding, padding + max(0, (outputs - 1) * stride + window - n - 2 * padding)))
    return (1, window, window, 1), (1, stride, stride, 1), (*edges, (0, 0))


def _max_pool_forward(x, window, stride, padding, ceil_mode):
    _, _, edges = _pooling(x.shape, window, stride, padding, ceil_mode)
    padded = jnp.pad(x, edges, constant_values=-jnp.inf)
    sizes = [(n - window) // stride + 1 for n in padded.shape[1:3]]
    spans = [(n - 1) * stride + 1 for n in sizes]
    views = jnp.stack(
        [
            padded[:, a : a + spans[0] : stride, b : b + spans[1] : stride]
            for a, b in itertools.product(range(window), repeat=2)
        ]
    )
    winners = views.argmax(0).astype(jnp.uint8 if window**2 < 256 else jnp.int32)
    return views.max(0), (winners, jnp.zeros((0, *x.shape[1:3])))


def _max_pool_backward(window, stride, padding, ceil_mode, residuals, cotangent):
    winners, like = residuals
    height, width = like.shape[1:]
    edges = _pooling((0, height, width, 0), window, stride, padding, ceil_mode)[2][1:3]

    @custom_vmap
    def backward(winners: Array, cotangent: Array) -> Array:
        gradient = jnp.zeros((), cotangent.dtype)
        for k, corner in enumerate(itertools.product(range(window), repeat=2)):
            spread = [(0, 0, 0)]
            for offset, size, (low, _), outputs in zip(corner, (height, width), edges, winners.shape[1:3], strict=True):
                start = offset - low
                spread.append((start, size - start - ((outputs - 1) * stride + 1), stride - 1))
            won = jnp.where(winners == k, cotangent, 0)
            gradient = gradient + lax.pad(won, jnp.zeros((), cotangent.dtype), [*spread, (0, 0, 0)])
        return gradient

    @backward.def_vmap
    def _(axis_size: int, in_batched, winners: Array, cotangent: Array):
        large = height * width * winners.shape[-1] > LARGE and axis_size > FEW
        if in_batched == [False, True] and features_last(axis_size) and not large:
            return _max_pool_gathered(window, stride, (height, width), edges, winners, cotangent), True
        axes = [0 if batched else None for batched in in_batched]
        return jax.vmap(backward.fun, axes)(winners, cotangent), True

    return (backward(winners, cotangent),)


def _max_pool_gathered(window: int, stride: int, sizes, edges, winners: Array, cotangents: Array) -> Array:
    """For many features: each element adds up what the few windows that it may have won have got: (F, N, H, W, C)."""
    features, images, *outputs, channels = cotangents.shape
    table = jnp.moveaxis(cotangents, 0, -1).reshape(-1, features)
    table = jnp.concatenate([table, jnp.zeros((1, features), table.dtype)])
    place = jnp.arange(len(table) - 1, dtype=jnp.int32).reshape(winners.shape)
    gradient = jnp.zeros((), table.dtype)
    for back in itertools.product(range(-(-window // stride)), repeat=2):
        axes = []
        for axis in (0, 1):
            element = np.arange(sizes[axis]) + edges[axis][0]
            at = element // stride - back[axis]
            offset = element - at * stride
            axes.append(
                (np.clip(at, 0, outputs[axis] - 1), offset, (at >= 0) & (at < outputs[axis]) & (offset < window))
            )
        (y, a, in_y), (x, b, in_x) = axes
        k = np.where(in_y[:, None] & in_x, a[:, None] * window + b, -1)[..., None]
        won = winners[:, y[:, None], x].astype(jnp.int32) == k
        gradient = gradient + table[jnp.where(won, place[:, y[:, None], x], len(table) - 1).reshape(-1)]
    return jnp.moveaxis(gradient.reshape(images, *sizes, channels, features), -1, 0)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
