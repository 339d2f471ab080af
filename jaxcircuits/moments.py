"""One pass of many circuits and the full network over the images: the moments that every measure follows from."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcircuits import masked, stems
from jaxcircuits.ablation import offsets_of_circuits
from jaxcircuits.chunks import cores, images_together, in_chunks
from jaxcircuits.data import batches, count, image_shape
from jaxcircuits.errors import check_count
from jaxcircuits.features import Features, Place, place_weights
from jaxcircuits.gradients import activations
from jaxcircuits.granularity import GRANULARITIES
from jaxcircuits.layers import Arrays, Masks, Variables
from jaxcircuits.masks import check_masks
from jaxcircuits.measures import Moments
from jaxcircuits.model import Model
from jaxcircuits.streams import side_by_side
from jaxcircuits.taps import Network
from jaxcircuits.variables import with_masks

# Features whose full maps are computed together.
CHUNK = 64
# Circuits that run at the same time on a CPU: a call for each core is faster than all cores on one.
AT_ONCE = 4


def moments_of(
    model: Model,
    images,
    features: Features,
    masks: Sequence[Arrays],
    ablation: str,
    offsets: Sequence[Arrays | None] | None,
    batch: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[Moments, tuple[str, ...]]:
    """The moments of K circuits of each feature, (F, K, N), and the features' labels; arguments as for `evaluate`."""
    if batch is not None:
        check_count("batch", batch)
    network = model.network(image_shape(images))
    features = features.resolve(network.layers)
    model.check_weights([features.layer])
    among = GRANULARITIES if ablation == "zero" else ("kernel", "filter")
    for mask in masks:
        check_masks(network.layers, mask, len(features), among=among)
    masks = [{name: np.asarray(m) for name, m in mask.items()} for mask in masks]
    number = count(images)
    batch = min(batch, number) if batch else images_together(network, number)
    added = offsets_of_circuits(model, network, images, masks, ablation, offsets, batch)
    places = features.places(number, batch)
    of_full = np.empty((len(OF_FULL), len(features), number), np.float32)
    of_circuit = np.empty((len(OF_CIRCUIT), len(features), len(masks), number), np.float32)
    outputs = network.layers[features.layer].outputs
    size = min(CHUNK, len(features))
    plan = Plan(network, features.layer, features.place)
    circuits = Circuits.prepared(network, model.variables, features.layer, masks, added)

    def judge(seen: Seen, f: int, k: int) -> None:
        """Feature f of the chunk, in its circuit k, on the block of images."""
        given = circuits.one(seen, seen.start + f, k)
        with jax.default_matmul_precision("highest"):  # each thread has its own
            found = _moments(plan, model.variables, *given, *seen.compared, jnp.int32(f), seen.block)
        of_circuit[:, seen.start + f, k, seen.done : seen.done + seen.real] = np.asarray(found)[:, : seen.real]

    with jax.default_matmul_precision("highest"), side_by_side(min(cores(), AT_ONCE)) as mapped:
        for start, part in zip(range(0, len(features), size), in_chunks(features, size), strict=True):
            d = jnp.asarray(part.matrix(outputs))
            done, here = 0, min(size, len(features) - start)  # the last chunk is filled up
            for block, real in batches(images, batch):
                block, given = jnp.asarray(block), jnp.asarray(places[done : done + batch])
                grown = circuits.grown(model.variables, block)
                *full, near, found = _full_maps(plan, circuits.near, model.variables, grown, d, given, block)
                of_full[:, start : start + here, done : done + real] = np.asarray(found)[:, :here, :real]
                seen = Seen(start, done, real, block, (d, *full), near, grown)
                mapped(functools.partial(judge, seen), *np.indices((here, len(masks))).reshape(2, -1).tolist())
                done += real
                progress(real * here)
    arrays = dict(zip(OF_FULL, of_full, strict=True)) | dict(zip(OF_CIRCUIT, of_circuit, strict=True))
    return Moments(**arrays), features.labels


Grown = Mapping[str, tuple[Array, Array | np.ndarray]]
"""{the layer behind the stems: them, and which of them is taken for each channel}"""


class Seen(NamedTuple):
    """A chunk of features in the full network on a block of images.

    Attributes:
        start, done, real: the first feature, the first image, and how many images the block has that are not filled up.
        block: the images (N, H, W, C).
        compared: the features' directions (F, O), their maps and where these count, as `_full_maps` returns them.
        near: the outputs of the layers that are near.
        grown: the stems, and the full network's choice of them.
    """

    start: int
    done: int
    real: int
    block: Array
    compared: tuple[Array, ...]
    near: Masks
    grown: Grown


