"""Features' maps on images, in the full network or a circuit, and where they are largest."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from jaxcircuits.features import Place, place_weights, strongest
from jaxcircuits.gradients import activations
from jaxcircuits.layers import Masks, Variables
from jaxcircuits.masked import outputs
from jaxcircuits.taps import Network


def maps_in(
    network: Network, target: str, variables: Variables, offsets: Masks, directions: Array, images: Array
) -> Array:
    """The features' maps (F, N, H, W), with (masked) weights and offsets {layer: (O,)} added to layers' outputs."""
    return _maps(network, (target,), variables, offsets, (directions,), images)[0]


def _maps(
    network: Network,
    targets: Sequence[str],
    variables: Variables,
    offsets: Masks,
    directions: Sequence[Array | None],
    images: Array,
) -> list[Array]:
    """`maps_in` of several layers, from one forward pass; all channels of a layer where there are no directions."""
    before = {name: offset for name, offset in offsets.items() if (name,) != tuple(targets)}
    shapes = {name: (len(images), *network.layers[name].positions, network.layers[name].outputs) for name in before}
    probes = {name: jnp.broadcast_to(offset, shapes[name]) for name, offset in before.items()}
    inputs, found = network.run(variables, images, probes), []
    for name, d in zip(targets, directions, strict=True):
        layer = network.layers[name]
        if d is None:
            maps = jnp.moveaxis(outputs(layer, variables, inputs[name]), -1, 0)
        else:
            maps = activations(layer, variables, inputs[name], d)
        if (offset := offsets.get(name)) is not None:
            maps += (offset if d is None else d @ offset)[:, None, None, None]
        found.append(maps)
    return found


@functools.partial(jax.jit, static_argnames=("network", "looked"))
def peaks(
    network: Network,
    looked: tuple[tuple[str, Place], ...],
    full: Variables | None,
    variables: Variables,
    offsets: Masks,
    directions: tuple[Array | None, ...],
    places: tuple[Array, ...],
    images: Array,
) -> list[tuple[Array, Array, Array]]:
    """The largest value of each map where its feature is looked at, its row and its column: (F, N) each.

    Args:
        looked: layer and `Features.place` of some features, for which all else is given in tuples; one layer may be
            there several times.
        full: the full network's variables, if the others are a circuit's: "argmax" is in the full network.
        directions: (F, O), or None for all channels of the layer.
        places: (N, 2), read only where the place is "given".
    """
    targets = tuple(layer for layer, _ in looked)
    maps = _maps(network, targets, variables, offsets, directions, images)
    whole = maps if full is None else _maps(network, targets, full, {}, directions, images)
    found = []
    for (_, place), here, there, given in zip(looked, maps, whole, places, strict=True):
        seen = jnp.where(place_weights(place, there, given) > 0, here, -jnp.inf)
        found.append((seen.max((-2, -1)), *strongest(seen)))
    return found
