"""How well a circuit computes its feature: the feature's maps in the masked network against those in the full one."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcircuits import masked
from jaxcircuits.ablation import offsets_of_circuits
from jaxcircuits.chunks import cores, in_chunks
from jaxcircuits.data import batches, count, image_shape
from jaxcircuits.errors import InputError
from jaxcircuits.evaluation import Evaluation
from jaxcircuits.features import Features, Place, place_weights
from jaxcircuits.gradients import activations
from jaxcircuits.granularity import GRANULARITIES
from jaxcircuits.layers import Arrays, Masks
from jaxcircuits.masks import check_masks, top_kernels
from jaxcircuits.measures import Moments, pearson, pooled
from jaxcircuits.model import Model
from jaxcircuits.scores import Scores
from jaxcircuits.scoring import Level, score_levels
from jaxcircuits.streams import side_by_side
from jaxcircuits.taps import Network, with_masks

KEEPS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01, 0.005, 0.001)
"""The 13 keep levels of the paper's curves."""

# Features whose full maps are computed together, and images in one device call.
CHUNK, BATCH = 64, 16
# Circuits that run at the same time on a CPU: a call for each core is faster than all cores on one.
AT_ONCE = 4


def correlation(
    model: Model,
    images,
    features: Features,
    masks: Arrays,
    *,
    ablation: str = "zero",
    offsets: Arrays | None = None,
    batch: int = BATCH,
) -> np.ndarray:
    """Pearson correlation r of each feature in its circuit with the feature in the full network: (F,) float64.

    With x and y the two over all images and positions (or each image's one position, where the features have one),
    flattened as in the paper:  r = sum (x - mean x)(y - mean y) / sqrt(sum (x - mean x)^2  sum (y - mean y)^2).

    Args:
        model: the full network.
        images: as for `score`; other images than those that scored judge a circuit fairly.
        features: F of them.
        masks: {layer: (F, I, O) bool}, of weights (F, K, I, O), of filters (F, O); layers that are not named keep all.
        ablation: what stands in for a removed kernel: nothing ("zero", as in the paper) or its "mean" contribution
            over images and positions, see `mean_offsets`; not for masks of weights.
        offsets: {layer: (F, O)} for mean ablation; by default the means over these images.
        batch: images in one device call.

    Returns:
        r between -1 and 1; nan, with a warning that names the feature, where one of the two is constant.

    Raises:
        InputError: as `score`; masks or offsets of other layers or shapes than the model's; an unknown ablation.
    """
    given = None if offsets is None else [offsets]
    return correlations(model, images, features, [masks], ablation=ablation, offsets=given, batch=batch)[:, 0]


def curve(
    model: Model,
    images,
    features: Features,
    scores: Scores,
    keeps: Sequence[float] = KEEPS,
    *,
    ablation: str = "zero",
    batch: int = BATCH,
) -> np.ndarray:
    """`correlation` of the circuits that keep each of these fractions of the relevant kernels: (F, K) float64.

    Scores that depend on how much is kept ("force", "learned") are made again for each fraction, with these images.
    """
    record, levels = scores.record, [scores] * len(keeps)
    if record.steps is not None:
        levels = score_levels(
            model, images, features, [Level(keep=keep, steps=record.steps) for keep in keeps],
            criterion=record.criterion, absolute=record.absolute or "per_image", layers=scores.layers,
            granularity=record.granularity, precision=record.precision, seed=record.seed or 0,
        )  # fmt: skip
    masks = [top_kernels(found, keep=keep) for found, keep in zip(levels, keeps, strict=True)]
    return correlations(model, images, features, masks, ablation=ablation, batch=batch)