class Circuits(NamedTuple):
    """K circuits of each feature, and which shortcuts there are to run them.

    Attributes:
        network: whose layers they are.
        masks, offsets: K of {layer: (F, ...)}.
        by_terms: for each of the K, the layers that are computed by the terms that their masks leave.
        near: those whose outputs in the full network are of use.
        pairs: {layer: its kernels (I, O, K)}.
        shared: what enters the second layer, made for all circuits together.
    """

    network: Network
    masks: Sequence[Mapping[str, np.ndarray]]
    offsets: Sequence[Arrays]
    by_terms: Sequence[tuple[str, ...]]
    near: tuple[str, ...]
    pairs: Masks
    shared: stems.Stems | None

    @classmethod
    def prepared(
        cls,
        network: Network,
        variables: Variables,
        target: str,
        masks: Sequence[Mapping[str, np.ndarray]],
        offsets: Sequence[Arrays],
    ) -> Circuits:
        """With every shortcut that there is for such masks."""
        shared = None if any(offsets) else stems.stems_of(network, variables, target, masks)
        by_terms = [masked.suited(network.layers, target, mask) for mask in masks]
        near = dict.fromkeys(name for names in by_terms for name in names[: masked.NEAR])
        if shared:
            by_terms = [tuple(name for name in names if name != shared.first) for names in by_terms]
        every = dict.fromkeys(itertools.chain(*by_terms))
        pairs = {name: masked.by_pairs(network.layers[name], variables) for name in every}
        return cls(network, masks, offsets, by_terms, tuple(name for name in near if name in every), pairs, shared)

    def grown(self, variables: Variables, images: Array) -> Grown:
        """The stems on these images."""
        if self.shared is None:
            return {}
        first, second, masks, full, _ = self.shared
        return {second: (stems.grown(self.network, first, second, variables, masks, images), full)}

    def one(self, seen: Seen, f: int, k: int) -> tuple[Any, ...]:
        """Of circuit k of feature f: masks that are multiplied into the weights, terms, stems and offsets."""
        mask = {name: m[f] for name, m in self.masks[k].items()}
        offsets = {name: np.asarray(offset[f]) for name, offset in self.offsets[k].items()}
        layers, names = self.network.layers, self.by_terms[k]
        terms = masked.all_terms(layers, names, mask, offsets, seen.near, self.pairs, len(seen.block))
        rest = {name: m for name, m in mask.items() if name not in terms}
        grown = {n: (stem, self.shared.chosen[k, f]) for n, (stem, _) in seen.grown.items()} if self.shared else {}
        return rest, terms, grown, offsets


# what is computed of one image, in this order
OF_FULL = ("count", "mean_y", "yy", "low_y", "high_y")
OF_CIRCUIT = ("mean_x", "xx", "low_x", "high_x", "xy", "error")


class Plan(NamedTuple):
    """What a compiled evaluation depends on besides its arguments."""

    network: Network
    target: str
    place: Place


def _mosaics(grown: Grown) -> Masks:
    return {name: stems.mosaic(*given) for name, given in grown.items()}


@functools.partial(jax.jit, static_argnames=("plan", "near"))
def _full_maps(
    plan: Plan, near: tuple[str, ...], variables, grown: Grown, directions: Array, places: Array, images: Array
) -> tuple[Array, Array, Masks, Array]:
    """The features in the full network (F, N, H, W), and where they count: 1 or 0, of the same shape; the outputs of
    the layers `near`; `OF_FULL` (5, F, N)."""
    network = plan.network
    layers, given = network.layers, _mosaics(grown)
    whole = masked.by_tiles(layers, plan.target, len(images))
    inputs = network.run(variables, images, inputs=given, terms=whole)  # of those that are near
    outputs = {name: masked.outputs(layers[name], variables, inputs[name]) for name in near}
    known = {name: masked.Whole(output) for name, output in outputs.items()}
    inputs = network.run(variables, images, inputs=given, terms=whole | known)
    maps = activations(layers[plan.target], variables, inputs[plan.target], directions)
    where = jnp.broadcast_to(place_weights(plan.place, maps, places), maps.shape)
    mean, off, low, high = _of_images(maps, where)
    return maps, where, outputs, jnp.stack([where.sum((-2, -1)), mean, (off * off).sum((-2, -1)), low, high])


@functools.partial(jax.jit, static_argnames="plan")
def _moments(
    plan: Plan,
    variables,
    masks,
    terms,
    grown: Grown,
    offsets: Masks,
    directions: Array,
    full: Array,
    where: Array,
    f: Array,
    images: Array,
) -> Array:
    """`OF_CIRCUIT` of feature f in its circuit (x) and in the full network (y): (6, N)."""
    masks, layers, offsets = dict(masks), plan.network.layers, dict(offsets)
    d, target = directions[f], masks.get(plan.target)
    own = masks.pop(plan.target) if target is not None and target.ndim == 2 else None
    variables = with_masks(plan.network, variables, masks)
    of_target = offsets.pop(plan.target, jnp.zeros(()))
    probes = {n: jnp.broadcast_to(a, (len(images), *layers[n].positions, a.size)) for n, a in offsets.items()}
    inputs = plan.network.run(variables, images, probes, terms=terms, inputs=_mosaics(grown))[plan.target]
    x = activations(layers[plan.target], variables, inputs, d[None], own)[0] + (d * of_target).sum()
    y, counts = full[f], where[f]
    mean, off, low, high = _of_images(x, counts)
    difference = (x - y) * counts
    products = [off * off, off * _of_images(y, counts)[1], difference * difference]
    xx, xy, error = (product.sum((-2, -1)) for product in products)
    return jnp.stack([mean, xx, low, high, xy, error])


def _of_images(values: Array, where: Array) -> tuple[Array, Array, Array, Array]:
    """Of maps (..., H, W), where they count: mean (...), differences from it (..., H, W), least, largest (...)."""
    mean = (values * where).sum((-2, -1)) / where.sum((-2, -1))
    low, high = (sign * jnp.where(where > 0, sign * values, jnp.inf).min((-2, -1)) for sign in (1, -1))
    return mean, (values - mean[..., None, None]) * where, low, high
