"""Pieces of a convolution as matrix products.

Shapes: N images, F features, H W positions (P = H*W of a layer's output), K = window height * width, G groups,
I input channels of a group, C = G*I input channels, O output channels.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxcircuits import winograd
from jaxcircuits.layers import Layer, strip_rows


def patches(layer: Layer, x: Array) -> Array:
    """What each position of a layer sees: x (N, H, W, C) -> (N, P, K, C).

    Strided slices, stacked: `lax.conv_general_dilated_patches` is a grouped convolution and many times slower. Rows
    first, then columns: 22 slices for a window of 11 x 11 and not 121, which would take seconds to compile.
    """
    seen = _windows(layer, padded(layer, x), layer.positions)
    return seen.reshape(len(x), math.prod(layer.positions), math.prod(layer.window), x.shape[-1])


def padded(layer: Layer, x: Array) -> Array:
    """A layer's input with its padding."""
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


def convolve_back(layer: Layer, g: Array, kernel: Array, tiles: Array | None = None) -> Array:
    """The input gradient of `convolve` in one group: g (N, H', W', O), kernel (h, w, I, O) -> (N, H, W, I).

    By tiles where they are faster, of what `tiles_back` makes if it is not given. JAX's own transpose leaves the kernel
    as it is, for which XLA on a CPU has no fast convolution in a branch.
    """
    if tiles is None:
        tiles = tiles_back(layer, kernel, len(g))
    if tiles is not None:
        return winograd.convolve(winograd.backwards(layer), g, tiles)
    return lax.conv_general_dilated(
        g,
        _turned(kernel),
        (1, 1),
        _padding_back(layer),
        lhs_dilation=layer.strides,
        rhs_dilation=layer.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def tiles_back(layer: Layer, kernel: Array, images: int, *, ready: bool = False) -> Array | None:
    """A kernel (h, w, I, O) as tiles take it for the input gradients of so many images, (n * n, O, I); None where a
    convolution is faster. `ready`: it is made once for many of them."""
    back = winograd.backwards(dataclasses.replace(layer, inputs=kernel.shape[2], outputs=kernel.shape[3]))
    m = winograd.side(back, images, ready=ready)
    return winograd.transformed(_turned(kernel), m) if m else None


def _turned(kernel: Array) -> Array:
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _padding_back(layer: Layer) -> list[tuple[int, int]]:
    """Zeros around an output gradient spread out by the strides, so that every input position sees a whole window."""
    padding = []
    for a in (0, 1):
        reach = (layer.window[a] - 1) * layer.dilation[a]
        low, spread = reach - layer.padding[a][0], (layer.positions[a] - 1) * layer.strides[a] + 1
        padding.append((low, layer.input_maps[a] + reach - low - spread))
    return padding


def pick(x: Array, channels: Array) -> Array:
    """The channels (C',) of x (..., C), all of which it has: (..., C').

    As `x[..., channels]`, of which XLA on a CPU now and then makes a transposed copy first.
    """
    return x.reshape(-1, x.shape[-1]).at[:, channels].get(mode="promise_in_bounds").reshape(*x.shape[:-1], -1)


# Below so many input channels all patches of a layer are made at once if they are of at most so many positions, or one
# convolution is faster.
THIN, SMALL = 16, 64
# Positions whose patches are made together, and features that share them: they should stay in the cache.
STRIP, TOGETHER = 1024, 8


def on_cpu(layer: Layer) -> bool:
    """Whether a layer's products are made strip by strip."""
    return layer.ungrouped and jax.default_backend() == "cpu"


def together(layer: Layer) -> int | None:
    """Features whose kernel gradients are fastest made together; None if each is by itself."""
    alone = on_cpu(layer) and (winograd.side_of_kernels(layer) or _way(layer) != "strips")
    return None if alone else TOGETHER


def seen_by(layer: Layer, x: Array) -> Array:
    """What `kernel_gradients` takes of a layer's input x (N, H, W, C), an axis of N images first."""
    if m := winograd.side_of_kernels(layer):
        return winograd.seen_by(layer, x, m)
    match _way(layer):
        case "patches":
            return jnp.moveaxis(split_patches(layer, x), 1, -1)  # as the product takes them
        case "strips":
            return padded(layer, x)
    return x


def kernel_gradients(layer: Layer, seen: Array, g: Array, start: Array | int = 0) -> Array:
    """D = sum_np g[n,p,o] patches[n,p,k,i], of what was `seen_by` the layer, and g (N, P, O): (K, I, O).

    g may have more images, of which it is N from `start` on: tiles take them as they need them, without a copy.
    """
    if m := winograd.side_of_kernels(layer):
        return winograd.kernel_gradients(layer, seen, g, start, m)
    g = lax.dynamic_slice_in_dim(g, start, len(seen))
    match _way(layer):
        case "patches":
            g = g.reshape(*g.shape[:2], layer.groups, -1)
            return jnp.einsum("npgo,nkgip->kigo", g, seen).reshape(-1, layer.inputs, layer.outputs)
        case "strips":
            return _by_strips(layer, seen, g)
    return _by_convolution(layer, seen, g)


def _way(layer: Layer) -> str:
    """How a layer's kernel gradients are made where that is not by tiles: by a product of all its "patches", of
    "strips" of them, or by a "convolution"."""
    if not on_cpu(layer) or (layer.inputs < THIN and math.prod(layer.window) <= SMALL):
        return "patches"
    return "convolution" if layer.inputs < THIN else "strips"


def _by_strips(layer: Layer, x: Array, g: Array) -> Array:
    """Patches of a few rows of positions after the other: all of them are many times as large as the input, and XLA's
    products over so many positions are slow on a CPU."""
    zero = jnp.zeros((math.prod(layer.window) * layer.inputs, layer.outputs), g.dtype)

    def add(total: Array, seen: Array, own: Array) -> Array:
        return total + jnp.einsum("pk,po->ko", seen.reshape(len(seen), -1), own[0])

    return over_strips(layer, x, g[None], STRIP, add, zero).reshape(-1, layer.inputs, layer.outputs)


def over_strips(
    layer: Layer, x: Array, g: Array, most: int, add: Callable[[Array, Array, Array], Array], total: Array
) -> Array:
    """The total after `add(total, patches (S, K, I), g (F, S, O))` for strips of S positions, `most` of them if the
    layer's height allows it: x (N, H, W, I), which is padded already, and g (F, N, P, O) of a layer of one group."""
    height, width = layer.positions
    rows = strip_rows(height, width, most)
    reach = (rows - 1) * layer.strides[0] + (layer.window[0] - 1) * layer.dilation[0] + 1
    strips, size = height // rows, rows * width
    g = g.reshape(len(g), -1, layer.outputs)

    def strip(at: Array, total: Array) -> Array:
        n, start = at // strips, at % strips * rows * layer.strides[0]
        part = lax.dynamic_slice(x, (n, start, 0, 0), (1, reach, *x.shape[2:]))
        seen = _windows(layer, part, (rows, width)).reshape(size, -1, layer.inputs)
        return add(total, seen, lax.dynamic_slice_in_dim(g, at * size, size, 1))

    count = len(x) * strips
    return strip(jnp.int32(0), total) if count == 1 else lax.fori_loop(0, count, strip, total)


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
    around = [(*ends, stride - 1) for ends, stride in zip(_padding_back(layer), layer.strides, strict=True)]
    padded = lax.pad(cotangents, jnp.zeros((), cotangents.dtype), [(0, 0, 0), (0, 0, 0), *around])
    rows, columns = (range(0, layer.window[a] * layer.dilation[a], layer.dilation[a]) for a in (0, 1))
    corners = itertools.product(reversed(rows), reversed(columns))
    shifted = jnp.stack([padded[:, :, a : a + height, b : b + width] for a, b in corners], 1)
    gradient = jnp.einsum("fkp,fkc->fpc", shifted.reshape(*shifted.shape[:2], -1), kernels)
    return gradient.reshape(*cotangents.shape[:2], height, width, -1)
