"""What enters the second layer of a circuit: a mosaic of channels that many circuits share.

A first layer sees the few channels of an image, so that there are few ways to mask an output channel of it, at most
2^I. Where nothing but channel-wise operations (normalisation, ReLU, pooling) lead to the second layer, and nothing
around it, one forward pass for each way makes every channel that any circuit can ask for.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcircuits.layers import Arrays, Variables
from jaxcircuits.masked import Whole
from jaxcircuits.ops import convolve
from jaxcircuits.receptive import depends
from jaxcircuits.taps import Network

# First layers of at most so many input channels.
FEW = 4
# Stems may be so many times as large as the first layer's output: a pool behind it makes room for several.
LARGE = 2


class Stems(NamedTuple):
    """How a set of circuits shares its stems.

    Attributes:
        first, second: the layers before and behind.
        masks: of the first layer (S, I, O), one for each stem; S is a power of two.
        full: from which stem the full network takes each channel (O,).
        chosen: from which a circuit does (..., O).
    """

    first: str
    second: str
    masks: np.ndarray
    full: np.ndarray
    chosen: np.ndarray


def stems_of(network: Network, variables: Variables, target: str, masks: Sequence[Arrays]) -> Stems | None:
    """The stems of circuits with the masks {layer: (F, I, O)}, a sequence of K; `chosen` is (K, F, O).

    None where they do not pay: but on a CPU, where the first layer's masks are not of kernels or its output is not
    smaller by the time it gets to the second.
    """
    first = next(iter(network.layers))
    if jax.default_backend() != "cpu" or first == target or any(first not in mask for mask in masks):
        return None
    layer = network.layers[first]
    if any(mask[first].dtype != bool or mask[first].ndim != 3 for mask in masks):
        return None
    if layer.groups > 1 or layer.inputs > FEW or (second := _second(network, variables)) is None:
        return None
    every = np.stack([mask[first] for mask in masks])
    bits = np.arange(layer.inputs)[:, None]
    codes = (every << bits).sum(2).reshape(-1, layer.outputs)
    codes = np.concatenate([codes, [[(1 << layer.inputs) - 1] * layer.outputs]])  # and the full network
    chosen, slots = np.empty(codes.shape, np.int32), []
    for o in range(layer.outputs):
        found, chosen[:, o] = np.unique(codes[:, o], return_inverse=True)
        slots.append(found)
    number = 1 << (max(map(len, slots)) - 1).bit_length()
    if number * np.prod(network.layers[second].input_shape) > LARGE * np.prod(layer.output_shape):
        return None
    padded = np.stack([np.pad(found, (0, number - len(found)), "edge") for found in slots], -1)
    distinct = (padded[:, None] >> bits & 1).astype(bool)
    return Stems(first, second, distinct, chosen[-1], chosen[:-1].reshape(*every.shape[:2], -1))


_SECOND: weakref.WeakKeyDictionary[Network, str | None] = weakref.WeakKeyDictionary()


def _second(network: Network, variables: Variables) -> str | None:
    """The second layer, if it alone takes what the first one puts out, and channel by channel."""
    if network not in _SECOND:
        _SECOND[network] = _look_for_second(network, variables)
    return _SECOND[network]


def _look_for_second(network: Network, variables: Variables) -> str | None:
    first, second, *_ = [*network.layers.values(), None, None]
    if first is None or second is None or first.trouble or second.trouble:
        return None
    shape = jax.ShapeDtypeStruct((1, *first.positions, first.outputs), jnp.float32)
    image = jax.ShapeDtypeStruct((1, *network.image_shape), jnp.float32)
    given = jax.ShapeDtypeStruct((1, *second.input_maps), jnp.float32)

    def run(probe, variables, images, given):
        return network.run(variables, images, {first.name: probe}, inputs=given)

    (found,) = depends(run, (3,), shape, variables, image, {})
    (around,) = depends(run, (3,), shape, variables, image, {second.name: given})
    straight, channels = found[second.name], np.arange(first.outputs)
    alike = (
        straight.axis == 3 and np.array_equal(straight.first, channels) and np.array_equal(straight.end, channels + 1)
    )
    return second.name if alike and not any(part.end.any() for part in around.values()) else None


@functools.partial(jax.jit, static_argnames=("network", "first", "second"))
def grown(network: Network, first: str, second: str, variables: Variables, masks: Array, images: Array) -> Array:
    """The stems (N, H, W, S, C) of the first layer's masks (S, I, O), whose terms each input channel makes once."""
    layer = network.layers[first]
    x, w = network.run(variables, images)[first], layer.kernel(variables)
    outputs = layer.bias(variables)
    for i, mask in enumerate(masks.swapaxes(0, 1)):
        outputs = outputs + convolve(layer, x[..., i : i + 1], w[:, :, i : i + 1])[..., None, :] * mask

    def stem(output: Array) -> Array:
        return network.run(variables, images, terms={first: Whole(output)})[second]

    return jax.vmap(stem, -2, -2)(outputs)


def mosaic(stems: Array, chosen: Array | np.ndarray) -> Array:
    """What enters the second layer (N, H, W, C), channel c of stem chosen[c].

    Half of the stems is left after each bit of the choice: several times as fast on a CPU as a gather of channels.
    """
    while (half := stems.shape[-2] // 2) > 0:
        upper = (jnp.asarray(chosen) & half) != 0
        stems = jnp.where(upper, stems[..., half:, :], stems[..., :half, :])
    return stems[..., 0, :]
