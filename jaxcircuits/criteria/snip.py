r"""SNIP: how much the feature would change if a kernel's weights were scaled away.

With D[n] = dL_n/dw, the gradient of image n's objective with respect to a kernel's h * w weights k:

    per_image:  S[i,o] = 1/N sum_n 1/hw sum_k |w[k,i,o] D[n,k,i,o]|     (the reference program with one image a batch)
    whole_set:  S[i,o] = 1/hw sum_k |w[k,i,o] 1/N sum_n D[n,k,i,o]|     (the reference program with all in one batch)
    none:       S[i,o] = 1/N sum_n 1/hw sum_k  w[k,i,o] D[n,k,i,o]

References:
    Lee, Ajanthan, Torr, "SNIP: Single-shot network pruning based on connection sensitivity" (arXiv 1810.02340);
    for features: Hamblin, Konkle, Alvarez, "Pruning for Feature-Preserving Circuits in CNNs" (arXiv 2206.01627).
"""

from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from jaxcircuits.layers import Layer
from jaxcircuits.ops import patches


def _inner(reduce, layer: Layer, x: Array, g: Array, w: Array) -> Array:
    """D[n,o,k,i] = sum_p g[n,p,o] patches[n,p,k,i] for one feature after another, reduced before the next."""
    n = len(x)
    seen = patches(layer, x)
    seen = seen.reshape(*seen.shape[:3], layer.groups, layer.inputs)
    out = "" if reduce is not _per_image else "n"

    def one(g: Array) -> Array:
        split = g.reshape(n, -1, layer.groups, layer.outputs // layer.groups)
        gradient = jnp.einsum(f"npgo,npkgi->{out}goki", split, seen)
        return reduce(gradient.reshape(-1, layer.outputs, *seen.shape[2:3], layer.inputs), _by_output(w))

    return lax.map(one, g)


def _target(reduce, layer: Layer, x: Array, c: Array, d: Array, w: Array) -> Array:
    """The output gradient is c * d, so D[n,o,k,i] = d[o] sum_p c[n,p] patches[n,p,k,i]."""
    seen = patches(layer, x)
    groups = jnp.repeat(jnp.arange(layer.groups), layer.outputs // layer.groups)

    def one(feature: tuple[Array, Array]) -> Array:
        c, d = feature
        shared = jnp.einsum("npkc,np->nkc", seen, c).reshape(len(x), -1, layer.groups, layer.inputs)
        if reduce is not _per_image:
            shared = shared.sum(0, keepdims=True)
        return reduce(jnp.moveaxis(shared[:, :, groups], 1, 2) * d[:, None, None], _by_output(w))

    return lax.map(one, (c, d))


def _by_output(w: Array) -> Array:
    """(k, I, O) -> (O, k, I): a mean over k then runs over near memory, several times faster on a CPU."""
    return w.transpose(2, 0, 1)


def _per_image(gradient: Array, w: Array) -> Array:
    return jnp.abs(gradient * w).mean(2).sum(0).T


def _whole_set(gradient: Array, w: Array) -> Array:
    return gradient.sum(0)


def _signed(gradient: Array, w: Array) -> Array:
    return (gradient * w).mean(2).sum(0).T


def _mean(total: Array, w: Array, images: Array) -> Array:
    return total / images


def _mean_of_whole_set(total: Array, w: Array, images: Array) -> Array:
    return lax.map(lambda gradient: jnp.abs(gradient * _by_output(w)).mean(1).T, total) / images


def _variant(reduce, finish):
    return partial(_inner, reduce), partial(_target, reduce), finish


CRITERIA = {
    "per_image": _variant(_per_image, _mean),
    "whole_set": _variant(_whole_set, _mean_of_whole_set),
    "none": _variant(_signed, _mean),
}
