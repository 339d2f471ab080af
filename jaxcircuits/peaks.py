"""Features' maps on images, in the full network or a circuit, and where they are largest."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from jaxcircuits.features import Place, place_weights, strongest
from jaxcircuits.gradients import activations
from jaxcircuits.layers import Masks, Variables
from jaxcircuits.taps import Network


def maps_in(
    network: Network, target: str, variables: Variables, offsets: Masks, directions: Array, images: Array
) -> Array:
    """The features' maps (F, N, H, W), with (masked) weights and offsets {layer: (O,)} added to layers' outputs."""
    before = {name: offset for name, offset in offsets.items() if name != target}
    shapes = {name: (len(images), *network.layers[name].positions, network.layers[name].outputs) for name in before}
    probes = {name: jnp.broadcast_to(offset, shapes[name]) for name, offset in before.items()}
    maps = activations(network.layers[target], variables, network.run(variables, images, probes)[target], directions)
    return maps + (directions @ offsets[target])[:, None, None, None] if target in offsets else maps


@functools.partial(jax.jit, static_argnames=("network", "target", "place"))
def peaks(
    network: Network,
    target: str,
    place: Place,
    variables: Variables,
    offsets: Masks,
    directions: Array,
    places: Array,
    images: Array,
) -> tuple[Array, Array, Array]:
    """The largest value of each map where the feature is looked at, its row and its column: (F, N) each."""
    maps = maps_in(network, target, variables, offsets, directions, images)
    maps = jnp.where(place_weights(place, maps, places) > 0, maps, -jnp.inf)
    return maps.max((-2, -1)), *strongest(maps)
