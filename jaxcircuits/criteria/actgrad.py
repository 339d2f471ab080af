r"""ActGrad: how much the feature would change if a kernel's activation map were scaled away.

With A[n,p,i,o] = sum_k patches[n,p,k,i] w[k,i,o], the contribution of kernel (i, o) to output o before summing over i,
and g[n,p,o] the gradient of image n's objective with respect to that output:

    per_image:  S[i,o] = 1/N sum_n 1/P sum_p |A[n,p,i,o] g[n,p,o]|
    none:       S[i,o] = 1/N sum_n 1/P sum_p  A[n,p,i,o] g[n,p,o]

For filters it is a quantity of its own, with the layer's output y[n,p,o], bias included, in place of A:

    per_image:  S[o] = 1/N sum_n 1/P sum_p |y[n,p,o] g[n,p,o]|
    none:       S[o] = 1/N sum_n 1/P sum_p  y[n,p,o] g[n,p,o]

A weight has no activation map.

|A g| = |A| |g|, and A is the same for all features: one matrix product for A, another for the sum. Without absolute
values P times ActGrad is K times SNIP.

References:
    Molchanov et al., "Pruning convolutional neural networks for resource efficient inference" (arXiv 1611.06440);
    for kernels and features: Hamblin, Konkle, Alvarez (arXiv 2206.01627).
"""

import math
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from jaxcircuits import sparse
from jaxcircuits.criteria.common import Criterion, Statistic, same
from jaxcircuits.layers import Layer
from jaxcircuits.ops import THIN, on_cpu, over_strips, padded, patches, split_patches

# Output channels whose contributions A (P, I) are in memory together.
BLOCK = 16
# Positions whose contributions, of all kernels, are: in the cache, for products need them in another order.
STRIP = 50


