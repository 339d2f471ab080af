r"""Convolutions with small windows, and their gradients, by Winograd's algorithm F(m x m, r x r), for a CPU.

A tile of m x m outputs y sees inputs d (n, n), n = m + r - 1. With a kernel k (r, r), and a product element by element,

    y = A' [(G k G') * (B' d B)] A

so that channels are summed by n^2 matrix products for m^2 positions, where r^2 m^2 are needed as it stands: 2.25 times
fewer multiplications for F(2 x 2, 3 x 3), 4 times for F(4 x 4, 3 x 3). The results differ by rounding, up to 1e-6 of
the largest value in the first and 1e-5 in the second. Tiles are taken by strips that stay in the cache. The input
gradient is such a convolution, too. The kernel's gradient, from those e (m, m) of the tiles' outputs, is

    G' [sum over tiles of (A e A') * (B' d B)] G

Of n - 1 points p and the one at infinity (the last row), with the polynomials b_i(t) = prod over j != i of (t - p_j):

    A'[a, i] = p_i^a    G[i, b] = p_i^b / b_i(p_i)    B'[i, :] = the coefficients of b_i

and at infinity A' = 1 for a = m - 1, G = 1 for b = r - 1, else 0; B' holds those of the product over all j.

Shapes: N images, P positions, C input and O output channels, K = r * r, T tiles.

References:
    Lavin, Gray, "Fast algorithms for convolutional neural networks" (arXiv 1509.09308).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxcircuits.layers import Layer, Pair, strip_rows

POINTS = (0, 1, -1, 2, -2, 0.5, -0.5)
# Outputs along a tile's side that there is a choice of, and windows.
SIDES, WINDOWS = (2, 4), (3, 5)
# What transforms take for each number that they make, of maps, kernels and kernels' gradients, in multiply-adds of a
# product; and to read a kernel's that has been transformed before.
MAPS, KERNELS, GRADIENTS, READY = 70, 45, 10, 15
# More numbers than these, made of a layer's kernels in each call, are memory that is new, and has to be cleared.
MOST = 1 << 23
# Fewer channels than this, of inputs or outputs, make thin products.
THIN = 64
# Tiles of a strip.
STRIP = 256


def side(layer: Layer, images: int, *, ready: bool = False) -> int | None:
    """Outputs along a tile's side for which so many images take least; None where a convolution takes less, or there is
    no fast way: on anything but a CPU, which has kernels of its own. `ready`: kernels are `transformed` already."""
    return _best(layer, images, READY if ready else KERNELS)[1]


def side_of_kernels(layer: Layer) -> int | None:
    """The same of the kernel gradient for one image, whose transform many features share."""
    return _best(layer, 1, GRADIENTS, layer.outputs)[1]


def share(layer: Layer, images: int) -> float:
    """How long the layer takes, as a share of what a convolution does: at most 1."""
    return _best(layer, images)[0]


def _best(layer: Layer, images: int, transform: int = KERNELS, channels: int | None = None) -> tuple[float, int | None]:
    """The least share of a convolution's work, and the side with which it is reached, if a kernel's transform takes so
    much for each number, and maps of so many channels are transformed; of inputs and outputs, if not given."""
    window, channels = layer.window[0], channels or layer.inputs + layer.outputs
    regular = layer.window in {(n, n) for n in WINDOWS} and layer.strides == layer.dilation == (1, 1)
    if not regular or not layer.ungrouped or min(layer.inputs, layer.outputs) < THIN or jax.default_backend() != "cpu":
        return 1, None

    def work(m: int) -> int:
        tiles = images * math.prod(_tiles(layer, m))
        return _points(layer, m) * (layer.kernels * (tiles + transform) + MAPS * tiles * channels)

    plain = images * math.prod(layer.positions) * window**2 * layer.kernels
    sides = (m for m in SIDES if transform == READY or _points(layer, m) * layer.kernels <= MOST)
    return min((1, None), *((work(m) / plain, m) for m in sides), key=lambda way: way[0])


def _points(layer: Layer, m: int) -> int:
    return (m + layer.window[0] - 1) ** 2


def _tiles(layer: Layer, m: int) -> Pair:
    height, width = (-(-n // m) for n in layer.positions)
    return height, width


def transformed(kernel: Array, m: int) -> Array:
    """A kernel (r, r, C, O) as `convolve` takes it, by tiles of m x m outputs: (n * n, C, O)."""
    _, g, _ = _matrices(m, len(kernel))
    kernel = kernel.swapaxes(0, 1)  # as the parts of a tile stand: along its width, along its height
    return (jnp.asarray(np.kron(g, g)) @ kernel.reshape(len(kernel) ** 2, -1)).reshape(-1, *kernel.shape[2:])


def convolve(layer: Layer, x: Array, weights: Array) -> Array:
    """x (N, H, W, C), weights (n * n, C, O), which are `transformed` -> (N, H', W', O)."""
    images, positions, r, outputs = len(x), layer.positions, layer.window[0], weights.shape[-1]
    m = math.isqrt(len(weights)) + 1 - r
    tiles, (a, _, b) = _tiles(layer, m), _matrices(m, r)
    some, rows = _strip_size(images, tiles)
    x = _padded(layer, x, tiles, m, r)
    heights = tiles[0] // rows

    def strip(s: Array, y: Array) -> Array:
        at = s // heights * some, s % heights * rows * m, jnp.int32(0), jnp.int32(0)
        seen = lax.dynamic_slice(x, at, (some, rows * m + r - 1, *x.shape[2:]))
        seen = _transformed(b, _transformed(b, seen, 1, m), 3, m)  # (n along W, n along H, N, rows, tiles, C)
        found = jnp.einsum("tpc,tco->tpo", seen.reshape(len(weights), -1, seen.shape[-1]), weights)
        found = found.reshape(len(b), len(b), some, rows, tiles[1], outputs)
        parts = _combined(a, jnp.moveaxis(_combined(a, found), 1, 0))
        whole = parts.transpose(2, 3, 0, 4, 1, 5).reshape(some, rows * m, -1, outputs)
        return lax.dynamic_update_slice(y, whole, at)

    y = jnp.zeros((images, tiles[0] * m, tiles[1] * m, outputs))
    y = lax.fori_loop(0, images // some * heights, strip, y)
    return y[:, : positions[0], : positions[1]]


def backwards(layer: Layer) -> Layer:
    """The convolution that the input gradient is, where strides and dilation are 1."""
    reach = layer.window[0] - 1
    (top, bottom), (left, right) = layer.padding
    return dataclasses.replace(
        layer,
        padding=((reach - top, reach - bottom), (reach - left, reach - right)),
        inputs=layer.outputs,
        outputs=layer.inputs,
        input_shape=layer.output_shape,
        output_shape=layer.input_shape,
    )


def seen_by(layer: Layer, x: Array, m: int) -> Array:
    """What `kernel_gradients` takes of x (N, H, W, C): the tiles of each of S strips, transformed, as products take
    them (N, S, n * n, C, T)."""
    tiles, (_, _, b) = _tiles(layer, m), _matrices(m, layer.window[0])
    x = _padded(layer, x, tiles, m, layer.window[0])
    seen = _transformed(b, _transformed(b, x, 1, m), 3, m)  # (n along W, n along H, N, rows, tiles, C)
    strips = tiles[0] // strip_rows(*tiles, STRIP)
    seen = seen.reshape(len(b) ** 2, len(x), strips, -1, x.shape[-1])
    return seen.transpose(1, 2, 0, 4, 3)


def kernel_gradients(layer: Layer, seen: Array, g: Array, start: Array | int, m: int) -> Array:
    """Of what was `seen_by` the layer, and g, the N images from `start` on of it (.., P, O): (K, I, O)."""
    (images, heights, points, inputs, size), tiles = seen.shape, _tiles(layer, m)
    a, transform, b = _matrices(m, layer.window[0])
    rows = tiles[0] // heights
    ends = [(0, m * t - n) for t, n in zip(tiles, layer.positions, strict=True)]
    g = g.reshape(-1, *layer.positions, layer.outputs)
    if any(map(any, ends)):  # a copy, then of what is needed
        g, start = jnp.pad(lax.dynamic_slice_in_dim(g, start, images), ((0, 0), *ends, (0, 0))), 0

    def strip(s: Array, total: Array) -> Array:
        n, row = s // heights, s % heights
        own = lax.dynamic_slice(g, (start + n, row * rows * m, 0, 0), (1, rows * m, *g.shape[2:]))
        own = own.reshape(rows, m, tiles[1], m, -1)
        own = _combined(a.T, jnp.moveaxis(_combined(a.T, jnp.moveaxis(own, 1, 0)), 3, 0))
        return total + seen[n, row] @ own.reshape(points, size, -1)

    total, count = jnp.zeros((points, inputs, g.shape[-1])), images * heights
    total = strip(jnp.int32(0), total) if count == 1 else lax.fori_loop(0, count, strip, total)
    total = total.reshape(len(b), len(b), *total.shape[1:])  # along the width, along the height
    # not stacked in between, so that they are made in one go
    columns = [_sums(transform.T, total[:, h]) for h in range(len(b))]
    parts = zip(*(_sums(transform.T, column) for column in zip(*columns, strict=True)), strict=True)
    return jnp.stack([d for row in parts for d in row])


def _strip_size(images: int, tiles: Pair) -> Pair:
    """How many images, and rows of tiles of each: several whole images, or a part of one."""
    if math.prod(tiles) <= STRIP:
        return max(n for n in range(1, images + 1) if images % n == 0 and n * math.prod(tiles) <= STRIP), tiles[0]
    return 1, strip_rows(*tiles, STRIP)


def _padded(layer: Layer, x: Array, tiles: Pair, m: int, r: int) -> Array:
    """x (N, H, W, C) with zeros around it, as large as the tiles see."""
    before = layer.padding[0][0], layer.padding[1][0]
    axes = [(b, m * t + r - 1 - b - n, 0) for b, t, n in zip(before, tiles, x.shape[1:3], strict=True)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *axes, (0, 0, 0)])


def _transformed(b: np.ndarray, x: Array, axis: int, m: int) -> Array:
    """B' d along an axis of x, of every m-th place: (n, ...)."""
    span = x.shape[axis] - len(b) + 1
    return _combined(b, [lax.slice_in_dim(x, i, i + span, m, axis) for i in range(len(b))])


