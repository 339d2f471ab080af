"""Pieces of a convolution as matrix products, and max pooling with a fast gradient.

Shapes: N images, F features, H W positions (P = H*W of a layer's output), K = window height * width, G groups,
I input channels of a group, C = G*I input channels, O output channels.
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

from jaxcircuits.layers import Layer, strip_rows


def features_last(features: int) -> bool:
    """Whether this many features together are fastest with one place's gradients side by side: on a CPU."""
    return features >= 8 and jax.default_backend() == "cpu"


def patches(layer: Layer, x: Array) -> Array:
    """What each position of a layer sees: x (N, H, W, C) -> (N, P, K, C).

    Strided slices, stacked: `lax.conv_general_dilated_patches` is a grouped convolution and many times slower. Rows
    first, then columns: 22 slices for a window of 11 x 11 and not 121, which would take seconds to compile.
    """
    seen = _windows(layer, _padded(layer, x), layer.positions)
    return seen.reshape(len(x), math.prod(layer.positions), math.prod(layer.window), x.shape[-1])


def _padded(layer: Layer, x: Array) -> Array:
    return jnp.pad(x, ((0, 0), *layer.padding, (0, 0)))


def _windows(layer: Layer, x: Array, positions: tuple[int, int]) -> Array:
    """What so many positions from the first on see of the padded x (N, H, W, C): (N, H', W', h, w, C)."""
    for axis in (1, 2):
        size, stride, dilation = positions[axis - 1], layer.strides[axis - 1], layer.dilation[axis - 1]
        starts = range(0, layer.window[axis - 1] * dilation, dilation)
        views = [lax.slice_in_dim(x, a, a + (size - 1) * stride + 1, stride, axis) for a in starts]
        x = jnp.stack(views, axis=axis + 2)
    return x


def split_patches(layer: Layer, x: Array) -> Array:
    """`patches` by group of the layer: (N, P, K, G, I)."""
    seen = patches(layer, x)
    return seen.reshape(*seen.shape[:3], layer.groups, layer.inputs)


def convolve(layer: Layer, x: Array, kernel: Array) -> Array:
    """A layer's geometry with another kernel: x (N, H, W, C), kernel (h, w, I, O) -> (N, H', W', O).

    There are as many groups as I goes into C, one where they are equal.
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        layer.strides,
        layer.padding,
        rhs_dilation=layer.dilation,
        feature_group_count=x.shape[-1] // kernel.shape[2],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def pick(x: Array, channels: Array) -> Array:
    """The channels (C',) of x (..., C), all of which it has: (..., C').

    As `x[..., channels]`, of which XLA on a CPU now and then makes a transposed copy first.
    """
    return x.reshape(-1, x.shape[-1]).at[:, channels].get(mode="promise_in_bounds").reshape(*x.shape[:-1], -1)


def seen_by(layer: Layer, x: Array) -> Array:
    """What `kernel_gradients` takes of a layer's input x (N, H, W, C), an axis of N images first."""
    if not _on_cpu(layer):
        return split_patches(layer, x)
    return x if layer.inputs < THIN else _padded(layer, x)


def kernel_gradients(layer: Layer, seen: Array, g: Array) -> Array:
    """D = sum_np g[n,p,o] patches[n,p,k,i], of what was `seen_by` the layer, and g (N, P, O): (K, I, O)."""
    if not _on_cpu(layer):
        g = g.reshape(*g.shape[:2], layer.groups, -1)
        return jnp.einsum("npgo,npkgi->kigo", g, seen).reshape(-1, layer.inputs, layer.outputs)
    by_parts = _by_convolution if layer.inputs < THIN else _by_strips
    return by_parts(layer, seen, g)


# Below so many input channels a product of patches is too thin, and one convolution is faster.
THIN = 16
# Positions whose patches are made together: they should stay in the cache.
STRIP = 1024


def _on_cpu(layer: Layer) -> bool:
    return layer.ungrouped and jax.default_backend() == "cpu"


