"""What stands in for a removed kernel: nothing, or its mean contribution over images and positions.

Kernel (i, o) adds A[n, p, i, o] = sum over k of w[k, i, o] x[n, p, k, i] to output o, x being what position p of image
n sees. Its mean over images and positions is linear in the mean of x: one small array a layer serves every mask.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import Array, lax

from jaxcircuits.data import batches, count, image_shape
from jaxcircuits.errors import InputError, check_count
from jaxcircuits.features import find_layer
from jaxcircuits.layers import Arrays, Layer, Variables
from jaxcircuits.masks import check_masks
from jaxcircuits.model import Model
from jaxcircuits.taps import Network, batch_norms

ABLATIONS = ("zero", "mean")
Offsets = dict[str, np.ndarray]


def check_ablation(ablation: str) -> None:
    """Raise an InputError for an unknown ablation."""
    if ablation not in ABLATIONS:
        raise InputError(f"unknown ablation {ablation!r}; expected one of {', '.join(ABLATIONS)}")


def mean_offsets(model: Model, images, masks: Arrays, *, batch: int = 16) -> Offsets:
    """What mean ablation adds to the outputs of layers that have lost kernels.

    offset[f, o] = sum over removed kernels i of A[i, o],  A[i, o] the mean of kernel (i, o)'s contribution to output o
    over images and positions in the *full* network. (Mean ablation as in arXiv 2211.00593, of kernels.)

    Args:
        model: the full network.
        images: as for `score`; those that a circuit was scored on, if it is to be judged on others.
        masks: {layer: (F, I, O) bool}; layers that are not named keep all their kernels.
        batch: images in one device call.

    Returns:
        {layer: (F, O) float32}, in the units of the layer's output; 0 where no kernel is removed.

    Raises:
        InputError: as `correlation`.
    """
    network = model.network(image_shape(images))
    check_masks(network.layers, masks)
    return offsets(mean_contributions(model, images, tuple(masks), batch=batch), masks)


def offsets(contributions: Mapping[str, np.ndarray], masks: Arrays) -> Offsets:
    """`mean_offsets` from the kernels' mean contributions {layer: (I, O)}, which all masks share."""

    def of_layer(mask: Array | np.ndarray, means: np.ndarray) -> np.ndarray:
        # one feature after another: all in float64 would be eight times the masks
        return np.stack([((1 - np.asarray(m, np.float64)) * means).sum(0) for m in mask]).astype(np.float32)

    return {name: of_layer(mask, contributions[name]) for name, mask in masks.items()}


def mean_contributions(model: Model, images, layers: Sequence[str], *, batch: int = 16) -> dict[str, np.ndarray]:
    """Each kernel's mean contribution to its output over images and positions: {layer: (I, O) float64}.

    A[i, o] = sum over k of w[k, i, o] * mean over n, p of x[n, p, k, i].

    Raises:
        InputError: an unknown layer, one that cannot be scored, or one whose weights are missing.
    """
    check_count("batch", batch)
    network = model.network(image_shape(images))
    for name in layers:
        if trouble := find_layer(network.layers, name).trouble:
            raise InputError(trouble)
    model.check_weights(layers)
    sums: dict[str, np.ndarray] = {}
    with jax.default_matmul_precision("highest"):
        for block, real in batches(images, batch):
            found = _mean_patches(network, tuple(layers), model.variables, jnp.asarray(block))
            for name, means in found.items():  # (N, K, C); sums over images in float64
                sums[name] = sums.get(name, 0) + np.asarray(means, np.float64)[:real].sum(0)
    number, contributions = count(images), {}
    for name in layers:
        layer = network.layers[name]
        w = np.asarray(layer.weight(model.variables), np.float64)
        w = w.reshape(*w.shape[:2], layer.groups, -1)
        seen = (sums[name] / number).reshape(-1, layer.groups, layer.inputs)
        contributions[name] = np.einsum("kigo,kgi->igo", w, seen).reshape(layer.inputs, layer.outputs)
    return contributions


@functools.partial(jax.jit, static_argnames=("network", "layers"))
def _mean_patches(network: Network, layers: tuple[str, ...], variables, images: Array) -> dict[str, Array]:
    """What the window's places see in the mean over positions, image by image: {layer: (N, K, C)}."""
    inputs = network.run(variables, images)
    return {name: _mean_patch(network.layers[name], inputs[name]) for name in layers}


