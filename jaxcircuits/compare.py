"""The paper's experiment: how faithful circuits are, criterion by criterion, over how much is kept."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxcircuits.ablation import Offsets, check_ablation, mean_contributions, offsets
from jaxcircuits.chunks import in_chunks
from jaxcircuits.comparison import Comparison, LayerComparison, average
from jaxcircuits.costs import Cost, measured
from jaxcircuits.criteria import STEPS
from jaxcircuits.data import batches, count, image_shape
from jaxcircuits.errors import InputError
from jaxcircuits.faithfulness import KEEPS
from jaxcircuits.features import Features
from jaxcircuits.layers import Masks
from jaxcircuits.manifest import identity, image_source, model_source, versions
from jaxcircuits.masks import keep_counts, tops
from jaxcircuits.measures import interval, pearson, pooled, resamples
from jaxcircuits.model import Model
from jaxcircuits.moments import moments_of
from jaxcircuits.options import Options, able, check_steps, resolved
from jaxcircuits.scoring import Level, score_levels

LEVEL, RESAMPLES = 0.95, 1000


def compare(
    model: Model,
    images,
    features: Features | Iterable[Features],
    *,
    test_images=None,
    criteria: Sequence[str] | None = None,
    keeps: Sequence[float] = KEEPS,
    absolute: str = "per_image",
    layers: Sequence[str] | None = None,
    granularity: str = "kernel",
    ablation: str = "zero",
    steps: int | None = None,
    seed: int = 0,
    precision: str = "float32",
    chunk: int | None = None,
    batch: int | None = None,
    level: float = LEVEL,
    number: int = RESAMPLES,
    progress: Callable[[int], object] = lambda done: None,
) -> Comparison:
    """Score the features by each criterion on one set of images, and judge the circuits on another.

    Intervals are percentiles of the bootstrap over test images; every criterion is judged on the same resamples. A
    circuit that is constant has no r (nan; `Comparison.constant` counts them); in averages over features it counts as
    0. A feature that is constant in the full network has none either, and is left out of averages, as is a layer that
    has no other.

    Args:
        model, images, absolute, layers, granularity, steps, seed, precision, chunk, batch: as for `score`.
        features: one `Features` or several, each with one or many features.
        test_images: those that judge; by default `images`, which flatters whatever has learned from them.
        criteria: those to compare, by default all that have such scores (`absolute`, `granularity`).
        keeps: fractions of the relevant kernels, by default the paper's 13.
        ablation: what stands in for a removed kernel: nothing ("zero", as in the paper) or its "mean" contribution over
            the images that score; scores and masks are the same.
        level: of the intervals.
        number: of resamples.
        progress: called with the number of features times criteria done since the last call.

    Returns:
        r, its averages over the features of a layer, which criterion wins where, and what each cost.

    Raises:
        InputError: as `score`, for any of the criteria; at once, before anything is scored, where that can be known.
            Warns when test images are among the images.
    """
    test_images = images if test_images is None else test_images
    criteria = able(absolute, granularity) if criteria is None else criteria
    asked = (Options(name, absolute, layers, granularity, steps, seed, precision, chunk, batch) for name in criteria)
    options = {one.criterion: one for one in asked}
    keeps = tuple(dict.fromkeys(np.ravel(keeps).tolist()))  # NumPy's numbers have no place in a manifest
    given: Any = {"test_images": test_images, "keeps": keeps, "ablation": ablation, "level": level, "number": number}
    every, manifest = question(model, images, features, [*options.values()], **given)
    network = model.network(image_shape(images))
    tests = count(test_images)
    weights = np.concatenate([np.ones((1, tests)), resamples(tests, number, seed)])
    _warn_of_shared(images, test_images)

    largest = max(options.values(), key=lambda one: one.by_weight)
    totals: dict[str, _Total] = {}
    for f, names in every:
        size = largest.sizes(network, names, images, len(f)).features
        means = mean_contributions(model, images, names) if ablation == "mean" else None
        for start, part in zip(range(0, len(f), size), in_chunks(f, size), strict=True):
            real = min(size, len(f) - start)  # the last chunk is filled up
            total = totals.setdefault(f.layer, _Total(options, level))
            rows = []
            for name, one in options.items():
                levels = Level.each(name, [{"keep": keep} for keep in keeps], steps)
                with measured() as cost:
                    scores = score_levels(model, images, part, levels, one)
                    jax.block_until_ready(scores)
                total.costs[name] += cost
                masks = tops(scores, [{"keep": keep} for keep in keeps], part.labels)
                masks = [{layer: mask[:real] for layer, mask in kept.items()} for kept in masks]
                del scores
                added = None if means is None else [offsets(means, mask) for mask in masks]
                rows.append(_judged(model, test_images, part[:real], masks, added, weights))
                progress(real)
            total.add(part[:real].labels, *(np.stack(arrays, 1) for arrays in zip(*rows, strict=True)))
    found = {name: total.result() for name, total in totals.items()}
    means = _mean([total.means() for total in totals.values()])
    overall = average(means, level) if len(found) > 1 else None
    return Comparison(tuple(options), keeps, found, overall, manifest)


def question(
    model: Model,
    images,
    features: Features | Iterable[Features],
    options: Sequence[Options],
    *,
    test_images,
    keeps: Sequence[float],
    ablation: str = "zero",
    level: float = LEVEL,
    number: int = RESAMPLES,
) -> tuple[list[tuple[Features, tuple[str, ...]]], dict[str, Any]]:
    """The features that `compare` would score, with the layers, and its manifest, with the same errors.

    Args:
        options: of each criterion, the same but for its name.
        model, images, features, test_images, keeps, ablation, level, number: as for `compare`.
    """
    check_ablation(ablation)
    for name, given in (("criteria", options), ("keeps", keeps)):
        if not given:
            raise InputError(f"{name} are empty; expected at least one")
    for keep in keeps:
        keep_counts(np.array([1]), keep, None)
    interval(np.zeros((1, 1, 1)), level)
    asked = options[0]
    check_steps(asked.steps, [one.criterion for one in options])
    if ablation == "mean" and asked.granularity == "weight":
        raise InputError("mean ablation is of kernels and filters; weights are removed to zero")
    every = resolved(model, images, features, asked)
    for f, _ in every:
        f.resolve(model.network(image_shape(test_images)).layers).places(count(test_images))
    manifest = {
        **model_source(model),
        "images": image_source(images),
        "test_images": image_source(test_images),
        "features": [{**identity(one), "objective": f.objective} for f, _ in every for one in f],
        "criteria": [one.criterion for one in options],
        "keeps": list(keeps),
        "absolute": asked.absolute,
        "granularity": asked.granularity,
        "ablation": ablation,
        "layers": None if asked.layers is None else list(asked.layers),
        "steps": {one.criterion: one.steps or STEPS[one.criterion] for one in options if one.criterion in STEPS},
        "seed": asked.seed,
        "precision": asked.precision,
        "level": float(level),
        "resamples": int(number),
        "versions": versions(),
    }
    return every, manifest


def _judged(
    model: Model, images, features: Features, masks: list[Masks], added: list[Offsets] | None, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """r of K circuits of each feature in each sample (F, K, B), and where it is left out of averages (F, K, B)."""
    ablation = "zero" if added is None else "mean"
    moments, _ = moments_of(model, images, features, masks, ablation, added)
    r = pearson(moments, weights)
    return r, np.broadcast_to(pooled(moments, weights).constant_y, r.shape)


class _Total:
    """What has been found of the features of a layer so far: r in each sample, the first of which is all images."""

    def __init__(self, criteria: Iterable[str], level: float):
        self.level, self.costs = level, {name: Cost() for name in criteria}
        self.labels: tuple[str, ...] = ()
        self.r: list[np.ndarray] = []
        self.ends: list[np.ndarray] = []
        self.sums: Any = 0
        self.counts: Any = 0
        self.constant = 0

    def add(self, labels: tuple[str, ...], r: np.ndarray, left_out: np.ndarray) -> None:
        """r (F, C, K, B) of some more features, and what is left out of averages."""
        self.labels += labels
        self.r.append(r[..., 0])
        ends = [interval(one, self.level) for one in r[..., 1:]]
        self.ends.append(np.stack(ends))
        self.sums = self.sums + np.where(np.isnan(r), 0, r).sum(0)
        self.counts = self.counts + (~left_out).sum(0)
        self.constant += int((np.isnan(r) & ~left_out)[..., 0].sum())

    def means(self) -> np.ndarray:
        """Over the features, a constant circuit as 0: (C, K, B); nan where no feature is defined."""
        return np.divide(self.sums, self.counts, out=np.full(self.sums.shape, np.nan), where=self.counts > 0)

    def result(self) -> LayerComparison:
        r, ends = np.concatenate(self.r), np.concatenate(self.ends)
        return LayerComparison(self.labels, r, ends, average(self.means(), self.level), self.costs, self.constant)


def _mean(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Their mean, wherever some are defined."""
    every = np.stack(arrays)
    there = ~np.isnan(every)
    total, number = np.where(there, every, 0).sum(0), there.sum(0)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def _warn_of_shared(images, test_images) -> None:
    """A mask may have learned the images that it was made on."""

    def seen(source) -> list[bytes]:
        blocks = (block[:real] for block, real in batches(source, 16))
        return [hashlib.sha256(np.ascontiguousarray(image).data).digest() for block in blocks for image in block]

    tests = seen(test_images)
    scored = set(seen(images))
    if shared := sum(image in scored for image in tests):
        warnings.warn(
            f"{shared} of the {len(tests)} images that judge have scored, too: r flatters what has learned from them",
            stacklevel=3,
        )
