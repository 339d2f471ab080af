"""A circuit's convolutions on a CPU: only the terms that its mask leaves, counted from whichever end is nearer.

An output channel is its bias and one term for each kept kernel. Where the layer sees what it sees in the full network
(no layer before it has lost a kernel), it is also the full network's output less one term for each dropped kernel: the
shorter sum is taken. With input channels sorted by how many outputs want them, and outputs by the last input that they
want, the wanted kernels stand in a staircase. A group of outputs is one convolution of the first n sorted inputs; n is
rounded up to one of a few lengths, all of which are in the program, so that one program serves every mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxcircuits import winograd
from jaxcircuits.layers import Arrays, Layer, Masks, Variables, before
from jaxcircuits.ops import convolve, pick

# Output channels of one convolution, and lengths to which its input channels are rounded up.
GROUP, LENGTHS = 32, 8
# Layers of fewer input channels, such as the first, are computed whole or not at all.
FEW = 16
# A staircase of more than this share of all kernels is slower than one whole convolution.
DENSE = 0.85
# How many of the first masked layers may start from the full network's outputs; nearly every circuit drops kernels in
# the first two.
NEAR = 2


class Terms(NamedTuple):
    """How one convolution of one circuit is computed.

    Attributes:
        factors: (I, O) int8: 1 to add a kernel's term, -1 to take it off the full output, else 0.
        from_full: (O,) bool, which outputs start from the full network's.
        rows, columns: the inputs (I,) and outputs (O,) in the staircase's order.
        needs: how many inputs each group of outputs needs.
        way: 0 nothing to compute, 1 the staircase, 2 a whole convolution.
        full: the full network's output (N, H, W, O) where `from_full` may be true.
        pairs: the layer's kernels (I, O, K), one after another, so that those of a group are gathered quickly.
    """

    factors: np.ndarray
    from_full: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    needs: np.ndarray
    way: np.int32
    full: Array | None
    pairs: Array


class Whole(NamedTuple):
    """A convolution of which every kernel is kept.

    Attributes:
        output: (N, H, W, O), if it is known.
    """

    output: Array | None = None


def suited(layers: Mapping[str, Layer], target: str, masks: Arrays) -> tuple[str, ...]:
    """The layers with masks (F, I, O), in call order, for which `convolution` is the faster way: none but on a CPU."""
    masked = ((la, masks[n]) for n, la in before(layers, target).items() if n in masks)
    found = [la for la, mask in masked if mask.dtype == bool and mask.ndim == 3]
    if jax.default_backend() != "cpu":
        return ()
    return tuple(la.name for la in found if la.ungrouped and la.outputs >= 2 * GROUP)


def all_terms(
    layers: Mapping[str, Layer],
    names: tuple[str, ...],
    masks: Arrays,
    offsets: Arrays,
    full: Masks,
    pairs: Masks,
    images: int,
) -> dict[str, Terms]:
    """The terms of these layers of one circuit with the masks {layer: (I, O)} and offsets {layer: (O,)}, which are
    added elsewhere, on so many images; `full` are the outputs of some layers in the full network, `pairs` the kernels
    of these."""
    if not names:
        return {}
    given = {name: np.asarray(masks[name]) for name in layers if name in masks}
    order = list(layers)
    changed = (order.index(n) for n, mask in given.items() if (mask != 1).any() or np.any(offsets.get(n, 0)))
    first = next(changed, len(order))
    return {n: terms(layers[n], given[n], full.get(n), pairs[n], order.index(n) <= first, images) for n in names}


def terms(layer: Layer, mask: np.ndarray, full: Array | None, pairs: Array, near: bool, images: int) -> Terms:
    """The terms of a layer with the mask (I, O); `near`: it sees what it sees in the full network."""
    inputs = len(mask)
    from_full = (2 * mask.sum(0) > inputs) & (near and full is not None)
    wanted = mask ^ from_full
    rows = np.argsort(-wanted.sum(1), kind="stable").astype(np.int32)
    reach = np.where(wanted[rows], np.arange(1, inputs + 1)[:, None], 0).max(0)
    columns = np.argsort(-reach, kind="stable").astype(np.int32)
    needs = reach[columns][::GROUP].astype(np.int32)
    lengths = _lengths(inputs)
    work = lengths[np.searchsorted(lengths, needs[needs > 0])].sum() * GROUP
    dense = mask.size * DENSE * winograd.share(layer, images)
    way = 0 if not work else 2 if work > dense or inputs < FEW else 1
    if way == 2:
        from_full, wanted = np.zeros_like(from_full), mask
    factors = np.where(from_full, -1, 1).astype(np.int8) * wanted
    return Terms(factors, from_full, rows, columns, needs, np.int32(way), full, pairs)


def _lengths(inputs: int) -> np.ndarray:
    return np.unique(np.ceil(inputs * np.arange(1, LENGTHS + 1) / LENGTHS).astype(np.int32))


def convolution(layer: Layer, x: Array, kernel: Array, bias: Array, terms: Terms | Whole) -> Array:
    """The layer's output (N, H, W, O) in the circuit; x (N, H, W, I), kernel (h, w, I, O) unmasked."""
    if isinstance(terms, Whole):
        return _whole(layer, x, kernel) + bias if terms.output is None else terms.output
    shape = (len(x), *layer.positions)

    def nothing() -> Array:
        start = bias if terms.full is None else jnp.where(terms.from_full, terms.full, bias)
        return jnp.broadcast_to(start, (*shape, layer.outputs))

    def staircase() -> Array:
        steps = len(terms.needs)
        columns = jnp.pad(terms.columns, (0, steps * GROUP - layer.outputs))
        inputs, lengths = pick(x, jnp.asarray(terms.rows)), _lengths(layer.inputs)

        def of_length(n: int):
            def computed(columns: Array) -> Array:
                chosen = terms.rows[:n, None], columns
                weights = terms.pairs[chosen] * terms.factors[chosen][..., None]
                weights = jnp.moveaxis(weights, -1, 0).reshape(*layer.window, n, GROUP)
                return convolve(layer, inputs[..., :n], weights)

            return computed

        def group(g: Array, y: Array) -> Array:
            own = lax.dynamic_slice_in_dim(columns, g * GROUP, GROUP)
            found = lax.switch(jnp.searchsorted(lengths, terms.needs[g]), [of_length(n) for n in lengths.tolist()], own)
            return lax.dynamic_update_slice_in_dim(y, found, g * GROUP, -1)

        wanted = (terms.needs > 0).sum(dtype=jnp.int32)
        y = lax.fori_loop(0, wanted, group, jnp.zeros((*shape, steps * GROUP)))
        back = jnp.zeros(layer.outputs, jnp.int32).at[terms.columns].set(jnp.arange(layer.outputs, dtype=jnp.int32))
        return nothing() + pick(y, back)

    def whole() -> Array:
        return _whole(layer, x, kernel * terms.factors) + bias

    return lax.switch(terms.way, [nothing, staircase, whole])


def by_pairs(layer: Layer, variables: Variables) -> Array:
    """The layer's kernels (I, O, K)."""
    return jnp.moveaxis(layer.weight(variables), 0, -1)


def by_tiles(layers: Mapping[str, Layer], target: str, images: int) -> dict[str, Whole]:
    """The layers before the target that are faster by tiles for so many images."""
    found = (layer for layer in before(layers, target).values() if not layer.trouble)
    return {layer.name: Whole() for layer in found if winograd.side(layer, images)}


def outputs(layer: Layer, variables: Variables, x: Array) -> Array:
    """The layer's output (N, H, W, O) in the full network."""
    return _whole(layer, x, layer.kernel(variables)) + layer.bias(variables)


def _whole(layer: Layer, x: Array, kernel: Array) -> Array:
    m = winograd.side(layer, len(x))
    return winograd.convolve(layer, x, winograd.transformed(kernel, m)) if m else convolve(layer, x, kernel)