def _mean_patch(layer: Layer, x: Array) -> Array:
    """x (N, H, W, C) -> (N, K, C): strided slices summed over rows, then over columns."""
    x = jnp.pad(x, ((0, 0), *layer.padding, (0, 0)))
    for axis in (0, 1):
        size, stride, dilation = layer.positions[axis], layer.strides[axis], layer.dilation[axis]
        starts = range(0, layer.window[axis] * dilation, dilation)
        # rows: (N, H, W, C) -> (N, h, W, C); columns: (N, h, W, C) -> (N, h, w, C)
        views = [lax.slice_in_dim(x, a, a + (size - 1) * stride + 1, stride, axis + 1).mean(axis + 1) for a in starts]
        x = jnp.stack(views, axis=axis + 1)
    return x.reshape(len(x), math.prod(layer.window), -1)


def offsets_of_circuits(
    model: Model,
    network: Network,
    images,
    masks: Sequence[Arrays],
    ablation: str,
    given: Sequence[Arrays | None] | None,
    batch: int,
) -> list[Arrays]:
    """What is added to the layers' outputs in each circuit, {layer: (F, O)}: where none is given, means over images."""
    check_ablation(ablation)
    if ablation == "zero":
        if given is not None:
            raise InputError("offsets are for ablation='mean'; with 'zero' nothing stands in for removed kernels")
        return [{}] * len(masks)
    known = [None] * len(masks) if given is None else list(given)
    if len(known) != len(masks):
        raise InputError(f"there are offsets of {len(known)} circuits; the masks are {len(masks)}")
    means = {}
    for offset, mask in zip(known, masks, strict=True):
        if offset is not None:
            check_offsets(network.layers, offset, mask)
    if None in known:
        layers = tuple(dict.fromkeys(name for mask in masks for name in mask))
        means = mean_contributions(model, images, layers, batch=batch)
    return [offsets(means, mask) if a is None else a for a, mask in zip(known, masks, strict=True)]


def check_offsets(layers: Mapping[str, Layer], given: Arrays, masks: Arrays) -> None:
    """Raise an InputError for offsets of layers without a mask, of other shapes, or that are no finite numbers."""
    if unknown := sorted(set(given) - set(masks)):
        raise InputError(f"there are offsets for {unknown[0]!r}, which has no mask, so that no kernel of it is removed")
    for name, offset in given.items():
        shape, expected = np.shape(offset), (len(masks[name]), layers[name].outputs)
        if shape != expected:
            raise InputError(f"the offsets of {name!r} have shape {shape}; expected {expected}")
        if not np.isfinite(np.asarray(offset)).all():
            raise InputError(f"the offsets of {name!r} are not all finite")


def folded(network: Network, variables: Variables, given: Arrays) -> Variables:
    """Variables of a network that computes what another does whose layers' outputs have offsets {layer: (O,)} added.

    They go into the layer's bias or, where it has none, into the running mean of the BatchNorm that its output goes
    into: mean' = mean - offset. What leaves BatchNorm is then the same; the layer's own output still lacks them.

    Raises:
        InputError: a layer with an offset has neither.
    """
    params: dict = traverse_util.flatten_dict(variables["params"])
    stats: dict = traverse_util.flatten_dict(variables.get("batch_stats", {}))
    norms: dict[str, tuple[str, ...]] = {}
    for name, offset in given.items():
        bias = *network.layers[name].path, "bias"
        if bias in params:
            params[bias] = params[bias] + offset
        elif np.any(offset):
            norms = norms or batch_norms(network, variables)
            mean = *norms.get(name, ()), "mean"
            if mean not in stats:
                raise InputError(NO_PLACE.format(name=name))
            stats[mean] = stats[mean] - offset
    found = {**variables, "params": traverse_util.unflatten_dict(params)}
    if norms:
        found["batch_stats"] = traverse_util.unflatten_dict(stats)
        _check_folded(network, variables, found, {n: jnp.asarray(a) for n, a in given.items()})
    return found


NO_PLACE = (
    "the means of removed kernels cannot be exported: layer {name!r} has neither a bias nor a BatchNorm that alone is "
    "given its output; extract with zero ablation"
)


def _check_folded(network: Network, variables: Variables, new: Variables, given: Arrays) -> None:
    """Raise an InputError where a layer sees something else: an output goes into BatchNorm and into another branch."""

    @jax.jit
    def differences(variables, new, image):
        probes = network.probes(tuple(given), 1)
        probes = {name: probe + given[name] for name, probe in probes.items()}
        with_offsets, without = network.run(variables, image, probes), network.run(new, image)
        return {n: (jnp.abs(x - without[n]).max(), jnp.abs(x).max()) for n, x in with_offsets.items()}

    with jax.default_matmul_precision("highest"):
        found = differences(variables, new, jax.random.normal(jax.random.key(0), (1, *network.image_shape)))
    if any(error > 1e-3 * scale for error, scale in found.values()):
        raise InputError(NO_PLACE.format(name=next(name for name, offset in given.items() if np.any(offset))))
