r"""SNIP: how much the feature would change if a kernel's weights were scaled away.

With D[n] = dL_n/dw, the gradient of image n's objective with respect to a kernel's h * w weights k:

    per_image:  S[i,o] = 1/N sum_n 1/hw sum_k |w[k,i,o] D[n,k,i,o]|     (the reference program with one image a batch)
    whole_set:  S[i,o] = 1/hw sum_k |w[k,i,o] 1/N sum_n D[n,k,i,o]|     (the reference program with all in one batch)
    none:       S[i,o] = 1/N sum_n 1/hw sum_k  w[k,i,o] D[n,k,i,o]

Scores of weights are the terms of these sums over k, before their mean; those of filters the mean of their relevant
kernels' scores.

References:
    Lee, Ajanthan, Torr, "SNIP: Single-shot network pruning based on connection sensitivity" (arXiv 1810.02340);
    for features: Hamblin, Konkle, Alvarez, "Pruning for Feature-Preserving Circuits in CNNs" (arXiv 2206.01627).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxcircuits import sparse
from jaxcircuits.criteria.common import Criterion, Statistic, same
from jaxcircuits.layers import Layer
from jaxcircuits.ops import kernel_gradients, patches, seen_by, together


def _mean(part, gradient: Array, w: Array) -> Array:
    """Mean over a kernel's weights of part(gradient (K, ...) * w (K, ...))."""
    return sparse.sum_products(gradient, w, part) / len(w)


def _each(part, gradient: Array, w: Array) -> Array:
    """The same of each weight."""
    return part(gradient * w)


def _dense(part, over, total: Array, layer: Layer, seen: Array, g: Array, w: Array) -> Array:
    """For one feature and image after another, each reduced while it is in the cache: (F, I, O)."""
    images, flat = len(seen), g.reshape(-1, *g.shape[2:])

    def one(f: Array) -> Array:
        def image(n: Array, total: Array) -> Array:
            mine = lax.dynamic_slice_in_dim(seen, n, 1)
            return total + over(part, kernel_gradients(layer, mine, flat, f * images + n), w)

        return lax.fori_loop(0, images, image, jnp.zeros(total.shape[1:]))

    return total + lax.map(one, jnp.arange(len(g)), batch_size=together(layer))


def _dense_whole_set(total: Array, layer: Layer, seen: Array, g: Array, w: Array) -> Array:
    """sum_n D: (F, K, I, O)."""
    flat, starts = g.reshape(-1, *g.shape[2:]), jnp.arange(len(g)) * len(seen)
    return total + lax.map(lambda start: kernel_gradients(layer, seen, flat, start), starts, batch_size=together(layer))


def _finish_dense(total: Array, layer: Layer, w: Array, images: Array) -> Array:
    return total / images


def _finish_dense_whole_set(over, total: Array, layer: Layer, w: Array, images: Array) -> Array:
    return lax.map(lambda gradient: over(jnp.abs, gradient, w), total) / images


def _on_support(part, over, total: Array, layer: Layer, x: Array, g: Array, on: Array, w: Array) -> Array:
    """The same for one output channel after another, from the places where it has a gradient at all: (O, I, F)."""

    def finish(product: Array, o: Array) -> Array:
        return over(part, *_of_channel(product, w[o]))

    return sparse.add_by_output(total, on, g, _gathered(layer, x), finish=finish, together=False)


def _on_support_whole_set(total: Array, layer: Layer, x: Array, g: Array, on: Array, w: Array) -> Array:
    """sum_n D: (O, K I, F)."""
    return sparse.add_by_output(total, on, g, _gathered(layer, x), together=True)


def _of_channel(gradient: Array, w: Array) -> tuple[Array, Array]:
    """An output channel's gradient (K I, F) as (K, I, F), and its weights (K, I) as (K, I, 1)."""
    return gradient.reshape(*w.shape, -1), w[..., None]


def _gathered(layer: Layer, x: Array) -> Callable[[Array, Array], Array]:
    seen = patches(layer, x)
    seen = seen.reshape(seen.shape[0] * seen.shape[1], -1)
    return lambda places, _: seen[places]


