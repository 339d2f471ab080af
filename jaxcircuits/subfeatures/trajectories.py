"""Trajectory maps: a feature's images laid out by what their circuits use, layer after layer."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxcircuits.errors import InputError, check_count, check_seed
from jaxcircuits.packages import installed, needed
from jaxcircuits.subfeatures.groups import profiles
from jaxcircuits.subfeatures.scoring import ImageScores

NEIGHBOURS, FEWEST = 15, 4
ALL = "all layers"
SAME = 1e-6  # points that are no further apart lie in one place


def need_umap() -> None:
    """Raise an InputError if umap-learn is not installed; it is not imported, which takes seconds."""
    installed("umap", "a map")


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Where each of N images lies in the maps of T stops.

    Attributes:
        stops: "all layers", then each layer before the feature's, if there are several; T of them.
        points: (T, N, 2), from -1 to 1.
    """

    stops: tuple[str, ...]
    points: np.ndarray


def trajectories(scores: ImageScores, *, neighbours: int = NEIGHBOURS, seed: int = 0) -> Trajectories:
    """Embed the images' `profiles` in two dimensions with UMAP: of all layers together, and of each layer alone.

    Each layer's map starts from the one of all layers, so that an image stays where it is as far as its neighbours do:
    its way from layer to layer is its trajectory.

    Args:
        scores: of one feature, image by image.
        neighbours: of an image that its place in a map depends on; fewer where there are fewer images.
        seed: of UMAP.

    Raises:
        InputError: fewer than four images, fewer than two neighbours, or umap-learn is not installed.

    References:
        McInnes, Healy, Melville, "UMAP" (arXiv 1802.03426); trajectories of images through a circuit: Hamblin, Konkle,
        Alvarez (arXiv 2206.01627).
    """
    need_umap()
    if len(scores) < FEWEST:
        raise InputError(f"a map is of {FEWEST} images or more; got {len(scores)}")
    check_count("neighbours", neighbours, 2)
    check_seed(seed)
    layers = [name for name in scores.layers if name != scores.features.layer]
    stops = (ALL, *(layers if len(layers) > 1 else ()))
    made: list[np.ndarray] = []
    for stop in stops:
        points = profiles(scores, None if stop == ALL else [stop])
        made.append(_embedded(points, made[0] if made else _principal(points), neighbours, seed))
    return Trajectories(stops, np.stack(made))


def _embedded(points: np.ndarray, start: np.ndarray, neighbours: int, seed: int) -> np.ndarray:
    """UMAP's map of points (N, D), (N, 2), centred and scaled to lie within -1 and 1."""
    if np.ptp(points, 0).max() < SAME:  # such as those of the first layer's features: UMAP would say nan
        return np.zeros_like(start, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # umap says that it has no TensorFlow
        umap = needed("umap", "a map")
    # one thread: with a seed, UMAP is reproducible only so
    options: Any = {"n_neighbors": min(neighbours, len(points) - 1), "random_state": seed, "n_jobs": 1}
    options["init"] = (10 * start).astype(np.float32)
    found = np.asarray(umap.UMAP(**options).fit_transform(points), np.float64)
    found -= found.mean(0)
    return (found / (np.abs(found).max() or 1)).astype(np.float32)


def _principal(points: np.ndarray) -> np.ndarray:
    """The first two principal components (N, 2), within -1 and 1; which way they point is fixed."""
    centred = points - points.mean(0)
    u, s, _ = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    plane = np.zeros((len(points), 2))
    plane[:, : min(2, len(s))] = (u * s)[:, :2]
    plane *= np.where(plane[np.abs(plane).argmax(0), [0, 1]] < 0, -1, 1)
    return plane / (np.abs(plane).max() or 1)
