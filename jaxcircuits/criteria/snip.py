r"""SNIP: how much the feature would change if a kernel's weights were scaled away.

With D[n] = dL_n/dw, the gradient of image n's objective with respect to a kernel's K = h * w weights:

    per_image:  S[i,o] = 1/N sum_n 1/K sum_k |w[k,i,o] D[n,k,i,o]|     (the reference program with one image a batch)
    whole_set:  S[i,o] = 1/K sum_k |w[k,i,o] 1/N sum_n D[n,k,i,o]|     (the reference program with all in one batch)
    none:       S[i,o] = 1/N sum_n 1/K sum_k  w[k,i,o] D[n,k,i,o]

References:
    Lee, Ajanthan, Torr, "SNIP: Single-shot network pruning based on connection sensitivity" (arXiv 1810.02340);
    for features: Hamblin, Konkle, Alvarez, "Pruning for Feature-Preserving Circuits in CNNs" (arXiv 2206.01627).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxcircuits.ops import patches
from jaxcircuits.taps import Layer


def _inner(reduce, layer: Layer, x: Array, g: Array, w: Array) -> Array:
    """D[n,k,i,o] = sum_p patches[n,p,k,i] g[n,p,o] for one feature after another, reduced before the next."""
    n, _, outputs = g.shape[1:]
    seen = patches(layer, x)
    seen = seen.reshape(*seen.shape[:3], layer.groups, layer.inputs)

    def one(g: Array) -> Array:
        split = g.reshape(n, -1, layer.groups, outputs // layer.groups)
        if reduce is not _per_image:
            gradient = jnp.einsum("npkgi,npgo->kigo", seen, split)[None]
        else:
            gradient = jnp.einsum("npkgi,npgo->nkigo", seen, split)
        return reduce(gradient.reshape(-1, *w.shape), w)

    return lax.map(one, g)


def _target(reduce, layer: Layer, x: Array, c: Array, d: Array, w: Array) -> Array:
    """The output gradient is c * d, so D[n,k,i,o] = d[o] sum_p patches[n,p,k,i] c[n,p]."""
    seen = patches(layer, x)
    groups = jnp.repeat(jnp.arange(layer.groups), layer.outputs // layer.groups)

    def one(feature: tuple[Array, Array]) -> Array:
        c, d = feature
        shared = jnp.einsum("npkc,np->nkc", seen, c).reshape(len(x), -1, layer.groups, layer.inputs)
        if reduce is not _per_image:
            shared = shared.sum(0, keepdims=True)
        return reduce(jnp.moveaxis(shared[:, :, groups], 2, 3) * d, w)

    return lax.map(one, (c, d))


def _per_image(gradient: Array, w: Array) -> Array:
    return jnp.abs(gradient * w).mean(1).sum(0)


def _whole_set(gradient: Array, w: Array) -> Array:
    return gradient.sum(0)


def _signed(gradient: Array, w: Array) -> Array:
    return (gradient * w).mean(1).sum(0)


def _mean(total: Array, w: Array, images: Array) -> Array:
    return total / images


def _mean_of_whole_set(total: Array, w: Array, images: Array) -> Array:
    return jax.vmap(lambda gradient: jnp.abs(gradient * w).mean(0))(total) / images


def _variant(reduce, finish):
    return partial(_inner, reduce), partial(_target, reduce), finish


CRITERIA = {
    "per_image": _variant(_per_image, _mean),
    "whole_set": _variant(_whole_set, _mean_of_whole_set),
    "none": _variant(_signed, _mean),
}
