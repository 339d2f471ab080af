"""Products on the support that all features of an image share.

The gradient of any feature at a layer's output can be non-zero only where the ReLU behind it is on and, before a
max-pool, where the position won: the same few places for all features of an image. Of the products that make weight
and input gradients only those places are gathered and multiplied; what is left out is exactly zero.

Shapes: N images, F features, P positions, K weights of a kernel, I O input and output channels; L places of a list.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_batching import custom_vmap

from jaxcircuits.layers import Layer
from jaxcircuits.ops import convolve, convolve_back

# Lists are padded to one of a few lengths, each so many times the one before; what is longer is cut into pieces.
SHORTEST, RATIO, LONGEST = 16, 1.5, 128
# Terms of a sum that are written out.
MOST_TERMS = 64


class Lists(NamedTuple):
    """Where each row of a table is true: the columns (R, C), in order, then whatever; and how many (R,)."""

    columns: Array
    counts: Array


def lists(on: Array, axis: int) -> Lists:
    """Lists of N tables (N, R, C) bool, one after another, or (N, C, R): `axis` is that of the columns.

    They are read as they lie: transposed first, all that they are made of would be worked out in that order.
    """
    index = functools.partial(lax.broadcasted_iota, jnp.int32, on.shape)
    count = _running_count(on, axis)
    here = jnp.diff(count, axis=axis, prepend=0) > 0
    place = jnp.where(here, count - 1, on.shape[axis])  # out of bounds, and dropped
    empty = jnp.zeros((len(on), on.shape[3 - axis], on.shape[axis]), jnp.int32)
    found = empty.at[index(0), index(3 - axis), place].set(index(axis), mode="drop", unique_indices=True)
    return Lists(found.reshape(-1, on.shape[axis]), jnp.take(count, -1, axis).reshape(-1))


def _running_count(on: Array, axis: int) -> Array:
    """How many of (N, A, B) are true up to each, along axis 1 or 2.

    Products with a triangle: many times faster on a CPU than cumsum, and exact.
    """
    block, length = 64, on.shape[axis]
    spread = [(0, 0)] * on.ndim
    spread[axis] = (0, -length % block)
    blocks = jnp.pad(on, spread).astype(jnp.float32)
    blocks = blocks.reshape(*on.shape[:axis], -1, block, *on.shape[axis + 1 :])
    triangle = jnp.tril(jnp.ones((block, block)))
    if axis == 1:  # a triangle for each block, or a product of all would transpose them
        within = jnp.broadcast_to(triangle, (*blocks.shape[:2], block, block)) @ blocks
    else:
        within = blocks @ triangle.T
    within = within.astype(jnp.int32)
    totals = lax.slice_in_dim(within, block - 1, block, axis=axis + 1)
    count = within + jnp.cumsum(totals, axis) - totals
    return lax.slice_in_dim(count.reshape(*on.shape[:axis], -1, *on.shape[axis + 1 :]), 0, length, axis=axis)


def products(
    found: Lists, segments: Array, pair: Callable[[Array, Array, Array], tuple[Array, Array]]
) -> Callable[[Array], Array]:
    """A function of a row r: the sum over its places of outer(right, left), (J, F).

    Args:
        found: the lists.
        segments: (R, S), the lists that make up a row's places one after another; negative for none.
        pair: (which segment s, which list q, which column c, all (L,)) -> left (L, F), right (L, J).
    """
    counts = jnp.where(segments < 0, 0, found.counts[segments])
    ends = jnp.cumsum(counts, axis=1)
    totals, possible = ends[:, -1], segments.shape[1] * found.columns.shape[1]
    lengths = [SHORTEST]
    while lengths[-1] < min(possible, LONGEST):
        lengths.append(math.ceil(lengths[-1] * RATIO / 8) * 8)
    lengths[-1] = min(possible, LONGEST)

    def of_length(length: int):
        def piece(r: Array, start: Array) -> Array:
            j = start + jnp.arange(length)
            s = (j[:, None] >= ends[r, :-1]).sum(1, dtype=jnp.int32)
            q = segments[r][s]
            column = jnp.minimum(j - (ends[r] - counts[r])[s], found.columns.shape[1] - 1)
            left, right = pair(s, q, found.columns[q, column])
            return right.T @ jnp.where((j < totals[r])[:, None], left, 0)

        return piece

    pieces = [of_length(length) for length in lengths]

    def row(r: Array) -> Array:
        whole = totals[r] // lengths[-1] if possible > LONGEST else jnp.int32(0)
        rest = totals[r] - whole * lengths[-1]
        size = jnp.searchsorted(jnp.asarray(lengths), rest)
        product = lax.switch(size, pieces, r, whole * lengths[-1])
        if possible > LONGEST:
            add = lambda i, total: total + pieces[-1](r, i * lengths[-1])  # noqa: E731
            product = lax.fori_loop(0, whole, add, product)
        return product

    return row


def sum_products(a: Array, b: Array, part: Callable[[Array], Array] = lambda a: a) -> Array:
    """sum_k part(a[k] * b[k]) over a kernel's weights, term by term: on a CPU many times faster than over an axis."""
    if len(a) > MOST_TERMS:
        return part(a * b).sum(0)
    return functools.reduce(jnp.add, (part(a[k] * b[k]) for k in range(len(a))))


