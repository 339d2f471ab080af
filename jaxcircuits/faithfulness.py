"""How well a circuit computes its feature: the feature's maps in the masked network against those in the full one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxcircuits.errors import InputError
from jaxcircuits.evaluation import Evaluation
from jaxcircuits.features import Features
from jaxcircuits.layers import Arrays
from jaxcircuits.masks import tops
from jaxcircuits.measures import Moments, pearson, pooled
from jaxcircuits.model import Model
from jaxcircuits.moments import moments_of
from jaxcircuits.options import Options
from jaxcircuits.scores import Scores
from jaxcircuits.scoring import Level, score_levels

KEEPS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01, 0.005, 0.001)
"""The 13 keep levels of the paper's curves."""


def correlation(
    model: Model,
    images,
    features: Features,
    masks: Arrays,
    *,
    ablation: str = "zero",
    offsets: Arrays | None = None,
    batch: int | None = None,
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
        batch: images in one device call, by default a few.

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
    keeps: float | Sequence[float] = KEEPS,
    *,
    ablation: str = "zero",
    batch: int | None = None,
) -> np.ndarray:
    """`correlation` of the circuits that keep each of these fractions of the relevant kernels: (F, K) float64.

    Scores that depend on how much is kept ("force", "learned") are made again for each fraction, with these images and
    as many rounds or steps; of a `schedule` nothing but its length counts.

    Args:
        model, images, features, ablation, batch: as for `correlation`.
        scores: of these features, by which kernels are kept.
        keeps: K fractions, by default the paper's 13; a number is one of them.

    Raises:
        InputError: as `correlation`, or a fraction that is not above 0 and at most 1.
    """
    keeps = np.ravel(keeps).tolist()
    if not keeps:
        raise InputError("keeps is empty; expected at least one fraction")
    record, levels = scores.record, [scores] * len(keeps)
    if record.steps is not None:
        options = Options(
            record.criterion, record.absolute or "per_image", scores.layers, record.granularity,
            seed=record.seed or 0, precision=record.precision,
        )  # fmt: skip
        steps = [Level(keep=keep, steps=record.steps) for keep in keeps]
        levels = score_levels(model, images, features, steps, options)
    masks = tops(levels, [{"keep": keep} for keep in keeps])
    return correlations(model, images, features, masks, ablation=ablation, batch=batch)


def evaluate(
    model: Model,
    images,
    features: Features,
    masks: Arrays | Sequence[Arrays],
    *,
    ablation: str = "zero",
    offsets: Arrays | Sequence[Arrays | None] | None = None,
    batch: int | None = None,
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
        batch: images in one device call, by default a few.
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
    moments, labels = moments_of(model, images, features, [*masks, empty], ablation, given, batch, progress)
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
    batch: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> np.ndarray:
    """`correlation` for K masks of each feature, which share the full network's maps: (F, K) float64."""
    moments, labels = moments_of(model, images, features, masks, ablation, offsets, batch, progress)
    _warn_of_constants(moments, labels, stacklevel=4)
    return pearson(moments)


def _warn_of_constants(moments: Moments, labels: Sequence[str], *, stacklevel: int) -> None:
    found = pooled(moments)
    for f, _ in np.argwhere((found.constant_x | found.constant_y)[..., 0]):
        what = "full network" if found.constant_y[f, 0, 0] else "circuit"
        warnings.warn(f"{labels[f]} is constant in the {what}, so that r is not defined", stacklevel=stacklevel)
