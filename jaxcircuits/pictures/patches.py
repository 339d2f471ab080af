"""Top patches: the parts of an image set that drive a feature most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxcircuits.data import Images, batches, image_shape
from jaxcircuits.data import count as count_images
from jaxcircuits.errors import InputError
from jaxcircuits.features import Features
from jaxcircuits.layers import Arrays
from jaxcircuits.model import Model
from jaxcircuits.peaks import peaks
from jaxcircuits.pictures.circuits import check_circuit, in_circuit
from jaxcircuits.receptive import ReceptiveField, fields

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
        if number < 1:
            raise InputError(f"{name} is {number}; expected at least 1")
    shape = image_shape(images)
    if shape[-1] != 3:
        raise InputError(f"the images have {shape[-1]} channels; patches are cut from images with 3")
    network = model.network(shape)
    features = features.resolve(network.layers)
    model.check_weights([features.layer])
    own = check_circuit(model, features, masks, offsets)
    number = count_images(images)
    places, kept = features.places(number, batch), min(count, number)
    field = fields(network, model.variables)[features.layer]
    best = _Best.nothing(len(features), field)
    directions = jnp.asarray(features.matrix(network.layers[features.layer].outputs))
    parts = [slice(f, f + 1) for f in range(len(features))] if own else [slice(None)]
    circuits = [in_circuit(network, model.variables, masks, offsets, i if own else None) for i in range(len(parts))]
    done = 0
    for block, real in batches(images, batch):
        given, found = jnp.asarray(places[done : done + batch]), []
        for part, circuit in zip(parts, circuits, strict=True):
            asked = network, features.layer, features.place, *circuit, directions[part], given, jnp.asarray(block)
            with jax.default_matmul_precision("highest"):
                found.append(peaks(*asked))
        values, rows, columns = (np.concatenate(a)[:, :real] for a in zip(*found, strict=True))
        pixels = np.round(255 * (block[:real] * np.array(model.std, np.float32) + np.array(model.mean, np.float32)))
        at = np.stack([rows, columns], -1)
        best = best.merged(values, at, np.clip(pixels, 0, 255).astype(np.uint8), done, kept, field)
        done += real
        progress(real * len(features))
    every = images.names if isinstance(images, Images) else tuple(map(str, range(number)))
    names = tuple(tuple(every[i] for i in row) for row in best.images)
    return Patches(features.labels, best.pictures, best.values, best.images, best.positions, names)


@dataclass(frozen=True)
class _Best:
    """The strongest so far, with the attributes of `Patches`."""

    values: np.ndarray
    images: np.ndarray
    positions: np.ndarray
    pictures: np.ndarray

    @classmethod
    def nothing(cls, features: int, field: ReceptiveField) -> _Best:
        numbers = np.empty((features, 0), int)
        pictures = np.empty((features, 0, *field.size, 3), np.uint8)
        return cls(numbers.astype(np.float32), numbers, np.empty((features, 0, 2), int), pictures)

    def merged(
        self, values: np.ndarray, positions: np.ndarray, block: np.ndarray, first: int, kept: int, field: ReceptiveField
    ) -> _Best:
        """With a block of uint8 images, the first of which is number `first`."""
        old = self.values.shape[1]
        every = np.concatenate([self.values, values], 1)
        order = np.argsort(-every, axis=1, kind="stable")[:, :kept]  # the earlier image first
        numbers = np.concatenate([self.images, np.broadcast_to(np.arange(first, first + len(block)), values.shape)], 1)
        places = np.concatenate([self.positions, positions], 1)
        pictures = np.empty((*order.shape, *field.size, 3), np.uint8)
        for f, k in np.ndindex(order.shape):
            j = order[f, k]
            pictures[f, k] = self.pictures[f, j] if j < old else _cut(block[j - old], field, *positions[f, j - old])
        rows = np.arange(len(order))[:, None]
        return _Best(every[rows, order], numbers[rows, order], places[rows, order], pictures)


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
