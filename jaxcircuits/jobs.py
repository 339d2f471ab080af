"""Many circuits: features in, circuits out, in order, without holding all scores at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from jaxcircuits.chunks import chunk_size, in_chunks
from jaxcircuits.circuit import Circuit, finite
from jaxcircuits.data import Images, batches, count, image_shape
from jaxcircuits.errors import InputError
from jaxcircuits.faithfulness import correlations
from jaxcircuits.features import Features, joined
from jaxcircuits.gradients import scored_layers
from jaxcircuits.masks import Masks, keep_counts, top_kernels
from jaxcircuits.masks import count as count_kernels
from jaxcircuits.model import Model
from jaxcircuits.paths import effective_kernels
from jaxcircuits.scores import Scores, score

RECORDED_VERSIONS = ("jaxcircuits", "jax", "flax", "numpy")


def extract(
    model: Model,
    images,
    features: Features | Iterable[Features],
    *,
    criterion: str = "snip",
    absolute: str = "per_image",
    keep: float | Sequence[float] | None = None,
    kernels: int | Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    precision: str = "float32",
    chunk: int | None = None,
    batch: int = 1,
    with_scores: bool = False,
    progress: Callable[[int], object] = lambda done: None,
) -> Iterator[Circuit]:
    """Extract the circuit of each feature, judged on the images that it was scored on.

    Args:
        model, images, criterion, absolute, layers, seed, precision, chunk, batch: as for `score`.
        features: one `Features` or several, each with one or many features.
        keep: fraction of the relevant kernels to keep, .05 if neither it nor `kernels` is given; or several.
        kernels: number of kernels to keep, instead of `keep`; or several.
        with_scores: keep the scores in the circuits as well.
        progress: called with the number of features times images scored since the last call.

    Yields:
        Circuits in the order asked: feature by feature, and for each in the order of `keep`.

    Raises:
        InputError: as `score` and `top_kernels`; before the first circuit where that can be known.
    """
    amounts = _amounts(keep, kernels)
    every = [features] if isinstance(features, Features) else list(features)
    network = model.network(image_shape(images))
    every = joined(f.resolve(network.layers) for f in every)
    for f in every:
        chosen = scored_layers(network, f.layer, tuple(layers) if layers is not None else None)
        model.check_weights((*chosen, f.layer))
    source = _image_source(images)
    options = {"criterion": criterion, "absolute": absolute, "layers": layers, "seed": seed, "precision": precision}

    def one_by_one() -> Iterator[Circuit]:
        for f in every:
            chosen = scored_layers(network, f.layer, tuple(layers) if layers is not None else None)
            size = chunk or chunk_size(network, chosen, batch=batch, whole_set=absolute == "whole_set")
            size, left = min(size, len(f)), len(f)
            for part in in_chunks(f, size):
                scores = score(model, images, part, **options, chunk=size, batch=batch, progress=progress)
                yield from _circuits(model, images, part, scores, amounts, source, min(size, left), with_scores)
                left -= size

    return one_by_one()


def _amounts(keep, kernels) -> list[dict[str, Any]]:
    """Keyword arguments of `top_kernels`, one for each mask that is wanted of a feature."""
    if keep is not None and kernels is not None:
        raise InputError("give either keep, a fraction of the relevant kernels, or kernels, their number")
    name, values = ("kernels", kernels) if kernels is not None else ("keep", 0.05 if keep is None else keep)
    values = np.atleast_1d(values).tolist()
    if not values:
        raise InputError(f"{name} is empty; expected at least one number")
    for value in values:  # against a network of any size: what is wrong with it is wrong everywhere
        keep_counts(np.array([2**31]), **{"keep": None, "kernels": None, name: value})
    return [{name: value} for value in values]


def _circuits(
    model: Model,
    images,
    features: Features,
    scores: Scores,
    amounts: list[dict[str, Any]],
    source: dict[str, Any],
    real: int,
    with_scores: bool,
) -> Iterator[Circuit]:
    """The circuits of one chunk's first `real` features."""
    masks = [top_kernels(scores, **amount) for amount in amounts]
    features, masks = features[:real], [{name: m[:real] for name, m in mask.items()} for mask in masks]
    r = correlations(model, images, features, masks)
    relevant = count_kernels(scores.relevant)
    kept = [count_kernels(mask) for mask in masks]
    effective = [count_kernels(effective_kernels(model, features, mask)) for mask in masks]
    for f, feature in enumerate(features):
        for k, amount in enumerate(amounts):
            manifest = _provenance(model, source, scores) | {
                "feature": _identity(feature),
                "objective": feature.objective,
                "keep": amount.get("keep"),
                "kernels": amount.get("kernels"),
                "relevant": int(relevant[f]),
                "kept": int(kept[k][f]),
                "effective": int(effective[k][f]),
                "correlation": finite(r[f, k]),
            }
            yield Circuit(
                _row(masks[k], scores.layers, f),
                manifest,
                scores=_row(scores.values, scores.layers, f) if with_scores else None,
                direction=None if feature.directions is None else feature.directions[0],
            )


def _row(arrays: Masks | Mapping[str, Any], layers: tuple[str, ...], f: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(arrays[name][f]) for name in layers}


def _provenance(model: Model, source: dict[str, Any], scores: Scores) -> dict[str, Any]:
    """What the manifests of all circuits of one run share."""
    record = scores.record
    return {
        "model": model.name,
        "weights": {"source": model.weights, "sha256": model.sha256},
        "images": source,
        "criterion": record.criterion,
        "absolute": record.absolute,
        "seed": record.seed,
        "precision": record.precision,
        "dtype": "float32",
        "versions": {name: version(name) for name in RECORDED_VERSIONS},
    }


def _identity(feature: Features) -> dict[str, Any]:
    """One feature for the manifest."""
    position = feature.position.tolist() if isinstance(feature.position, np.ndarray) else feature.position
    position = list(position) if isinstance(position, tuple) else position
    which = {"name": feature.names[0]} if feature.names else {"channel": (feature.channels or (0,))[0]}
    return {"layer": feature.layer, **which, "position": position}


def _image_source(images) -> dict[str, Any]:
    """Where the images came from, for the manifest."""
    if isinstance(images, Images):
        return {"source": images.source, "resize": images.resize, "number": len(images), "digest": images.digest}
    sha = hashlib.sha256()
    for block, real in batches(images, 16):
        sha.update(np.ascontiguousarray(block[:real]).data)
    return {"source": "array", "resize": None, "number": count(images), "digest": sha.hexdigest()}
