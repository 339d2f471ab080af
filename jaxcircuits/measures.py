"""How good circuits are, from what one pass has left of each image: NumPy alone, one function a measure.

x stands for a feature's values in a circuit and y for those in the full network, over images and the positions that are
looked at. Every measure weighs images: weights (B, N) say how often each image counts in each of B samples, which is
all that intervals and subsets need. Shapes: F features, K circuits of each, N images, B samples of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from jaxcircuits.errors import InputError, check_count, check_seed


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of x and y, image by image, about the image's own mean; sums are over its positions.

    Attributes:
        count: positions looked at, (F, N), like all that the circuit has no part in.
        mean_y, yy, low_y, high_y: mean of y, sum of (y - mean y)^2, least and largest y, (F, N).
        mean_x, xx, low_x, high_x: the same of x, (F, K, N).
        xy: sum of (x - mean x)(y - mean y), (F, K, N).
        error: sum of (x - y)^2, (F, K, N).
    """

    count: np.ndarray
    mean_y: np.ndarray
    yy: np.ndarray
    low_y: np.ndarray
    high_y: np.ndarray
    mean_x: np.ndarray
    xx: np.ndarray
    low_x: np.ndarray
    high_x: np.ndarray
    xy: np.ndarray
    error: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(F, K, N)."""
        return self.xx.shape  # pyright: ignore[reportReturnType]

    def circuits(self, chosen: slice) -> Moments:
        """Those of some of the K circuits."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return Moments(**{name: a[:, chosen] if a.ndim == 3 else a for name, a in arrays.items()})


class Pooled(NamedTuple):
    """Moments over all images of each sample, about their common mean: (F, K, B), of y (F, 1, B)."""

    count: np.ndarray
    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray
    error: np.ndarray
    constant_x: np.ndarray
    constant_y: np.ndarray


