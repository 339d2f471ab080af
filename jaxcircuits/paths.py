"""Which kernels lie on a path from the pixels to a feature: in the whole network (relevant), in a circuit (effective).

Found in the network itself, whatever its architecture: with biases 0, normalisations the identity, kernels positive and
every layer's output pinned to 1 where positive, they are the kernels whose gradient is not zero. Nothing cancels there,
saturates or underflows, as it would with the absolute weights, as long as what stands between the layers takes positive
numbers to positive ones, as ReLU, pooling, sums, products and gates do. A network that subtracts there (a concatenated
ReLU of -x) may have more paths than are found; where none is found through a layer that has a gradient, that is said.
"""

from __future__ import annotations

import functools
import weakref

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcircuits.errors import InputError
from jaxcircuits.features import Features
from jaxcircuits.gradients import pullback, scored_layers
from jaxcircuits.granularity import GRANULARITIES, masks_at
from jaxcircuits.layers import Arrays, Masks, Variables
from jaxcircuits.masks import check_masks
from jaxcircuits.model import Model
from jaxcircuits.ops import split_patches
from jaxcircuits.taps import Network
from jaxcircuits.variables import ones


def relevant_kernels(
    model: Model,
    features: Features,
    *,
    layers: tuple[str, ...] | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> Masks:
    """The kernels from which a path leads to each feature: {layer: (F, I, O) bool}.

    Args:
        model: whose network it is; weights do not matter.
        features: F of them; a direction's path begins at every channel that it touches.
        layers: those asked for, by default all that `score` would score.
        image_shape: (H, W, C) of the images, by default the model's nominal size.

    Raises:
        InputError: features or layers that the network does not have, images of a shape that it cannot take, or a
            network between whose layers positive numbers do not stay positive.
    """
    network = model.network(image_shape)
    features = features.resolve(network.layers, places=False)
    return relevant(network, model.variables, features, scored_layers(network, features.layer, layers))


def relevant(network: Network, variables: Variables, features: Features, layers: tuple[str, ...]) -> Masks:
    """`relevant_kernels` for resolved features and layers."""
    layer = network.layers[features.layer]
    directions = features.matrix(layer.outputs) != 0
    # features that touch the same groups of the target layer share all that comes before it
    touched = directions.reshape(len(directions), layer.groups, -1).any(-1)
    kinds, kind = np.unique(touched, axis=0, return_inverse=True)
    everything = np.repeat(kinds, layer.outputs // layer.groups, axis=1).astype(np.float32)
    known = _KNOWN.setdefault(network, {})
    key = features.layer, layers, kinds.tobytes()
    slot = key[:2] if len(kinds) == 1 else "several"  # each chunk of a grouped layer has others
    there, found = known.get(slot, (None, {}))
    if there != key:
        found = _on_path(network, features.layer, layers, variables, {}, jnp.asarray(everything))
        _check(network, features.layer, variables, found, jnp.asarray(everything))
        known[slot] = key, found
    masks = _per_feature(features.layer, found, jnp.asarray(kind.reshape(-1)), jnp.asarray(directions))
    return {name: masks[name] for name in layers}  # `jit` sorts dictionaries


def _check(network: Network, target: str, variables: Variables, found: Masks, directions: Array) -> None:
    """Raise an InputError where a layer has a gradient but no path was found through it."""
    lost = {name: np.flatnonzero(~np.asarray(mask.any((1, 2)))) for name, mask in found.items()}
    lost = {name: features for name, features in lost.items() if len(features)}
    if not lost:
        return
    image = jax.random.uniform(jax.random.key(0), (1, *network.image_shape))
    there = _has_gradient(network, target, tuple(lost), variables, image, directions)
    for name, features in lost.items():
        if np.asarray(there[name])[features].any():
            raise InputError(
                f"a gradient leads from {name!r} to {target!r}, but no path of positive numbers: between its layers "
                f"{type(network.module).__name__} subtracts or limits values, and relevant kernels cannot be told there"
            )


@functools.partial(jax.jit, static_argnames=("network", "target", "layers"))
def _has_gradient(
    network: Network, target: str, layers: tuple[str, ...], variables: Variables, image: Array, directions: Array
) -> dict[str, Array]:
    """Whether some kernel of a layer has one in the network as it is: {layer: (F,) bool}."""
    back = pullback(network, variables, target, layers, image, jnp.ones_like)
    found = back.of(directions)
    there = {name: g.any((1, 2, 3)) for name, g in found.outputs.items()} | {target: found.cotangents.any((1, 2))}
    return {name: back.inputs[name].any() & there[name] for name in layers}


# What was found for the features of a layer at once, with what was asked; it does not depend on weights. One of each
# layer stays, and one of features that touch several groups.
_KNOWN: weakref.WeakKeyDictionary[Network, dict] = weakref.WeakKeyDictionary()


@functools.partial(jax.jit, static_argnames="target")
def _per_feature(target: str, found: Masks, kind: Array, directions: Array) -> Masks:
    masks = {name: mask[kind] for name, mask in found.items()}
    return masks | ({target: masks[target] & directions[:, None, :]} if target in masks else {})


def effective_kernels(
    model: Model, features: Features, masks: Arrays, *, image_shape: tuple[int, int, int] | None = None
) -> Masks:
    """The kept kernels that still lie on a path from the pixels to the feature: {layer: (F, I, O) bool}.

    effective = m & (dy / dm > 0 in the pinned network with kernels m), as this module's beginning says; the effective
    size of a pruned network as in Vysogorets and Kempe (arXiv 2107.02306), exactly.

    Args:
        model: whose network it is.
        features: F of them.
        masks: {layer: (F, I, O) bool}, of weights (F, K, I, O), of filters (F, O); layers that are not named keep all.
            A kernel is kept if its filter or one of its weights is.
        image_shape: (H, W, C) of the images, by default the model's nominal size.

    Raises:
        InputError: features that the network does not have; masks of other shapes, or of layers that do not lead
            to the features.
    """
    network = model.network(image_shape)
    features = features.resolve(network.layers, places=False)
    check_masks(network.layers, masks, len(features), among=GRANULARITIES)
    layers = scored_layers(network, features.layer, tuple(masks))
    every = {name: jnp.ones((1, network.layers[name].inputs, 1), bool) for name in layers}
    masks = masks_at(masks, "kernel", relevant=every)
    directions = jnp.asarray(features.matrix(network.layers[features.layer].outputs) != 0, jnp.float32)
    found = []
    for f in range(len(features)):
        kept = {name: jnp.asarray(mask[f], bool) for name, mask in masks.items()}
        on_path = _on_path(network, features.layer, layers, model.variables, kept, directions[f : f + 1])
        found.append({name: on_path[name] & kept[name] for name in layers})
    return {name: jnp.concatenate([masks[name] for masks in found]) for name in layers}


@functools.partial(jax.jit, static_argnames=("network", "target", "layers"))
def _on_path(
    network: Network, target: str, layers: tuple[str, ...], variables: Variables, masks: Masks, directions: Array
) -> Masks:
    """The kernels with a gradient in the pinned network, for directions (F, O) of zeros and ones."""
    positive = ones(network, variables, masks)
    image = jnp.ones((1, *network.image_shape))
    back = pullback(network, positive, target, layers, image, jnp.ones_like, pinned=True)
    found = back.of(directions)
    reached = {}
    for name in layers:
        layer = network.layers[name]
        seen = split_patches(layer, back.inputs[name]).sum(2)[0]
        g = found.cotangents[..., None] * directions[:, None, None] if name == target else found.outputs[name]
        # nothing is negative here, so that no path cancels another
        g = g.reshape(len(directions), len(seen), layer.groups, -1)
        reached[name] = jnp.einsum("pgi,fpgo->figo", seen, g).reshape(-1, layer.inputs, layer.outputs) > 0
    return reached
