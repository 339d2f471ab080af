r"""ActGrad: how much the feature would change if a kernel's activation map were scaled away.

With A[n,p,i,o] = sum_k patches[n,p,k,i] w[k,i,o], the contribution of kernel (i, o) to output o before summing over i,
and g[n,p,o] the gradient of image n's objective with respect to that output:

    per_image:  S[i,o] = 1/N sum_n 1/P sum_p |A[n,p,i,o] g[n,p,o]|
    none:       S[i,o] = 1/N sum_n 1/P sum_p  A[n,p,i,o] g[n,p,o]

|A g| = |A| |g|, and A is the same for all features: one matrix product for A, another for the sum. Without absolute
values P times ActGrad is K times SNIP.

References:
    Molchanov et al., "Pruning convolutional neural networks for resource efficient inference" (arXiv 1611.06440);
    for kernels and features: Hamblin, Konkle, Alvarez (arXiv 2206.01627).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxcircuits.layers import Layer
from jaxcircuits.ops import patches

# Output channels whose contributions A (P, I) are in memory together.
BLOCK = 16


def _same(a: Array) -> Array:
    return a


def _by_output(part, layer: Layer, x: Array, w: Array, dot) -> tuple[Callable[..., Array], Array, Array]:
    """A function of one group, its patches and its weights: dot(A[o], o's slice) for each of its output channels o.

    A[o] is (N, P, I); a block of output channels is in memory at a time.
    """
    seen = patches(layer, x)
    seen = jnp.moveaxis(seen.reshape(*seen.shape[:3], layer.groups, layer.inputs), 3, 0)
    w = w.reshape(*w.shape[:2], layer.groups, -1)

    def group(seen: Array, w: Array, *slices: Array) -> Array:
        def one(channel):
            w, *slices = channel
            return dot(part(jnp.einsum("npki,ki->npi", seen, w)), *slices)

        return lax.map(one, (jnp.moveaxis(w, -1, 0), *slices), batch_size=min(BLOCK, w.shape[-1]))

    return group, seen, w


def _inner(part, layer: Layer, x: Array, g: Array, w: Array) -> Array:
    features, positions = g.shape[0], g.shape[2]
    g = part(g).reshape(features, len(x), positions, layer.groups, -1)
    group, seen, w = _by_output(part, layer, x, w, lambda a, g: jnp.einsum("fnp,npi->fi", g, a))
    scores = jax.vmap(group, in_axes=(0, 2, 0))(seen, w, g.transpose(3, 4, 0, 1, 2))  # (G, O/G, F, I)
    return scores.transpose(2, 3, 0, 1).reshape(features, layer.inputs, layer.outputs) / positions


def _target(part, layer: Layer, x: Array, c: Array, d: Array, w: Array) -> Array:
    group, seen, w = _by_output(part, layer, x, w, lambda a: jnp.einsum("fnp,npi->fi", part(c), a))
    scores = jax.vmap(group, in_axes=(0, 2))(seen, w)
    scores = scores.transpose(2, 3, 0, 1).reshape(len(d), layer.inputs, layer.outputs)
    return scores * part(d)[:, None] / c.shape[2]


def _mean(total: Array, w: Array, images: Array) -> Array:
    return total / images


def _variant(part):
    return partial(_inner, part), partial(_target, part), _mean


CRITERIA = {"per_image": _variant(jnp.abs), "none": _variant(_same)}
