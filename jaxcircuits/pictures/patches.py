"""Top patches: the parts of an image set that drive a feature most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcircuits.data import Images, batches, image_shape
from jaxcircuits.data import count as count_images
from jaxcircuits.errors import InputError, check_count
from jaxcircuits.features import Features, Place
from jaxcircuits.layers import Arrays, Masks, Variables
from jaxcircuits.model import Model
from jaxcircuits.peaks import peaks
from jaxcircuits.pictures.circuits import check_circuit, in_circuit
from jaxcircuits.receptive import ReceptiveField, fields
from jaxcircuits.taps import Network

COUNT, BATCH = 9, 16
GREY = 128  # beyond the image's edge


@dataclass(frozen=True, eq=False)
class Patches:
    """The parts of K images that drive each of F features most, the strongest first.

    Attributes:
        labels: the features', F of them.
        pictures: (F, K, h, w, 3) uint8: what the position sees, all of one size; grey beyond the image.
        values: of the feature (F, K).
        images: which image it is, from 0 on (F, K).
        positions: row and column in the feature's map (F, K, 2).
        names: of the images, or their numbers, K for each feature.
    """

    labels: tuple[str, ...]
    pictures: np.ndarray
    values: np.ndarray
    images: np.ndarray
    positions: np.ndarray
    names: tuple[tuple[str, ...], ...]


def top_patches(
    model: Model,
    images,
    features: Features,
    *,
    count: int = COUNT,
    masks: Arrays | None = None,
    offsets: Arrays | None = None,
    batch: int = BATCH,
    progress: Callable[[int], object] = lambda done: None,
) -> Patches:
    """Find the images that drive each feature most, and cut out what its strongest position sees.

    Each image counts once, with the largest value of the feature's map, or with that at the features' position. Of
    equal values the earlier image comes first, and within an image the first position in row-major order. Images are
    read once and not kept.

    Args:
        model: the network; images of three colours.
        images: N of them, as for `score`.
        features: F of them; the objective does not matter.
        count: patches of each feature, K; N if there are fewer images.
        masks, offsets: of circuits in which the features are looked at, as for `visualise`.
        batch: images in one device call.
        progress: called with the number of features times images done since the last call.

    Raises:
        InputError: an unknown layer, channel or position, no images, a count below 1, masks that do not fit.
    """
    for name, number in (("count", count), ("batch", batch)):
        check_count(name, number)
    shape = image_shape(images)
    if shape[-1] != 3:
        raise InputError(f"the images have {shape[-1]} channels; patches are cut from images with 3")
    network = model.network(shape)
    features = features.resolve(network.layers)
    own = check_circuit(model, features, masks, offsets)
    circuits = range(len(features)) if own else [None]
    asked = [
        ([features if f is None else features[f : f + 1]], in_circuit(network, model.variables, masks, offsets, f))
        for f in circuits
    ]
    found = strongest(model, images, asked, count=count, cut=_cut, batch=batch, progress=progress)
    values, numbers, places, pictures = (np.concatenate(parts) for parts in zip(*found, strict=True))
    every = images.names if isinstance(images, Images) else tuple(map(str, range(count_images(images))))
    names = tuple(tuple(every[i] for i in row) for row in numbers)
    return Patches(features.labels, pictures, values, numbers, places, names)


class Best(NamedTuple):
    """The strongest of F features: `values`, `images`, `positions` and `pictures` of `Patches`.

    The pictures are (F, K) lists, if they are of different sizes.
    """

    values: np.ndarray
    images: np.ndarray
    positions: np.ndarray
    pictures: Sequence[Sequence[np.ndarray]]

    @classmethod
    def nothing(cls, features: int) -> Best:
        numbers = np.empty((features, 0), int)
        return cls(numbers.astype(np.float32), numbers, np.empty((features, 0, 2), int), [[]] * features)


Cut = Callable[[np.ndarray, ReceptiveField, int, int], np.ndarray]


def strongest(
    model: Model,
    images,
    asked: Sequence[tuple[Sequence[Features], tuple[Variables, Masks]]],
    *,
    count: int,
    cut: Cut,
    batch: int = BATCH,
    whole: bool = False,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Best]:
    """`top_patches` of features of any layers, in one pass over the images, and one through the network a circuit.

    Args:
        model, images, count, batch, progress: as there.
        asked: some features and the variables and offsets {layer: (O,)} of the circuit in which they are looked at.
        cut: makes a picture of an image (h, w, 3) uint8, the receptive field and a position.
        whole: run all channels of a layer, whichever are asked for: one program for all circuits of a layer.

    Returns:
        A `Best` for each of the `Features`.
    """
    network = model.network(image_shape(images))
    seen = fields(network, model.variables)
    number = count_images(images)
    parts = [_Part.of(network, model, some, circuit, number, batch, whole) for some, circuit in asked]
    model.check_weights([layer for part in parts for layer, _ in part.looked])
    best = [Best.nothing(len(rows)) for part in parts for rows in part.rows]
    done = 0
    for block, real in batches(images, batch):
        pixels = np.round(255 * (block[:real] * np.array(model.std, np.float32) + np.array(model.mean, np.float32)))
        pixels, found = np.clip(pixels, 0, 255).astype(np.uint8), []
        for part in parts:
            given = tuple(jnp.asarray(places[done : done + batch]) for places in part.places)
            with jax.default_matmul_precision("highest"):
                peak = peaks(network, part.looked, part.full, *part.circuit, part.directions, given, jnp.asarray(block))
            for rows, (layer, _), (values, h, w) in zip(part.rows, part.looked, peak, strict=True):
                at = np.stack([h, w], -1)[rows, :real]
                found.append((seen[layer], np.asarray(values)[rows, :real], at))
        best = [_merged(old, *new, pixels, done, count, cut) for old, new in zip(best, found, strict=True)]
        done += real
        progress(real * sum(len(rows) for part in parts for rows in part.rows))
    return best


class _Part(NamedTuple):
    """Features that are looked at in one circuit, as `peaks` takes them; `rows` are theirs among what it returns."""

    looked: tuple[tuple[str, Place], ...]
    full: Variables | None
    circuit: tuple[Variables, Masks]
    directions: tuple[Array | None, ...]
    places: tuple[np.ndarray, ...]
    rows: tuple[np.ndarray, ...]

    @classmethod
    def of(
        cls,
        network: Network,
        model: Model,
        some: Sequence[Features],
        circuit: tuple[Variables, Masks],
        images: int,
        batch: int,
        whole: bool,
    ) -> _Part:
        resolved = [features.resolve(network.layers) for features in some]
        matrices = [
            None if whole and f.channels is not None else f.matrix(network.layers[f.layer].outputs) for f in resolved
        ]
        outside = circuit[0] is not model.variables and any(f.place == "argmax" for f in resolved)
        each = list(zip(resolved, matrices, strict=True))
        return cls(
            tuple((f.layer, f.place) for f in resolved),
            model.variables if outside else None,
            circuit,
            tuple(None if matrix is None else jnp.asarray(matrix) for matrix in matrices),
            tuple(f.places(images, batch) for f in resolved),
            tuple(np.array(f.channels) if matrix is None else np.arange(len(f)) for f, matrix in each),
        )


def _merged(
    best: Best,
    field: ReceptiveField,
    values: np.ndarray,
    positions: np.ndarray,
    block: np.ndarray,
    first: int,
    count: int,
    cut: Cut,
) -> Best:
    """The strongest with a block of uint8 images, the first of which is number `first`."""
    old = best.values.shape[1]
    every = np.concatenate([best.values, values], 1)
    order = np.argsort(-every, axis=1, kind="stable")[:, :count]  # the earlier image first
    numbers = np.concatenate([best.images, np.broadcast_to(np.arange(first, first + len(block)), values.shape)], 1)
    places = np.concatenate([best.positions, positions], 1)
    pictures = [
        [best.pictures[f][j] if j < old else cut(block[j - old], field, *positions[f, j - old]) for j in row]
        for f, row in enumerate(order)
    ]
    rows = np.arange(len(order))[:, None]
    return Best(every[rows, order], numbers[rows, order], places[rows, order], pictures)


def _cut(image: np.ndarray, field: ReceptiveField, h: int, w: int) -> np.ndarray:
    """What position (h, w) sees of an image, grey where that lies beyond its edge."""
    seen, frame = field.box(h, w), []
    for box, size in zip(seen, field.size, strict=True):
        length = box.stop - box.start
        low = size - length if box.start == 0 else 0  # cut off at the top or left, or else at the bottom or right
        frame.append(slice(low, low + length))
    patch = np.full((*field.size, image.shape[-1]), GREY, np.uint8)
    patch[tuple(frame)] = image[seen]
    return patch