def as_table(g: Array) -> Array:
    """Gradients (F, N, P, O) as a table (N*P*O, F): what belongs to one place lies together."""
    return jnp.moveaxis(g, 0, -1).reshape(-1, len(g))


def add_by_output(
    total: Array,
    on: Array,
    g: Array,
    right: Callable[[Array, Array], Array],
    *,
    left: Callable[[Array], Array] = lambda g: g,
    finish: Callable[[Array, Array], Array] = lambda product, o: product,
    together: bool,
) -> Array:
    """To total[o], for each output channel o, add finish(sum of outer(right, left) over the places n, p, o).

    Args:
        total: (O, ...); as the carry of a loop it is updated in place.
        on: (N, P, O) bool, where gradients can be non-zero.
        g: the gradients (F, N, P, O).
        right: (places n * P + p (L,), o) -> (L, J).
        left: of the gradients of all features at these places (L, F).
        finish: ((J, F), o) -> what is wanted of the product while it is in the cache.
        together: sum over all images before `finish`, or over each one's places alone and then what `finish` makes.
    """
    images, positions, outputs = on.shape
    table = as_table(g)
    rows = np.arange(outputs)[:, None] + np.arange(images) * outputs

    def pair(_, q: Array, p: Array) -> tuple[Array, Array]:
        places = q // outputs * positions + p
        return left(table[places * outputs + q % outputs]), right(places, q[0] % outputs)

    row = products(lists(on, axis=1), jnp.asarray(rows if together else rows.reshape(-1, 1), jnp.int32), pair)
    each = 1 if together else images

    def add(r: Array, total: Array) -> Array:
        o = r // each
        return total.at[o].add(finish(row(r), o))

    return lax.fori_loop(0, outputs * each, add, total)


def _receptive(layer: Layer) -> np.ndarray:
    """The output positions (H*W, K) that see each input position through each weight; -1 where there is none."""
    axes = []
    for axis, size in enumerate(layer.input_maps[:2]):
        offset = np.arange(layer.window[axis]) * layer.dilation[axis]
        start, rest = np.divmod(np.arange(size)[:, None] + layer.padding[axis][0] - offset, layer.strides[axis])
        axes.append(np.where((rest == 0) & (start >= 0) & (start < layer.positions[axis]), start, -1))
    y, x = axes[0][:, None, :, None], axes[1][None, :, None, :]
    seen = np.where((y < 0) | (x < 0), -1, y * layer.positions[1] + x)
    return seen.reshape(-1, math.prod(layer.window))


def input_gradients(layer: Layer, kernel: Array, on: Array, g: Array) -> Array:
    """Of a convolution: kernel (h, w, I, O), on (N, P, O), g (F, N, P, O) -> (F, N, H, W, I)."""
    images, positions, outputs = on.shape
    table, weights = as_table(g), kernel.transpose(0, 1, 3, 2).reshape(-1, layer.inputs)
    seen = _receptive(layer)
    rows = np.where(seen < 0, -1, seen + positions * np.arange(images)[:, None, None]).reshape(-1, seen.shape[1])

    def pair(k: Array, q: Array, o: Array) -> tuple[Array, Array]:
        return table[q * outputs + o], weights[k * outputs + o]

    row = products(lists(on, axis=2), jnp.asarray(rows, jnp.int32), pair)
    gradient = lax.map(row, jnp.arange(len(rows)))  # (N*H*W, I, F)
    return jnp.moveaxis(gradient.reshape(images, *layer.input_maps, len(g)), -1, 0)


class Back(NamedTuple):
    """How a convolution's input gradient is made for many features together: on a support, or as more images by tiles.

    Attributes:
        on: (N, P, O) bool, every place where a cotangent can be non-zero.
        tiles: the kernels as `ops.tiles_back` makes them (n * n, O, I), where there is no support.
    """

    on: Array | None = None
    tiles: Array | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def convolution(layer: Layer, x: Array, kernel: Array, back: Back) -> Array:
    """A convolution (N, H, W, C) -> (N, H', W', O) with such an input gradient; kernel gradients are not provided."""
    return convolve(layer, x, kernel)  # as it stands: other rounding would switch a ReLU now and then


def _forward(layer: Layer, x: Array, kernel: Array, back: Back):
    return convolve(layer, x, kernel), (kernel, back)


def _backward(layer: Layer, residuals: tuple[Array, Back], g: Array):
    @custom_vmap
    def input_gradient(kernel: Array, back: Back, g: Array) -> Array:
        return convolve_back(layer, g, kernel, back.tiles)

    @input_gradient.def_vmap
    def _(axis_size: int, in_batched, kernel: Array, back: Back, g: Array):
        *shared, of_gradients = jax.tree.leaves(in_batched)
        assert of_gradients and not any(shared), "only gradients differ between features"
        if back.on is not None:
            return input_gradients(layer, kernel, back.on, g.reshape(axis_size, *back.on.shape)), True
        gradient = convolve_back(layer, g.reshape(-1, *g.shape[2:]), kernel, back.tiles)
        return gradient.reshape(*g.shape[:2], *layer.input_maps), True

    return input_gradient(*residuals, g), None, None


convolution.defvjp(_forward, _backward)
