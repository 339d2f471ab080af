"""Features looked at in circuits: masked weights are weights like any others."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxcircuits.errors import InputError
from jaxcircuits.features import Features
from jaxcircuits.layers import Arrays, Masks, Variables
from jaxcircuits.masks import check_masks
from jaxcircuits.model import Model
from jaxcircuits.taps import Network
from jaxcircuits.variables import with_masks


def check_circuit(model: Model, features: Features, masks: Arrays | None, offsets: Arrays | None) -> bool:
    """Whether each feature has a circuit of its own; an InputError if masks or offsets fit neither all nor each."""
    masks, offsets = masks or {}, offsets or {}
    axes = {np.ndim(mask) for mask in masks.values()} | {np.ndim(offset) + 1 for offset in offsets.values()}
    if len(axes) > 1 or not axes <= {2, 3}:
        raise InputError("masks are {layer: (I, O)} for all features or {layer: (F, I, O)}, and offsets alike")
    own = axes == {3}
    check_masks(model.layers, {name: np.asarray(mask)[... if own else None] for name, mask in masks.items()})
    for name, array in {**masks, **offsets}.items():
        if own and len(array) != len(features):
            raise InputError(f"there are {len(array)} masks or offsets of {name!r} for {len(features)} features")
    for name, offset in offsets.items():
        if name not in masks or np.shape(offset)[-1] != model.layers[name].outputs:
            raise InputError(f"the offsets of {name!r} have shape {np.shape(offset)} and fit no mask")
    return own


def in_circuit(
    network: Network, variables: Variables, masks: Arrays | None, offsets: Arrays | None, feature: int | None
) -> tuple[Variables, Masks]:
    """The variables and offsets {layer: (O,)} of one feature's circuit, or of the one that all features share."""
    chosen = (...,) if feature is None else (feature,)
    mask, offset = ({name: jnp.asarray(a[chosen]) for name, a in (given or {}).items()} for given in (masks, offsets))
    return with_masks(network, variables, mask) if mask else variables, offset