def _finish_on_support(total: Array, layer: Layer, w: Array, images: Array) -> Array:
    return jnp.moveaxis(total, (-1, 0), (0, -1)) / images


def _finish_on_support_whole_set(over, total: Array, layer: Layer, w: Array, images: Array) -> Array:
    scores = lax.map(lambda channel: over(jnp.abs, *_of_channel(*channel)), (total, w))
    return jnp.moveaxis(scores, (-1, 0), (0, -1)) / images


def _target(part, total: Array, layer: Layer, x: Array, c: Array, d: Array, w: Array) -> Array:
    """The output gradient is c * d, so D[n,k,i,o] = d[o] C[n,k,i], C = sum_p c[n,p] patches[n,p,k,i]: (F, K, C)."""
    return total + part(jnp.einsum("npki,fnp->nfki", patches(layer, x), c)).sum(0)


def _finish_target(part, scores_of, total: Array, layer: Layer, d: Array, w: Array, images: Array) -> Array:
    total = part(total).reshape(*total.shape[:2], layer.groups, layer.inputs)
    split = part(w).reshape(*w.shape[:2], layer.groups, -1)
    scores = jnp.einsum(scores_of, total, split)  # the outputs of a group come last, after it
    scores = scores.reshape(*scores.shape[:-2], layer.outputs)
    mean = 1 if scores.ndim == 4 else len(w)
    return scores * jnp.expand_dims(part(d), tuple(range(1, scores.ndim - 1))) / (mean * images)


def _dense_shape(layer: Layer, features: int) -> tuple[int, ...]:
    return features, layer.inputs, layer.outputs


def _dense_weights_shape(layer: Layer, features: int) -> tuple[int, ...]:
    return features, math.prod(layer.window), layer.inputs, layer.outputs


def _on_support_shape(layer: Layer, features: int) -> tuple[int, ...]:
    return layer.outputs, layer.inputs, features


def _on_support_weights_shape(layer: Layer, features: int) -> tuple[int, ...]:
    return layer.outputs, math.prod(layer.window), layer.inputs, features


def _on_support_whole_set_shape(layer: Layer, features: int) -> tuple[int, ...]:
    return layer.outputs, math.prod(layer.window) * layer.inputs, features


def _target_shape(layer: Layer, features: int) -> tuple[int, ...]:
    return features, math.prod(layer.window), layer.inputs * layer.groups


KERNELS: Any = (_mean, "fkgi,kigo->figo", _dense_shape, _on_support_shape)
WEIGHTS: Any = (_each, "fkgi,kigo->fkigo", _dense_weights_shape, _on_support_weights_shape)


def _criteria(over, scores_of, dense_shape, on_support_shape) -> dict[str, Criterion]:
    """SNIP of kernels or of weights, for each place of the absolute value."""

    def summed(part) -> Criterion:
        return Criterion(
            dense=Statistic(dense_shape, partial(_dense, part, over), _finish_dense, seen_by),
            on_support=Statistic(on_support_shape, partial(_on_support, part, over), _finish_on_support),
            target=Statistic(_target_shape, partial(_target, part), partial(_finish_target, part, scores_of)),
        )

    finish_dense = partial(_finish_dense_whole_set, over)
    finish_on_support = partial(_finish_on_support_whole_set, over)
    finish_target = partial(_finish_target, jnp.abs, scores_of)
    whole_set = Criterion(
        dense=Statistic(_dense_weights_shape, _dense_whole_set, finish_dense, seen_by),
        on_support=Statistic(_on_support_whole_set_shape, _on_support_whole_set, finish_on_support),
        target=Statistic(_target_shape, partial(_target, same), finish_target),
    )
    return {"per_image": summed(jnp.abs), "whole_set": whole_set, "none": summed(same)}


CRITERIA = {"kernel": _criteria(*KERNELS), "weight": _criteria(*WEIGHTS)}
CRITERIA["filter"] = CRITERIA["kernel"]