def evaluate(
    model: Model,
    images,
    features: Features,
    masks: Arrays | Sequence[Arrays],
    *,
    ablation: str = "zero",
    offsets: Arrays | Sequence[Arrays] | None = None,
    batch: int = BATCH,
    progress: Callable[[int], object] = lambda done: None,
) -> Evaluation:
    """Run K circuits of each feature and the full network on images; every measure of `measures` follows from that.

    Args:
        model: the full network.
        images: N of them, as for `score`; other images than those that scored judge a circuit fairly.
        features: F of them.
        masks: {layer: (F, I, O) bool}, or K of them, of the same layers; layers that are not named keep all kernels.
        ablation: what stands in for a removed kernel, "zero" or "mean", as for `correlation`.
        offsets: {layer: (F, O)} of mean ablation, or K of them; by default the means over these images. The empty
            circuit always has the means over these images.
        batch: images in one device call.
        progress: called with the number of features times images done since the last call.

    Returns:
        What the measures need, and the measures as its methods: `evaluate(...).correlation()` is (F, K). Warns of
        circuits that are constant, by the feature's name.

    Raises:
        InputError: as `correlation`, and masks of different layers.
    """
    masks = [masks] if isinstance(masks, Mapping) else list(masks)
    if not masks:
        raise InputError("there are no masks; expected at least one")
    if other := [mask for mask in masks if set(mask) != set(masks[0])]:
        differing = sorted(set(other[0]) ^ set(masks[0]))
        raise InputError(f"the masks cover different layers: {differing} stand in some of them only")
    empty = {name: np.zeros(np.shape(mask), bool) for name, mask in masks[0].items()}
    given = [offsets] if isinstance(offsets, Mapping) else offsets
    if given is not None:
        if len(given) != len(masks):
            raise InputError(f"there are offsets of {len(given)} circuits; the masks are {len(masks)}")
        given = [*given, None]
    moments, labels = _moments_of(model, images, features, [*masks, empty], ablation, given, batch, progress)
    found = Evaluation(labels, moments.circuits(slice(-1)), moments.circuits(slice(-1, None)))
    _warn_of_constants(found.moments, labels, stacklevel=3)
    return found


def correlations(
    model: Model,
    images,
    features: Features,
    masks: Sequence[Arrays],
    *,
    ablation: str = "zero",
    offsets: Sequence[Arrays] | None = None,
    batch: int = BATCH,
    progress: Callable[[int], object] = lambda done: None,
) -> np.ndarray:
    """`correlation` for K masks of each feature, which share the full network's maps: (F, K) float64."""
    moments, labels = _moments_of(model, images, features, masks, ablation, offsets, batch, progress)
    _warn_of_constants(moments, labels, stacklevel=4)
    return pearson(moments)


def _warn_of_constants(moments: Moments, labels: Sequence[str], *, stacklevel: int) -> None:
    found = pooled(moments)
    for f, _ in np.argwhere((found.constant_x | found.constant_y)[..., 0]):
        what = "full network" if found.constant_y[f, 0, 0] else "circuit"
        warnings.warn(f"{labels[f]} is constant in the {what}, so that r is not defined", stacklevel=stacklevel)