def _combined(matrix: np.ndarray, parts: Iterable[Array] | Array) -> Array:
    """matrix (a, b) times b arrays of one shape: (a, ...), added up as they are, for products so thin are slow."""
    return jnp.stack(_sums(matrix, parts))


def _sums(matrix: np.ndarray, parts: Iterable[Array] | Array) -> list[Array]:
    """The rows of that."""
    parts = list(parts)
    rows = ([(c, part) for c, part in zip(row.tolist(), parts, strict=True) if c] for row in matrix)
    return [functools.reduce(jnp.add, (part if c == 1 else c * part for c, part in row)) for row in rows]


@functools.cache
def _matrices(m: int, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A' (m, n), G (n, r), B' (n, n)."""
    points = np.array(POINTS[: m + r - 2], float)
    others = [np.delete(points, i) for i in range(len(points))]
    b = np.stack([*(np.append(np.poly(other)[::-1], 0) for other in others), np.poly(points)[::-1]])
    scales = np.array([np.prod(p - other) for p, other in zip(points, others, strict=True)])
    last = np.eye(1, r, r - 1), np.eye(m, 1, 1 - m)
    g = np.concatenate([np.vander(points, r, increasing=True) / scales[:, None], last[0]])
    a = np.concatenate([np.vander(points, m, increasing=True).T, last[1]], 1)
    return a.astype(np.float32), g.astype(np.float32), b.astype(np.float32)
