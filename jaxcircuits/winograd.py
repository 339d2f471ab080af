r"""Convolutions with windows of 3 x 3 by Winograd's algorithm F(2 x 2, 3 x 3), for a CPU.

A tile of 2 x 2 outputs y sees inputs d of 4 x 4. With a kernel k, and a product element by element,

    y = A' [(G k G') * (B' d B)] A    B' = 1  0 -1  0    G = 1    0    0    A' = 1 1  1  0
                                           0  1  1  0        1/2  1/2  1/2       0 1 -1 -1
                                           0 -1  1  0        1/2 -1/2  1/2
                                           0  1  0 -1        0    0    1

so that channels are summed by 16 matrix products for 4 positions, where 36 are needed as it stands: 2.25 times fewer
multiplications, and equal to rounding. Tiles are taken by strips that stay in the cache.

Shapes: N images, C input and O output channels, T tiles of a strip.

References:
    Lavin, Gray, "Fast algorithms for convolutional neural networks" (arXiv 1509.09308).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxcircuits.layers import Layer, Pair, strip_rows

# Channels (input times output ones, and the fewer of them) below which the sums beside the products cost too much.
CHANNELS, THIN = 128 * 128, 64
# Tiles of a strip.
STRIP = 256

Parts = Sequence[Sequence[Array]]


def suited(layer: Layer) -> bool:
    """Whether a layer is faster this way; on a CPU alone, for others have kernels of their own."""
    regular = layer.window == (3, 3) and layer.strides == layer.dilation == (1, 1) and layer.ungrouped
    enough = layer.kernels >= CHANNELS and min(layer.inputs, layer.outputs) >= THIN
    return regular and enough and jax.default_backend() == "cpu"


def convolve(layer: Layer, x: Array, kernel: Array) -> Array:
    """x (N, H, W, C), kernel (3, 3, C, O) -> (N, H', W', O)."""
    images, positions, outputs = len(x), layer.positions, kernel.shape[-1]
    tiles = -(-positions[0] // 2), -(-positions[1] // 2)
    size = _strip_size(images, tiles)
    whole = size[1] == tiles[0]
    x = _padded(layer, x, tiles)
    weights = jnp.stack(_flat(_both(_of_kernel, kernel)))

    def strip(s: Array, y: Array) -> Array:
        n, row = s // (tiles[0] // size[1]) * size[0], s % (tiles[0] // size[1]) * size[1]
        at = n, 2 * row, jnp.int32(0), jnp.int32(0)
        seen = _seen(lax.dynamic_slice(x, at, (size[0], 2 * size[1] + 2, *x.shape[2:])), (size[1], tiles[1]))
        found = jnp.einsum("tpc,tco->tpo", seen, weights).reshape(4, 4, size[0], size[1], tiles[1], outputs)
        parts = _both(_of_outputs, found)
        rows = jnp.stack([jnp.stack(row, 3) for row in parts], 2).reshape(size[0], 2 * size[1], -1, outputs)
        if whole:  # no more than the images have
            rows = rows[:, : positions[0], : positions[1]]
        return lax.dynamic_update_slice(y, rows, at)

    shape = positions if whole else (2 * tiles[0], 2 * tiles[1])
    strips = images // size[0] * (tiles[0] // size[1])
    y = lax.fori_loop(0, strips, strip, jnp.zeros((images, *shape, outputs)))
    return y[:, : positions[0], : positions[1]]


def _strip_size(images: int, tiles: Pair) -> Pair:
    """How many images, and rows of tiles of each: several whole images, or a part of one."""
    if math.prod(tiles) <= STRIP:
        return max(n for n in range(1, images + 1) if images % n == 0 and n * math.prod(tiles) <= STRIP), tiles[0]
    return 1, strip_rows(*tiles, STRIP)


def _padded(layer: Layer, x: Array, tiles: Pair) -> Array:
    """x (N, H, W, C) with zeros around it, as large as the tiles see."""
    before = layer.padding[0][0], layer.padding[1][0]
    axes = [(b, 2 * t + 2 - b - n, 0) for b, t, n in zip(before, tiles, x.shape[1:3], strict=True)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *axes, (0, 0, 0)])


def _seen(x: Array, tiles: Pair) -> Array:
    """B' d B of all tiles of x (N, H, W, C): (16, T, C)."""
    spans = [2 * n - 1 for n in tiles]
    patches = [[x[:, i : i + spans[0] : 2, j : j + spans[1] : 2] for j in range(4)] for i in range(4)]
    return jnp.stack(_flat(_both(_of_inputs, patches))).reshape(16, -1, x.shape[-1])


def _both(rule: Callable[..., Sequence[Array]], parts: Parts | Array) -> Parts:
    """A linear rule along the second axis of parts[i][j], and along the first."""
    rows = [rule(*row) for row in parts]
    columns = [rule(*column) for column in zip(*rows, strict=True)]
    return list(zip(*columns, strict=True))


def _flat(parts: Parts) -> list[Array]:
    return [part for row in parts for part in row]


# One axis of B' d, G k and A' m.
def _of_inputs(a, b, c, d):
    return a - c, b + c, c - b, b - d


def _of_kernel(a, b, c):
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _of_outputs(a, b, c, d):
    return a + b + c, b - c - d