def pooled(moments: Moments, weights: np.ndarray | None = None) -> Pooled:
    """The images' moments together, in float64 (Chan, Golub, LeVeque 1979: sums of squares within images and between).

    Args:
        moments: of N images.
        weights: (B, N), at least 0, how often each image counts in each sample; once each (B = 1) if not given.

    Raises:
        InputError: weights of another shape, below 0, or a sample without images.
    """
    images = moments.shape[2]
    w = np.ones((1, images)) if weights is None else np.asarray(weights, float)
    if w.ndim != 2 or w.shape[1] != images or not (w >= 0).all() or not w.any(1).all():
        raise InputError(f"weights have shape {w.shape}; expected (B, {images}), none below 0, no row of zeros")
    n = moments.count[:, None].astype(float)
    total = n @ w.T

    def off_centre(means: np.ndarray) -> np.ndarray:
        """What sums are weighed with: near the centre nothing cancels."""
        return means - ((n * means).sum(2) / n.sum(2))[..., None]

    x, y = off_centre(moments.mean_x.astype(float)), off_centre(moments.mean_y[:, None].astype(float))

    def about_mean(within: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (within + n * a * b) @ w.T - ((n * a) @ w.T) * ((n * b) @ w.T) / total

    def constant(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        there = (w > 0).astype(float)
        least = [np.where(there, row, np.inf).min(1) for row in low.reshape(-1, images)]
        most = [np.where(there, row, -np.inf).max(1) for row in high.reshape(-1, images)]
        return np.equal(least, most).reshape(*low.shape[:2], len(w))

    return Pooled(
        count=total,
        xx=about_mean(moments.xx, x, x),
        yy=about_mean(moments.yy[:, None], y, y),
        xy=about_mean(moments.xy, x, y),
        error=moments.error.astype(float) @ w.T,
        constant_x=constant(moments.low_x, moments.high_x),
        constant_y=constant(moments.low_y[:, None], moments.high_y[:, None]),
    )


def _shaped(values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    return values[..., 0] if weights is None else values


def _ratio(above: np.ndarray, below: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """above / below, nan where it is not defined."""
    above, below, defined = np.broadcast_arrays(above, below, defined)
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=defined & (below > 0))


def pearson(moments: Moments, weights: np.ndarray | None = None) -> np.ndarray:
    """Pearson correlation of circuit and full network over all images and positions, flattened.

    r = sum (x - mean x)(y - mean y) / sqrt(sum (x - mean x)^2  sum (y - mean y)^2),  the faithfulness of arXiv
    2206.01627.

    Returns:
        (F, K), or (F, K, B) if weights (B, N) are given; -1 to 1, 1 for the full network itself, nan where x or y is
        constant.

    Raises:
        InputError: as `pooled`.
    """
    p = pooled(moments, weights)
    r = _ratio(p.xy, np.sqrt(np.maximum(p.xx, 0) * np.maximum(p.yy, 0)), ~p.constant_x & ~p.constant_y)
    return _shaped(np.clip(r, -1, 1), weights)  # rounding may lead beyond


def mean_squared_error(moments: Moments, weights: np.ndarray | None = None) -> np.ndarray:
    """The mean over images and positions of the squared error, in the feature's units squared.

    MSE = sum over n, p of (x_np - y_np)^2 / (N P),  x the circuit's map and y the full network's.  Its ratio to that of
    the empty circuit is what faithfulness is made of (arXiv 2504.13151).

    Returns:
        (F, K), or (F, K, B) if weights (B, N) are given; at least 0.

    Raises:
        InputError: as `pooled`.
    """
    p = pooled(moments, weights)
    return _shaped(p.error / p.count, weights)


def relative_squared_error(moments: Moments, weights: np.ndarray | None = None) -> np.ndarray:
    """RSE = sum (x - y)^2 / sum (y - mean y)^2,  which is 1 - R^2, R^2 being the coefficient of determination.

    Unlike r it sees a wrong scale and a wrong offset (Breiman, Friedman, Olshen, Stone 1984).

    Returns:
        (F, K), or (F, K, B) if weights (B, N) are given; at least 0, 1 for the feature's mean everywhere, nan where the
        full feature is constant.

    Raises:
        InputError: as `pooled`.
    """
    p = pooled(moments, weights)
    return _shaped(_ratio(p.error, p.yy, ~p.constant_y), weights)


def normalised_faithfulness(moments: Moments, ablated: Moments, weights: np.ndarray | None = None) -> np.ndarray:
    """f = 1 - MSE(circuit) / MSE(everything ablated).

    It is (m(C) - m(0)) / (m(N) - m(0)) of the MIB benchmark (arXiv 2504.13151) for circuit C, network N and
    empty circuit 0, with m = -MSE.

    Args:
        moments: of the circuits.
        ablated: (F, 1, N), of the circuit that has no kernel.
        weights: as for `pooled`.

    Returns:
        (F, K), or (F, K, B) if weights (B, N) are given; at most 1, which is the full network; 0 is no better than no
        circuit, below 0 is worse. nan where the empty circuit computes the feature.

    Raises:
        InputError: as `pooled`.
    """
    p, nothing = pooled(moments, weights), pooled(ablated, weights)
    return _shaped(1 - _ratio(p.error, nothing.error, nothing.error > 0), weights)


def cpr(faithfulness: np.ndarray, keeps: Sequence[float]) -> np.ndarray:
    """Integrated circuit performance ratio: the area under f over keep, from 0 to 1 (MIB, arXiv 2504.13151).

    CPR = integral of f(keep) d keep, by trapezia between the levels; f(0) = 0 and f(1) = 1 by definition of f, and are
    put in. (The benchmark begins at its lowest level, .001.) Larger is better.

    Args:
        faithfulness: f (F, K), one column for each level.
        keeps: the K levels, in any order, each different and over 0 to 1.

    Returns:
        (F,), at most 1; nan where f is.

    Raises:
        InputError: other levels than columns, or levels outside (0, 1] or twice.
    """
    return _area(faithfulness, keeps, lambda f: f)


def cmd(faithfulness: np.ndarray, keeps: Sequence[float]) -> np.ndarray:
    """Integrated circuit-model distance: the area between f and 1 (MIB, arXiv 2504.13151).

    CMD = integral of |1 - f(keep)| d keep, as `cpr`. Smaller is better, 0 is the best. The f of squared errors is never
    over 1, so that there CMD = 1 - CPR.

    Args, Returns, Raises: as `cpr`; at least 0.
    """
    return _area(faithfulness, keeps, lambda f: np.abs(1 - f))


def _area(faithfulness: np.ndarray, keeps: Sequence[float], height: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    f, x = np.asarray(faithfulness, float), np.asarray(keeps, float)
    if f.ndim != 2 or x.shape != f.shape[1:]:
        raise InputError(f"faithfulness has shape {f.shape}; expected (F, {x.size}), a column for each keep")
    if not ((x > 0) & (x <= 1)).all() or len(set(x.tolist())) != len(x):
        raise InputError(f"keeps are {x.tolist()}; expected different fractions over 0 and at most 1")
    order = np.argsort(x)
    x, f = np.concatenate([[0], x[order]]), np.pad(f[:, order], ((0, 0), (1, 0)))
    if x[-1] < 1:
        x, f = np.append(x, 1), np.pad(f, ((0, 0), (0, 1)), constant_values=1)
    return np.trapezoid(height(f), x, axis=1)


def top_image_overlap(moments: Moments, top: int = 10) -> np.ndarray:
    """Share of the `top` images in which the full feature is largest that are also the circuit's.

    |A & B| / top,  A and B the images of the largest maximum over positions; ties go to the earlier image. It is the
    precision at `top` of information retrieval, with the full feature's top images as what is to be found (Manning,
    Raghavan, Schuetze, "Introduction to Information Retrieval", 2008, section 8.4).

    Returns:
        (F, K), 0 to 1; top / N by chance; nan where x or y is constant, so that no image is at the top.

    Raises:
        InputError: top is not 1 to N.
    """
    images = moments.shape[2]
    if isinstance(top, bool) or not isinstance(top, (int, np.integer)) or not 1 <= top <= images:
        raise InputError(f"top is {top!r}; expected a number of images from 1 to {images}")

    def best(high: np.ndarray) -> np.ndarray:
        chosen = np.zeros(high.shape, bool)
        np.put_along_axis(chosen, np.argsort(-high, axis=-1, kind="stable")[..., :top], True, axis=-1)
        return chosen

    p = pooled(moments)
    share = (best(moments.high_x) & best(moments.high_y)[:, None]).sum(2) / top
    return np.where((p.constant_x | p.constant_y)[..., 0], np.nan, share)


def resamples(images: int, number: int = 1000, seed: int = 0) -> np.ndarray:
    """Weights (B, N) of the bootstrap: N images drawn with replacement, `number` times (Efron, Tibshirani 1993).

    w_b ~ multinomial(N, (1/N, ..., 1/N)),  how often sample b has each image; a measure of the sample weighs by it.
    Whole images are drawn, because positions of one image are not independent.
    """
    check_count("the number of the bootstrap's resamples", number)
    check_seed(seed)
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=number).astype(float)


def subsets(images: int, parts: int = 2, seed: int = 0) -> np.ndarray:
    """Weights (P, N) of `parts` subsets of the images, as equal in size as can be, that share none, drawn by seed."""
    if not 1 <= parts <= images:
        raise InputError(f"the parts are {parts}; expected 1 to {images}, the number of images")
    check_seed(seed)
    part = np.random.default_rng(seed).permutation(np.arange(images) % parts)
    return (part == np.arange(parts)[:, None]).astype(float)


def interval(values: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Percentile interval of a measure's values in bootstrap samples (Efron, Tibshirani 1993, chapter 13).

    [q((1 - level) / 2), q((1 + level) / 2)],  q the quantiles of the B values.

    Args:
        values: (F, K, B); samples where the measure is not defined do not count.
        level: of confidence, over 0 and below 1.

    Returns:
        (F, K, 2), lower and upper end; nan where the measure is defined in no sample.
    """
    if not 0 < level < 1:
        raise InputError(f"level is {level!r}; expected a number between 0 and 1")
    ends = np.full((*values.shape[:2], 2), np.nan)
    for place in np.ndindex(values.shape[:2]):
        defined = values[place][~np.isnan(values[place])]
        if defined.size:
            ends[place] = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return ends