def _moments_of(
    model: Model,
    images,
    features: Features,
    masks: Sequence[Arrays],
    ablation: str,
    offsets: Sequence[Arrays | None] | None,
    batch: int,
    progress: Callable[[int], object],
) -> tuple[Moments, tuple[str, ...]]:
    """The moments of K circuits of each feature, (F, K, N), and the features' labels."""
    if batch < 1:
        raise InputError(f"batch is {batch}; expected at least 1")
    network = model.network(image_shape(images))
    features = features.resolve(network.layers)
    model.check_weights([features.layer])
    among = GRANULARITIES if ablation == "zero" else ("kernel", "filter")
    for mask in masks:
        check_masks(network.layers, mask, len(features), among=among)
    added = offsets_of_circuits(model, network, images, masks, ablation, offsets, batch)
    number = count(images)
    places = features.places(number, batch)
    of_full = np.empty((len(OF_FULL), len(features), number), np.float32)
    of_circuit = np.empty((len(OF_CIRCUIT), len(features), len(masks), number), np.float32)
    directions = features.matrix(network.layers[features.layer].outputs)
    size = min(CHUNK, len(features))
    plan = Plan(network, features.layer, features.place)
    by_terms = [masked.suited(network.layers, features.layer, mask) for mask in masks]
    near = tuple(dict.fromkeys(name for names in by_terms for name in names[: masked.NEAR]))

    def judge(f: int, k: int) -> None:
        """Feature f of the chunk, in its circuit k, on the block of images."""
        mask = {name: m[start + f] for name, m in masks[k].items()}
        more = {name: np.asarray(offset[start + f]) for name, offset in added[k].items()}
        terms = masked.all_terms(network.layers, by_terms[k], mask, more, outputs)
        rest = {name: m for name, m in mask.items() if name not in terms}
        with jax.default_matmul_precision("highest"):  # each thread has its own
            found = _moments(plan, model.variables, rest, terms, more, d, full, where, jnp.int32(f), block)
        of_circuit[:, start + f, k, done : done + real] = np.asarray(found)[:, :real]

    with jax.default_matmul_precision("highest"), side_by_side(min(cores(), AT_ONCE)) as mapped:
        for start, part in zip(range(0, len(features), size), in_chunks(features, size), strict=True):
            d = jnp.asarray(part.matrix(directions.shape[1]))
            done, here = 0, min(size, len(features) - start)  # the last chunk is filled up
            for block, real in batches(images, batch):
                block, given = jnp.asarray(block), jnp.asarray(places[done : done + batch])
                full, where, outputs, found = _full_maps(plan, near, model.variables, d, given, block)
                of_full[:, start : start + here, done : done + real] = np.asarray(found)[:, :here, :real]
                mapped(judge, *np.indices((here, len(masks))).reshape(2, -1).tolist())
                done += real
                progress(real * here)
    arrays = dict(zip(OF_FULL, of_full, strict=True)) | dict(zip(OF_CIRCUIT, of_circuit, strict=True))
    return Moments(**arrays), features.labels


# what is computed of one image, in this order
OF_FULL = ("count", "mean_y", "yy", "low_y", "high_y")
OF_CIRCUIT = ("mean_x", "xx", "low_x", "high_x", "xy", "error")


class Plan(NamedTuple):
    """What a compiled evaluation depends on besides its arguments."""

    network: Network
    target: str
    place: Place


@functools.partial(jax.jit, static_argnames=("plan", "near"))
def _full_maps(
    plan: Plan, near: tuple[str, ...], variables, directions: Array, places: Array, images: Array
) -> tuple[Array, Array, Masks, Array]:
    """The features in the full network (F, N, H, W), and where they count: 1 or 0, of the same shape; the outputs of
    the layers `near`; `OF_FULL` (5, F, N)."""
    network = plan.network
    inputs = network.run(variables, images)
    maps = activations(network.layers[plan.target], variables, inputs[plan.target], directions)
    where = jnp.broadcast_to(place_weights(plan.place, maps, places), maps.shape)
    outputs = {name: masked.outputs(network.layers[name], variables, inputs[name]) for name in near}
    mean, off, low, high = _of_images(maps, where)
    return maps, where, outputs, jnp.stack([where.sum((-2, -1)), mean, (off * off).sum((-2, -1)), low, high])


@functools.partial(jax.jit, static_argnames="plan")
def _moments(
    plan: Plan,
    variables,
    masks,
    terms,
    offsets: Masks,
    directions: Array,
    full: Array,
    where: Array,
    f: Array,
    images: Array,
) -> Array:
    """`OF_CIRCUIT` of feature f in its circuit (x) and in the full network (y): (6, N)."""
    variables = with_masks(plan.network, variables, masks)
    layers, offsets = plan.network.layers, dict(offsets)
    of_target = offsets.pop(plan.target, jnp.zeros(()))
    probes = {n: jnp.broadcast_to(a, (len(images), *layers[n].positions, a.size)) for n, a in offsets.items()}
    inputs = plan.network.run(variables, images, probes, terms=terms)[plan.target]
    x = activations(layers[plan.target], variables, inputs, directions[f][None])[0] + (directions[f] * of_target).sum()
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