def _by_strips(layer: Layer, x: Array, g: Array) -> Array:
    """Patches of a few rows of positions after the other: all of them are many times as large as the input, and XLA's
    products over so many positions are slow on a CPU."""
    height, width = layer.positions
    rows = strip_rows(height, width, STRIP)
    reach = (rows - 1) * layer.strides[0] + (layer.window[0] - 1) * layer.dilation[0] + 1
    strips = height // rows
    g = g.reshape(len(x) * strips, rows * width, layer.outputs)

    def strip(at: Array) -> Array:
        n, start = at // strips, at % strips * rows * layer.strides[0]
        part = lax.dynamic_slice(x, (n, start, 0, 0), (1, reach, *x.shape[2:]))
        own = lax.dynamic_index_in_dim(g, at, keepdims=False)
        seen = _windows(layer, part, (rows, width)).reshape(rows * width, -1)
        return jnp.einsum("pk,po->ko", seen, own)

    if len(g) == 1:
        found = strip(jnp.int32(0))
    else:
        zero = jnp.zeros((math.prod(layer.window) * layer.inputs, layer.outputs), g.dtype)
        found = lax.fori_loop(0, len(g), lambda at, total: total + strip(at), zero)
    return found.reshape(-1, layer.inputs, layer.outputs)


def _by_convolution(layer: Layer, x: Array, g: Array) -> Array:
    """One convolution, over the positions of the layer's output instead of its window, and of the layout that XLA has a
    fast one for."""
    padding = []
    for a in (0, 1):
        before, size = layer.padding[a][0], x.shape[1 + a]
        reach = (layer.window[a] - 1) * layer.dilation[a] + (layer.positions[a] - 1) * layer.strides[a] + 1
        padding.append((before, reach - size - before))
    found = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.reshape(len(g), *layer.positions, layer.outputs).transpose(1, 2, 0, 3),
        layer.dilation,
        padding,
        rhs_dilation=layer.strides,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jnp.swapaxes(found.reshape(layer.inputs, -1, layer.outputs), 0, 1)


def feature_maps(layer: Layer, x: Array, kernels: Array) -> Array:
    """Features as output channels of a convolution: x (N, H, W, C), kernels (F, K, C) -> (F, N, H', W')."""
    kernel = kernels.reshape(-1, *layer.window, x.shape[-1]).transpose(1, 2, 3, 0)
    return convolve(layer, x, kernel).transpose(3, 0, 1, 2)


def feature_input_gradients(layer: Layer, cotangents: Array, kernels: Array) -> Array:
    """The transpose of `feature_maps`: cotangents (F, N, H', W'), kernels (F, K, C) -> (F, N, H, W, C).

    A small product for each feature, which costs as much as one output channel; pulling the one-hot cotangent of a
    channel back through the whole layer costs as much as all of them.
    """
    height, width, _ = layer.input_maps
    padded = cotangents
    for axis, size in zip((2, 3), (height, width), strict=True):
        a = axis - 2
        reach = (layer.window[a] - 1) * layer.dilation[a]
        low = reach - layer.padding[a][0]
        spread = (layer.positions[a] - 1) * layer.strides[a] + 1
        config = [(0, 0, 0)] * 4
        config[axis] = (low, size + reach - low - spread, layer.strides[a] - 1)
        padded = lax.pad(padded, jnp.zeros((), padded.dtype), config)
    rows, columns = (range(0, layer.window[a] * layer.dilation[a], layer.dilation[a]) for a in (0, 1))
    corners = itertools.product(reversed(rows), reversed(columns))
    shifted = jnp.stack([padded[:, :, a : a + height, b : b + width] for a, b in corners], 1)
    gradient = jnp.einsum("fkp,fkc->fpc", shifted.reshape(*shifted.shape[:2], -1), kernels)
    return gradient.reshape(*cotangents.shape[:2], height, width, -1)


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
        if in_batched == [False, True] and features_last(axis_size):
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


@jax.custom_vjp
def gradient_in_memory(x: Array) -> Array:
    """x, whose gradient is computed once and not anew by everything that it is a part of.

    Where each layer adds to what all before it have made, XLA on a CPU would otherwise write out every later layer's
    share in every earlier one's gradient: a DenseNet then takes three times as long to compile.
    """
    return x


def _gradient_in_memory_forward(x: Array):
    return x, x[(0,) * x.ndim]


def _gradient_in_memory_backward(known: Array, gradient: Array):
    # nothing is fused across a branch; an optimization barrier would be gone before XLA fuses
    return (lax.cond(jnp.isnan(known), lambda g: jnp.full_like(g, jnp.nan), lambda g: g, gradient),)


gradient_in_memory.defvjp(_gradient_in_memory_forward, _gradient_in_memory_backward)