def _contributions(layer: Layer, x: Array, w: Array) -> Callable[[Array], Array]:
    """A function of output channels (B,): A (I, B, N P), a product for each input channel."""
    seen = split_patches(layer, x).transpose(3, 4, 0, 1, 2)
    seen = seen.reshape(*seen.shape[:2], -1, seen.shape[-1])  # (G, I, N P, K)
    group, w = layer.outputs // layer.groups, w.transpose(2, 1, 0)
    if layer.groups > 1:
        return lambda o: jnp.einsum("bik,bipk->ibp", w[o], seen[o // group])
    return lambda o: jnp.einsum("bik,ipk->ibp", w[o], seen[0])


def _dense(part, total: Array, layer: Layer, x: Array, g: Array, w: Array) -> Array:
    """(O, F, I)"""
    if on_cpu(layer):

        def add(total: Array, seen: Array, own: Array) -> Array:
            contributions = jnp.einsum("pki,kio->ipo", seen, w)
            return total + jnp.einsum("fpo,ipo->ofi", part(own), part(contributions)) / g.shape[2]

        return over_strips(layer, padded(layer, x), g, STRIP, add, total)
    contributions = _contributions(layer, x, w)

    def one(channel: tuple[Array, Array]) -> Array:
        o, g = channel
        return g @ part(contributions(o[None])[:, 0]).T

    channels = jnp.arange(layer.outputs), jnp.moveaxis(part(g), -1, 0).reshape(layer.outputs, len(g), -1)
    return total + lax.map(one, channels, batch_size=min(BLOCK, layer.outputs)) / g.shape[2]


def _finish_dense(total: Array, layer: Layer, w: Array, images: Array) -> Array:
    return total.transpose(1, 2, 0) / images


def _contributions_at(layer: Layer, x: Array, w: Array) -> Callable[[Array, Array], Array]:
    """A function of places n P + p (L,) and an output channel: A (L, I) there; w (O, K, I)."""
    seen = patches(layer, x)
    seen = seen.reshape(-1, *seen.shape[2:])
    if layer.inputs < THIN:  # all that there are are few, and one product
        every = jnp.einsum("pki,oki->ipo", seen, w).reshape(layer.inputs, -1)
        return lambda places, o: every[:, places * layer.outputs + o].T

    def at(places: Array, o: Array) -> Array:
        here = lax.optimization_barrier(seen[places])  # or every weight would look its place up again
        return sparse.sum_products(here.swapaxes(0, 1), w[o][:, None])

    return at


def _on_support(part, total: Array, layer: Layer, x: Array, g: Array, on: Array, w: Array) -> Array:
    """The same from the places where an output channel has a gradient at all: (O, I, F)."""
    at = _contributions_at(layer, x, w)
    return sparse.add_by_output(total, on, g, lambda p, o: part(at(p, o)), left=part, together=True)


def _finish_on_support(total: Array, layer: Layer, w: Array, images: Array) -> Array:
    return total.transpose(2, 1, 0) / images / math.prod(layer.positions)  # their product may be over 2^31


def _target(part, total: Array, layer: Layer, x: Array, c: Array, d: Array, w: Array) -> Array:
    """(O, F, I) for a gradient of 1 at each output channel that a feature touches."""
    contributions = _contributions(layer, x, w)
    touched = (d != 0).any(0)
    # those touched come first, and after all some that there are not
    channels = jnp.pad(jnp.argsort(~touched), (0, BLOCK), constant_values=layer.outputs)
    flat = part(c).reshape(len(c), -1)

    def add(j: Array, total: Array) -> Array:
        block = lax.dynamic_slice(channels, (j * BLOCK,), (BLOCK,))
        products = jnp.einsum("fp,ibp->bfi", flat, part(contributions(block)))
        return total.at[block].add(products / c.shape[2], mode="drop")

    return lax.fori_loop(0, -(-touched.sum() // BLOCK), add, total)


def _finish_target(part, total: Array, layer: Layer, d: Array, w: Array, images: Array) -> Array:
    return total.transpose(1, 2, 0) * part(d)[:, None] / images


def _dense_shape(layer: Layer, features: int) -> tuple[int, ...]:
    return layer.outputs, features, layer.inputs


def _on_support_shape(layer: Layer, features: int) -> tuple[int, ...]:
    return layer.outputs, layer.inputs, features


def _filters(part, total: Array, layer: Layer, y: Array, g: Array, *rest: Array) -> Array:
    """(F, O) from the layer's output y."""
    y = y.reshape(*g.shape[1:3], layer.outputs)
    return total + jnp.einsum("fnpo,npo->fo", part(g), part(y)) / g.shape[2]


def _filters_target(part, total: Array, layer: Layer, y: Array, c: Array, d: Array, w: Array) -> Array:
    """(F, O) for a gradient of 1 at each output channel."""
    return total + jnp.einsum("fnp,npo->fo", part(c), part(y.reshape(*c.shape[1:], -1))) / c.shape[2]


def _finish_filters(total: Array, layer: Layer, w: Array, images: Array) -> Array:
    return total / images


def _finish_filters_target(part, total: Array, layer: Layer, d: Array, w: Array, images: Array) -> Array:
    return total * part(d) / images


def _filters_shape(layer: Layer, features: int) -> tuple[int, ...]:
    return features, layer.outputs


def _of_filters(part) -> Criterion:
    before = Statistic(_filters_shape, partial(_filters, part), _finish_filters)
    target = Statistic(_filters_shape, partial(_filters_target, part), partial(_finish_filters_target, part))
    return Criterion(before, before, target, of_outputs=True, shared=True)


def _of_kernels(part) -> Criterion:
    return Criterion(
        dense=Statistic(_dense_shape, partial(_dense, part), _finish_dense),
        on_support=Statistic(_on_support_shape, partial(_on_support, part), _finish_on_support),
        target=Statistic(_dense_shape, partial(_target, part), partial(_finish_target, part)),
        shared=True,
    )


CRITERIA = {
    "kernel": {"per_image": _of_kernels(jnp.abs), "none": _of_kernels(same)},
    "filter": {"per_image": _of_filters(jnp.abs), "none": _of_filters(same)},
}
