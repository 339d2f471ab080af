"""Groups of images: by where they lie, or by what their circuits use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from jaxcircuits.errors import InputError, check_count, check_seed
from jaxcircuits.granularity import AXES
from jaxcircuits.packages import needed
from jaxcircuits.subfeatures.scoring import ROWS, ImageScores


def by_folder(names: Sequence[str]) -> list[str]:
    """Each image's folder; of crops such as `astronaut#2`, which have none, the photograph."""

    def group(name: str) -> str:
        folder = str(PurePosixPath(name).parent)
        return folder if folder != "." else name.partition("#")[0] if "#" in name else "."

    return [group(name) for name in names]


def profiles(scores: ImageScores, layers: Sequence[str] | None = None) -> np.ndarray:
    r"""What each image's circuit uses, as a point: (N, D), D filters of all layers but the feature's own.

    With s[n,o] >= 0 the score of filter o for image n (the mean over its relevant kernels, as in `scores_at`), its
    coordinate is sqrt(s[n,o] / sum_o s[n,o]), the sum over its layer: half the squared distance of two images is one
    less the Bhattacharyya coefficient of their shares, summed over layers. How strong an image is does not matter.

    Args:
        scores: of one feature.
        layers: those to use, by default all scored ones but the feature's own, or that one if it is the only one.

    Raises:
        InputError: a layer that was not scored.
    """
    own = scores.features.layer
    names = list(layers or [name for name in scores.layers if name != own] or scores.layers)
    parts = []
    for name in names:
        if name not in scores.values:
            raise InputError(f"{name!r} was not scored; there are {', '.join(scores.layers)}")
        filters = np.abs(_of_filters(scores.values[name], scores.relevant[name])).astype(np.float64)
        total = filters.sum(1, keepdims=True)
        parts.append(np.sqrt(np.divide(filters, total, out=np.zeros_like(filters), where=total > 0)))
    return np.concatenate(parts, 1).astype(np.float32)


def _of_filters(values: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """(N, O) of one layer's scores; those of kernels a few images at a time."""
    if values.ndim == AXES["filter"]:
        return np.asarray(values)
    kernels = np.maximum(relevant.sum(0), 1)
    parts = [np.abs(values[start : start + ROWS]).sum(1) / kernels for start in range(0, len(values), ROWS)]
    return np.concatenate(parts)


def clusters(points: np.ndarray, number: int, *, seed: int = 0) -> np.ndarray:
    """Group points (N, D), such as `profiles`, by k-means, the best of ten starts: (N,), from 0 on, the largest first.

    Raises:
        InputError: fewer than one cluster, more than there are different points, or scikit-learn is not installed.
    """
    check_count("number", number)
    check_seed(seed)
    if not 1 <= number <= len(np.unique(points, axis=0)):
        raise InputError(f"{number} clusters of {len(np.unique(points, axis=0))} different images cannot be made")
    kmeans = needed("sklearn.cluster", "a clustering").KMeans
    options: Any = {"n_init": 10, "random_state": seed}
    found = kmeans(number, **options).fit_predict(points.astype(np.float64))
    sizes = np.bincount(found, minlength=number)
    first = [int(np.argmax(found == c)) for c in range(number)]
    order = np.lexsort(np.stack([first, -sizes]))  # of equal sizes, the one of the earlier image
    return np.argsort(order)[found]


def silhouette(points: np.ndarray, groups: Sequence[Any] | np.ndarray) -> float:
    """How well the groups are apart, -1 to 1: the mean over images of (b - a) / max(a, b), a the mean distance to its
    own group and b that to the nearest other one; 0 for an image that is alone. nan for one group.

    References:
        Rousseeuw, "Silhouettes" (1987, J. Comput. Appl. Math. 20).
    """
    groups = np.asarray(groups)
    kinds = np.unique(groups)
    if len(kinds) < 2:
        return float("nan")
    points = points.astype(np.float64)
    squares = (points**2).sum(1)
    found = []
    for n, point in enumerate(points):
        distances = np.sqrt(np.maximum(squares + squares[n] - 2 * points @ point, 0))
        own = groups == groups[n]
        if own.sum() == 1:
            found.append(0.0)
            continue
        a = (distances[own].sum() - distances[n]) / (own.sum() - 1)
        b = min(distances[groups == kind].mean() for kind in kinds if kind != groups[n])
        found.append((b - a) / max(a, b) if max(a, b) > 0 else 0.0)
    return float(np.mean(found))
