r"""SNIP: how much the feature would change if a kernel's weights were scaled away.

With D[n] = dL_n/dw, the gradient of image n's objective with respect to a kernel's h * w weights k:

    per_image:  S[i,o] = 1/N sum_n 1/hw sum_k |w[k,i,o] D[n,k,i,o]|     (the reference program with one image a batch)
    whole_set:  S[i,o] = 1/hw sum_k |w[k,i,o] 1/N sum_n D[n,k,i,o]|     (the reference program with all in one batch)
    none:       S[i,o] = 1/N sum_n 1/hw sum_k  w[k,i,o] D[n,k,i,o]

References:
    Lee, Ajanthan, Torr, "SNIP: Single-shot network pruning based on connection sensitivity" (arXiv 1810.02340);
    for features: Hamblin, Konkle, Alvarez, "Pruning for Feature-Preserving Circuits in CNNs" (arXiv 2206.01627).
"""

import math
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from jaxcircuits import sparse
from jaxcircuits.criteria.common import Criterion, Statistic, same
from jaxcircuits.layers import Layer
from jaxcircuits.ops import patches, split_patches


def _dense(part, total: Array, layer: Layer, x: Array, g: Array, w: Array) -> Array:
    """D[n,o,k,i] = sum_p g[n,p,o] patches[n,p,k,i] for one feature and image after another: (F, O, I).

    Each is reduced while it is in the cache.
    """
    seen = split_patches(layer, x)

    def one(g: Array) -> Array:
        def image(total: Array, seen: tuple[Array, Array]) -> tuple[Array, None]:
            gradient = jnp.einsum("pgo,pkgi->goki", *seen).reshape(w.shape)
            return total + part(gradient * w).mean(1), None

        return lax.scan(image, jnp.zeros((layer.outputs, layer.inputs)), (g, seen))[0]

    return total + lax.map(one, _split_gradients(layer, g))


def _dense_whole_set(total: Array, layer: Layer, x: Array, g: Array, w: Array) -> Array:
    """sum_n D: (F, O, k, I)."""
    seen = split_patches(layer, x)
    gradients = lax.map(lambda g: jnp.einsum("npgo,npkgi->goki", g, seen), _split_gradients(layer, g))
    return total + gradients.reshape(total.shape)


def _split_gradients(layer: Layer, g: Array) -> Array:
    """(F, N, P, G, O/G)"""
    return g.reshape(*g.shape[:3], layer.groups, -1)


def _finish_dense(total: Array, layer: Layer, w: Array, images: Array) -> Array:
    return total.swapaxes(1, 2) / images


def _finish_dense_whole_set(total: Array, layer: Layer, w: Array, images: Array) -> Array:
    return lax.map(lambda gradient: jnp.abs(gradient * w).mean(1).T, total) / images


def _on_support(part, total: Array, layer: Layer, x: Array, g: Array, on: Array, w: Array) -> Array:
    """The same for one output channel after another, from the places where it has a gradient at all: (O, I, F)."""

    def finish(product: Array, o: Array) -> Array:
        return _mean_over_weights(part, product, w[o])

    return sparse.add_by_output(total, on, g, _gathered(layer, x), finish=finish, together=False)


def _on_support_whole_set(total: Array, layer: Layer, x: Array, g: Array, on: Array, w: Array) -> Array:
    """sum_n D: (O, k I, F)."""
    return sparse.add_by_output(total, on, g, _gathered(layer, x), together=True)


def _gathered(layer: Layer, x: Array) -> Callable[[Array, Array], Array]:
    seen = patches(layer, x)
    seen = seen.reshape(seen.shape[0] * seen.shape[1], -1)
    return lambda places, _: seen[places]


def _mean_over_weights(part, gradient: Array, w: Array) -> Array:
    """Mean over k of part(gradient (k I, F) * w (k, I)): (I, F)."""
    return sparse.sum_products(gradient.reshape(*w.shape, -1), w[..., None], part) / len(w)


def _finish_on_support(total: Array, layer: Layer, w: Array, images: Array) -> Array:
    return total.transpose(2, 1, 0) / images


def _finish_on_support_whole_set(total: Array, layer: Layer, w: Array, images: Array) -> Array:
    scores = lax.map(lambda channel: _mean_over_weights(jnp.abs, *channel), (total, w))
    return scores.transpose(2, 1, 0) / images


def _target(part, total: Array, layer: Layer, x: Array, c: Array, d: Array, w: Array) -> Array:
    """The output gradient is c * d, so D[n,o,k,i] = d[o] C[n,k,i], C = sum_p c[n,p] patches[n,p,k,i]: (F, k, C)."""
    return total + part(jnp.einsum("npki,fnp->nfki", patches(layer, x), c)).sum(0)


def _finish_target(part, total: Array, layer: Layer, d: Array, w: Array, images: Array) -> Array:
    total = part(total).reshape(*total.shape[:2], layer.groups, layer.inputs)
    split = part(w).reshape(layer.groups, -1, *w.shape[1:])
    scores = jnp.einsum("fkgi,goki->figo", total, split).reshape(len(d), layer.inputs, layer.outputs)
    return scores * part(d)[:, None] / (w.shape[1] * images)


def _dense_shape(layer: Layer, features: int) -> tuple[int, ...]:
    return features, layer.outputs, layer.inputs


def _dense_whole_set_shape(layer: Layer, features: int) -> tuple[int, ...]:
    return features, layer.outputs, math.prod(layer.window), layer.inputs


def _on_support_shape(layer: Layer, features: int) -> tuple[int, ...]:
    return layer.outputs, layer.inputs, features


def _on_support_whole_set_shape(layer: Layer, features: int) -> tuple[int, ...]:
    return layer.outputs, math.prod(layer.window) * layer.inputs, features


def _target_shape(layer: Layer, features: int) -> tuple[int, ...]:
    return features, math.prod(layer.window), layer.inputs * layer.groups


def _summed(part) -> Criterion:
    return Criterion(
        dense=Statistic(_dense_shape, partial(_dense, part), _finish_dense),
        on_support=Statistic(_on_support_shape, partial(_on_support, part), _finish_on_support),
        target=Statistic(_target_shape, partial(_target, part), partial(_finish_target, part)),
    )


CRITERIA = {
    "per_image": _summed(jnp.abs),
    "whole_set": Criterion(
        dense=Statistic(_dense_whole_set_shape, _dense_whole_set, _finish_dense_whole_set),
        on_support=Statistic(_on_support_whole_set_shape, _on_support_whole_set, _finish_on_support_whole_set),
        target=Statistic(_target_shape, partial(_target, same), partial(_finish_target, jnp.abs)),
    ),
    "none": _summed(same),
}
