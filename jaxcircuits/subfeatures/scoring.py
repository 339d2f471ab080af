"""Scores image by image: a feature's statistic is a mean over images, of which here every summand is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxcircuits.chunks import SHARE, Sizes, device_memory
from jaxcircuits.criteria import OVER_IMAGES
from jaxcircuits.criteria import criterion as find_criterion
from jaxcircuits.data import Images, batches, count, image_shape
from jaxcircuits.errors import InputError
from jaxcircuits.features import Features
from jaxcircuits.granularity import shape_at
from jaxcircuits.layers import Masks
from jaxcircuits.model import Model
from jaxcircuits.options import PRECISIONS, Options
from jaxcircuits.passes import program
from jaxcircuits.paths import relevant
from jaxcircuits.peaks import peaks
from jaxcircuits.plans import Plan, arranged
from jaxcircuits.scores import Record, Scores

ROWS = 64  # images whose kernels are looked at together


@dataclass(frozen=True, eq=False)
class ImageScores:
    """One feature's scores on every image of a set.

    Attributes:
        features: the one feature.
        values: {layer: (N, I, O) float32}, of filters (N, O); what is too large for memory lies in temporary files.
        relevant: {layer: (I, O) bool}.
        layers: their names in call order.
        record: how the scores came about.
        activations: (N,), the feature's value at each image's position, the largest where there are several.
        positions: (N, 2), row and column of that value.
        names: of the images.
    """

    features: Features
    values: Mapping[str, np.ndarray]
    relevant: Mapping[str, np.ndarray]
    layers: tuple[str, ...]
    record: Record
    activations: np.ndarray
    positions: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.activations)

    def mean_over(self, groups: Sequence[np.ndarray]) -> Scores:
        """The scores of G groups of images (arrays of their numbers), with the groups in the place of features.

        They are those of `score` on the images of a group alone: {layer: (G, I, O)}.
        """
        values, possible = {}, {}
        for name in self.layers:
            values[name] = jnp.stack([jnp.asarray(_mean(self.values[name], rows)) for rows in groups])
            possible[name] = jnp.broadcast_to(self.relevant[name], (len(groups), *self.relevant[name].shape))
        return Scores(values, possible, self.layers, self.record)


def _mean(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Over these rows, few of which are in memory at a time."""
    blocks = (rows[start : start + ROWS] for start in range(0, len(rows), ROWS))
    total = sum((values[block].sum(0, dtype=np.float64) for block in blocks), np.zeros(values.shape[1:]))
    return (total / len(rows)).astype(values.dtype)


def image_scores(
    model: Model,
    images,
    features: Features,
    *,
    criterion: str = "snip",
    absolute: str = "per_image",
    layers: Sequence[str] | None = None,
    granularity: str = "kernel",
    precision: str = "float32",
    progress: Callable[[int], object] = lambda done: None,
) -> ImageScores:
    """Score the kernels for one feature on every image by itself, in one pass over the images.

    Args:
        model, images, criterion, layers, granularity, precision: as for `score`; a criterion that looks at images,
            "snip" or "actgrad".
        features: one feature. Without a position it is looked at each image's strongest in the full network
            (`position="argmax"`), as in the paper: circuits are then those of what made the image a strong one.
        absolute: "per_image" or "none"; "whole_set", which of one image is the former, is refused.
        progress: called with 1 for each image.

    Raises:
        InputError: as `score`; several features; another criterion; granularity "weight".
    """
    features = at_peak(features).resolve(model.network(image_shape(images)).layers)
    if len(features) != 1:
        raise InputError(f"scores image by image are of one feature; got {len(features)}")
    stream = Stream(
        model, images, features, criterion=criterion, absolute=absolute, layers=layers, granularity=granularity,
        precision=precision,
    )  # fmt: skip
    number, found = len(stream.places), []
    values = _space({name: (number, *shape) for name, shape in stream.shapes().items()})
    for n, (scores, peak) in enumerate(stream):
        for name in stream.layers:
            values[name][n] = scores[name][0]
        found.append([a[0, 0] for a in peak])
        progress(1)
    activations, rows, columns = np.array(found).T
    names = images.names if isinstance(images, Images) else tuple(map(str, range(number)))
    possible = {name: np.asarray(mask[0]) for name, mask in stream.relevant.items()}
    at = np.stack([rows, columns], -1).astype(int)
    return ImageScores(stream.features, values, possible, stream.layers, stream.record, activations, at, names)


