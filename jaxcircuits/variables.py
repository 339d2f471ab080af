"""A network's variables with other kernels: a circuit's, with masks multiplied in, or those of a pinned run."""

from __future__ import annotations

import math
from collections.abc import Iterable

import jax.numpy as jnp
from flax import traverse_util

from jaxcircuits.layers import Arrays, Variables
from jaxcircuits.taps import Network


def ones(network: Network, variables: Variables, masks: Arrays) -> Variables:
    """Variables for a pinned run: kernels equal mask / (kept weights of that output), biases 0, all else positive.

    Args:
        network: whose layers they are.
        variables: of the module; only the shapes are used.
        masks: {layer: (I, O) bool}; layers that are not named keep all their kernels.
    """
    kernels = {}
    for name, layer in network.layers.items():
        if layer.trouble:
            continue
        mask = jnp.asarray(masks.get(name, jnp.ones((layer.inputs, layer.outputs))), jnp.float32)
        share = mask / jnp.maximum(mask.sum(0), 1) / math.prod(layer.window)
        kernels[*layer.path, "kernel"] = share

    def positive(path, leaf):
        if path in kernels:
            return jnp.broadcast_to(kernels[path], leaf.shape)
        if path[-1] == "bias":
            return jnp.zeros_like(leaf)
        return jnp.full_like(leaf, 1 / math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else jnp.ones_like(leaf)

    flat = traverse_util.flatten_dict(variables["params"])
    params = traverse_util.unflatten_dict({path: positive(path, jnp.asarray(leaf)) for path, leaf in flat.items()})
    return {**variables, "params": params}


def with_masks(network: Network, variables: Variables, masks: Arrays) -> Variables:
    """The variables with each named layer's weights multiplied by its mask: a circuit's network.

    Masks are {layer: (I, O)}, of weights (K, I, O), of filters (O,); a filter without weights still has its bias.
    """
    return with_kernels(network, variables, masked_kernels(kernels(network, variables, tuple(masks)), masks))


def kernels(network: Network, variables: Variables, layers: Iterable[str]) -> Arrays:
    """The layers' weights as Flax has them: (h, w, I, O), (I, O) of dense layers."""
    params: dict = traverse_util.flatten_dict(variables["params"])
    return {name: params[(*network.layers[name].path, "kernel")] for name in layers}


def masked_kernels(weights: Arrays, masks: Arrays) -> Arrays:
    """`kernels` times masks of any granularity, as in `with_masks`."""
    return {name: weights[name] * (mask.reshape(weights[name].shape) if mask.ndim == 3 else mask)
            for name, mask in masks.items()}  # fmt: skip


def with_kernels(network: Network, variables: Variables, weights: Arrays) -> Variables:
    """The variables with other `kernels`; nothing is copied."""
    params: dict = traverse_util.flatten_dict(variables["params"])
    params |= {(*network.layers[name].path, "kernel"): w for name, w in weights.items()}
    return {**variables, "params": traverse_util.unflatten_dict(params)}
