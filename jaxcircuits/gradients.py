"""One forward pass and one pullback that all features share: what each layer saw, and each feature's gradient there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxcircuits.errors import InputError
from jaxcircuits.features import find_layer
from jaxcircuits.layers import Layer, Masks, Variables, before
from jaxcircuits.ops import feature_input_gradients, feature_maps, tiles_back
from jaxcircuits.sparse import Back
from jaxcircuits.taps import Network


class Gradients(NamedTuple):
    """What a criterion needs of a block of images, for some features.

    Attributes:
        cotangents: dL_n/da (F, N, P).
        outputs: {layer: dL_n/d(its output) (F, N, P, O)} for the layers before the target.
    """

    cotangents: Array
    outputs: dict[str, Array]


class Pullback(NamedTuple):
    """One forward pass, which all features share.

    Attributes:
        inputs: {layer: (N, H, W, C)}, the target layer's among them.
        supports: {layer: (N, P, O) bool}, where gradients can be non-zero; empty unless asked for.
        of: from the directions (F, O) of some features to their gradients.
    """

    inputs: dict[str, Array]
    supports: dict[str, Array]
    of: Callable[[Array], Gradients]


def feature_kernels(layer: Layer, variables: Variables, directions: Array, mask: Array | None = None) -> Array:
    """The target layer with one output channel a feature: directions (F, O) -> kernels (F, K, C).

    A direction mixes output channels, which is linear in them and so in the weights; a mask (I, O) is of a circuit.
    """
    w = layer.weight(variables)
    w = w.reshape(*w.shape[:2], layer.groups, -1)
    d = directions.reshape(len(directions), layer.groups, -1)
    if mask is None:
        kernels = jnp.einsum("kigo,fgo->fkgi", w, d)
    else:  # a product with ones adds up many times faster than `sum` where XLA fuses that with what is added up
        masked = w * (mask.reshape(w.shape[1:]) * d[:, None])[:, None]
        kernels = (masked @ jnp.ones(w.shape[-1])).swapaxes(2, 3)
    return kernels.reshape(len(directions), len(w), -1)


def activations(layer: Layer, variables: Variables, x: Array, directions: Array, mask: Array | None = None) -> Array:
    """The features' maps a (F, N, H, W) from the target layer's input x (N, H, W, C)."""
    maps = feature_maps(layer, x, feature_kernels(layer, variables, directions, mask))
    return maps + (directions @ layer.bias(variables))[:, None, None, None]


def pullback(
    network: Network,
    variables: Variables,
    target: str,
    layers: tuple[str, ...],
    images: Array,
    cotangents: Callable[[Array], Array],
    *,
    pinned: bool = False,
    circuit: bool = False,
    sparse: tuple[str, ...] = (),
    tiles: Masks | None = None,
) -> Pullback:
    """Run a network once, to differentiate features with respect to the outputs of the layers before them.

    Args:
        network, variables: the model, possibly with masked weights.
        target: the features' layer.
        layers: those wanted, the target possibly among them.
        images: (N, H, W, 3).
        cotangents: from the features' maps (F, N, H, W) to the objective's derivative with respect to them.
        pinned, circuit: as in `Network.run`, the latter for one feature.
        sparse: the layers whose input gradients are computed where they are not zero for every feature; the same to
            rounding.
        tiles: the kernels that `tiles_of` makes of other layers, whose input gradients are then made by tiles.
    """
    layer = network.layers[target]
    inner = tuple(name for name in layers if name != target)
    on = supports(network, variables, target, images, sparse) if sparse and inner else {}
    together = {name: Back(on=places) for name, places in on.items()}
    together |= {name: Back(tiles=kernels) for name, kernels in (tiles or {}).items()}

    first = next(iter(network.layers.values()))
    # whatever the module itself makes of its images, which may be less than zero
    entering = {first.name: jnp.ones((len(images), *first.input_maps))} if pinned and not first.trouble else {}

    def forward(probes: dict[str, Array]):
        options = {"together": together, "inputs": entering, "pinned": pinned, "circuit": circuit}
        inputs = network.run(variables, images, probes, **options)
        return inputs[target], {name: inputs[name] for name in (*inner, target)}

    x, back, inputs = jax.vjp(forward, network.probes(inner, len(images)), has_aux=True)

    def of(directions: Array) -> Gradients:
        c = cotangents(activations(layer, variables, x, directions))
        outputs = {}
        if inner:
            g = feature_input_gradients(layer, c, feature_kernels(layer, variables, directions))
            # not over an axis of one, where a choice between products would run them all
            outputs = jax.vmap(back)(g)[0] if len(g) > 1 else jax.tree.map(lambda own: own[None], back(g[0])[0])
        features, count = c.shape[:2]
        flat = {name: g.reshape(features, count, -1, network.layers[name].outputs) for name, g in outputs.items()}
        return Gradients(c.reshape(features, count, -1), flat)

    return Pullback(inputs, on, of)


def tiles_of(network: Network, variables: Variables, target: str, images: int, *, ready: bool) -> Masks:
    """The kernels of the convolutions before the target whose input gradients are faster by tiles, for so many images
    of all features, as tiles take them: {layer: (n * n, O, I)}. `ready`: they are made once for many of them."""
    layers = {n: la for n, la in before(network.layers, target).items() if la.ungrouped and not la.trouble}
    found = {n: tiles_back(la, la.kernel(variables), images, ready=ready) for n, la in layers.items()}
    return {name: tiles for name, tiles in found.items() if tiles is not None}


def supports(
    network: Network, variables: Variables, target: str, images: Array, names: tuple[str, ...] | None = None
) -> dict[str, Array]:
    """Where gradients can be non-zero, {layer: (N, P, O) bool}: at the ungrouped convolutions before the target, or
    some of them.

    What is zero for one random cotangent of the target's input is zero for every feature.
    """
    layers = before(network.layers, target)
    names = names or tuple(n for n, layer in layers.items() if layer.ungrouped and not layer.trouble)
    probes = network.probes(names, len(images))
    x, pullback = jax.vjp(lambda probes: network.run(variables, images, probes)[target], probes)
    # not normal ones, which every window of a pool would work out anew
    (found,) = pullback(jax.random.uniform(jax.random.key(0), x.shape, minval=1, maxval=2))
    return {name: (g != 0).reshape(len(images), -1, layers[name].outputs) for name, g in found.items()}


def scored_layers(network: Network, target: str, layers: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Which layers a feature's kernels are taken from, in call order: convolutions up to and with the target, and dense
    layers too if the target is one; or the given ones.

    Raises:
        InputError: an unknown layer, one that runs after the target, or one that cannot be scored.
    """
    names = list(network.layers)
    dense = find_layer(network.layers, target).kind == "dense"
    before = names[: names.index(target) + 1]
    if layers is None:
        chosen = [n for n in before if dense or network.layers[n].kind == "conv"]
    else:
        for name in layers:
            find_layer(network.layers, name)
        if late := [n for n in layers if n not in before]:
            raise InputError(f"layer {late[0]!r} runs after {target!r} and cannot be part of its circuit")
        chosen = [n for n in before if n in layers]
    if not chosen:
        raise InputError("no layer is left to score; expected at least one")
    for name in (*chosen, target):
        if trouble := network.layers[name].trouble:
            raise InputError(trouble)
    return tuple(chosen)