class Stream:
    """Scores of F features on one image after another, never more than one image's at once.

    Iterating yields ({layer: (F, I, O)}, (activations (F, 1), rows (F, 1), columns (F, 1))), image by image.
    Arguments are those of `image_scores`, but features may be many, and no position is everywhere.
    """

    def __init__(
        self, model: Model, images, features: Features, *, criterion: str = "snip", absolute: str = "per_image",
        layers: Sequence[str] | None = None, granularity: str = "kernel", precision: str = "float32",
    ) -> None:  # fmt: skip
        if criterion not in OVER_IMAGES:
            raise InputError(f"{criterion} is not made image by image; expected one of {', '.join(OVER_IMAGES)}")
        if absolute == "whole_set":
            raise InputError("absolute='whole_set' sums over images first; expected per_image or none")
        if granularity == "weight":
            raise InputError("scores image by image are of kernels or filters, not of weights")
        options = Options(criterion, absolute, layers, granularity, precision=precision)
        network = model.network(image_shape(images))
        self.model, self.images, self.features = model, images, features.resolve(network.layers)
        self.layers = options.scored(network, features.layer)
        model.check_weights((*self.layers, features.layer))
        rule = find_criterion(criterion, absolute, granularity)
        looked = self.features.objective, self.features.place
        self.plan = Plan(network, features.layer, self.layers, rule, *looked, PRECISIONS[precision], granularity)
        self.relevant: Masks = relevant(network, model.variables, self.features, self.layers)
        number = count(images)
        self.places = self.features.places(number)
        looked = self.features.objective, number, None, precision
        self.record = Record(criterion, absolute, *looked, granularity=granularity)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one image's scores for one feature."""
        return {name: shape_at(self.plan.network.layers[name], self.plan.granularity) for name in self.layers}

    def __iter__(self) -> Iterator[tuple[Mapping[str, np.ndarray], tuple[np.ndarray, ...]]]:
        plan, variables, network = self.plan, self.model.variables, self.plan.network
        size = Sizes(len(self.features), images=1, streams=1)
        compiled, weights = program(plan, variables, size), arranged(plan, variables, size)
        directions = jnp.asarray(self.features.matrix(network.layers[plan.target].outputs))
        one = jnp.int32(1)
        for n, (block, _) in enumerate(batches(self.images, 1)):
            image, place = jnp.asarray(block), jnp.asarray(self.places[n : n + 1], jnp.int32)
            nothing = plan.nothing(len(self.features))
            sums = compiled.step(nothing, variables, weights, directions, place, image, one)
            scores = compiled.finish((sums,), weights, directions, self.relevant, one)
            with jax.default_matmul_precision(plan.precision):
                looked = ((plan.target, plan.place),)
                (peak,) = peaks(network, looked, None, variables, {}, (directions,), (place,), image)
            yield {name: np.asarray(scores[name]) for name in self.layers}, tuple(map(np.asarray, peak))


def at_peak(features: Features) -> Features:
    """The features at each image's strongest position, unless they have a position."""
    return replace(features, position="argmax") if features.position is None else features


def _space(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Arrays in memory or, were they too large for it, in temporary files that go with them."""
    size = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if size <= SHARE * device_memory():
        return {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    return {name: _on_disk(shape) for name, shape in shapes.items()}


def _on_disk(shape: tuple[int, ...]) -> np.memmap:
    with tempfile.TemporaryFile() as file:  # the mapping keeps it until it goes
        return np.memmap(file, np.float32, "w+", shape=shape)
