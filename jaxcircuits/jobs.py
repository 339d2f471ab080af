"""Many circuits: features in, circuits out, in order, without holding all scores at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxcircuits.ablation import check_ablation, mean_contributions, offsets
from jaxcircuits.chunks import in_chunks
from jaxcircuits.circuit import Circuit, finite
from jaxcircuits.criteria import BASELINES, SEEDED, STEPS
from jaxcircuits.data import image_shape
from jaxcircuits.errors import InputError
from jaxcircuits.faithfulness import correlations
from jaxcircuits.features import Features
from jaxcircuits.granularity import count_relevant, masks_at, shape_at
from jaxcircuits.layers import Masks
from jaxcircuits.manifest import identity, image_source, model_source, versions
from jaxcircuits.masks import count as count_kernels
from jaxcircuits.masks import keep_counts, tops
from jaxcircuits.model import Model
from jaxcircuits.options import Options, check_steps, resolved
from jaxcircuits.paths import effective_kernels, relevant
from jaxcircuits.scores import Scores
from jaxcircuits.scoring import Level, score_levels


@dataclass(frozen=True)
class Job:
    """Features of one layer that share their passes, and what is asked of them.

    Attributes:
        features: F of them.
        layers: those to score.
        asked: what the manifests of all their circuits have in common.
        amounts: K of them, keyword arguments of `top_kernels`.
    """

    features: Features
    layers: tuple[str, ...]
    asked: dict[str, Any]
    amounts: list[dict[str, Any]]

    @functools.cached_property
    def manifests(self) -> list[list[dict[str, Any]]]:
        """For each feature and each amount to keep, all of the circuit's manifest but the results."""
        both = {"keep": None, "kernels": None}
        return [
            [self.asked | {"feature": identity(f)} | both | amount for amount in self.amounts] for f in self.features
        ]


def plan(
    model: Model,
    images,
    features: Features | Iterable[Features],
    options: Options,
    *,
    ablation: str = "zero",
    keep: float | Sequence[float] | None = None,
    kernels: int | Sequence[int] | None = None,
) -> list[Job]:
    """What `extract` would do, for the same arguments and with the same errors; nothing is scored."""
    check_ablation(ablation)
    check_steps(options.steps, [options.criterion])
    if options.granularity == "weight":
        raise InputError("circuits consist of whole kernels; for masks of weights there are score and top_kernels")
    amounts = _amounts(keep, kernels)
    source = image_source(images)  # reads all pictures, which are counted with that
    network = model.network(image_shape(images))
    every = resolved(model, images, features, options)
    if kernels is not None:
        for f, names in every:
            shapes = {name: shape_at(network.layers[name], options.granularity) for name in names}
            for part in in_chunks(f, 16):
                found = count_relevant(relevant(network, model.variables, part, names), shapes)
                for amount in amounts:
                    keep_counts(found, None, amount["kernels"])
    criterion = options.criterion
    shared = {
        **model_source(model),
        "images": source,
        "criterion": criterion,
        "ablation": ablation,
        "absolute": None if criterion in BASELINES else options.absolute,
        "granularity": options.granularity,
        "seed": options.seed if criterion in SEEDED else None,
        "precision": options.precision,
        **({"steps": options.steps or STEPS[criterion]} if criterion in STEPS else {}),
        "dtype": "float32",
        "versions": versions(),
    }
    return [Job(f, names, shared | {"layers": list(names), "objective": f.objective}, amounts) for f, names in every]


def extract(
    model: Model,
    images,
    features: Features | Iterable[Features],
    *,
    criterion: str = "snip",
    absolute: str = "per_image",
    ablation: str = "zero",
    keep: float | Sequence[float] | None = None,
    kernels: int | Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    granularity: str = "kernel",
    steps: int | None = None,
    seed: int = 0,
    precision: str = "float32",
    chunk: int | None = None,
    batch: int | None = None,
    with_scores: bool = False,
    progress: Callable[[float], object] = lambda done: None,
) -> Iterator[Circuit]:
    """Extract the circuit of each feature, judged on the images that it was scored on.

    Args:
        model, images, criterion, absolute, layers, steps, seed, precision, chunk, batch: as for `score`.
        features: one `Features` or several, each with one or many features.
        ablation: what stands in for a removed kernel: nothing ("zero", as in the paper) or its "mean" contribution over
            these images, which the circuit then keeps as offsets; scores and masks are the same.
        keep: fraction of the relevant kernels to keep, .05 if neither it nor `kernels` is given; or several.
        kernels: number of kernels to keep, instead of `keep`; or several.
        granularity: "kernel", or "filter": whole filters are kept, so many or that fraction of the relevant ones. The
            circuit's masks are then those of the filters' relevant kernels, and each has the score of its filter.
        with_scores: keep the scores in the circuits as well.
        progress: called with what was done since the last call; one for each feature and image that is scored, in
            each round, and one for each circuit and image that is judged.

    Yields:
        Circuits in the order asked: feature by feature, and for each in the order of `keep`.

    Raises:
        InputError: as `score` and `top_kernels`; at once, before the first circuit, where that can be known.
    """
    options = Options(criterion, absolute, layers, granularity, steps, seed, precision, chunk, batch)
    jobs = plan(model, images, features, options, ablation=ablation, keep=keep, kernels=kernels)
    amounts = _amounts(keep, kernels)
    levels = Level.each(criterion, amounts, steps)
    network = model.network(image_shape(images))

    def one_by_one() -> Iterator[Circuit]:
        for job in jobs:
            size = options.sizes(network, job.layers, images, len(job.features)).features
            means = mean_contributions(model, images, job.layers) if ablation == "mean" else None
            for start, part in zip(range(0, len(job.features), size), in_chunks(job.features, size), strict=True):
                manifests = job.manifests[start : start + size]
                share = len(manifests) / size  # the last chunk is filled up
                scores = score_levels(
                    model, images, part, levels, options, lambda done, share=share: progress(done * share)
                )
                yield from _circuits(model, images, part, scores, amounts, manifests, means, with_scores, progress)
                del scores  # before the next are made

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
        size = max(value, 1) if name == "kernels" and isinstance(value, int) else 1
        keep_counts(np.array([size]), **{"keep": None, "kernels": None, name: value})
    return [{name: value} for value in values]


class Judged(NamedTuple):
    """The circuits of F features at K amounts, and what is known of them.

    Attributes:
        masks: K of {layer: (F, I, O) bool}.
        offsets: K of {layer: (F, O)} for mean ablation, else None.
        relevant: kernels of each feature (F,).
        kept, effective: kernels of each circuit (F, K).
        correlation: (F, K), nan where it is not defined.
    """

    masks: list[Masks]
    offsets: list[dict[str, np.ndarray]] | None
    relevant: np.ndarray
    kept: np.ndarray
    effective: np.ndarray
    correlation: np.ndarray


def judged(
    model: Model,
    images,
    features: Features,
    scores: Sequence[Scores],
    amounts: Sequence[Mapping[str, Any]],
    means: Mapping[str, np.ndarray] | None,
    progress: Callable[[float], object] = lambda done: None,
) -> Judged:
    """The masks of one chunk's features, of which there may be fewer than of scores, judged on these images.

    Args:
        scores: one for each of the K amounts; of more features where the chunk is filled up.
        means: the kernels' mean contributions, for mean ablation.
        progress: called with the number of circuits times images done since the last call.
    """
    real = len(features)
    masks = tops(scores, amounts, features.labels)
    masks = [masks_at(mask, "kernel", relevant=found.relevant) for found, mask in zip(scores, masks, strict=True)]
    masks = [{name: m[:real] for name, m in mask.items()} for mask in masks]
    added = None if means is None else [offsets(means, mask) for mask in masks]
    r = correlations(
        model, images, features, masks, ablation="zero" if added is None else "mean", offsets=added,
        progress=lambda done: progress(done * len(amounts)),
    )  # fmt: skip
    shape = image_shape(images)
    effective = [count_kernels(effective_kernels(model, features, mask, image_shape=shape)) for mask in masks]
    possible = count_kernels(scores[0].relevant)[:real]
    kept = np.stack([count_kernels(mask) for mask in masks], 1)
    return Judged(masks, added, possible, kept, np.stack(effective, 1), r)


def _circuits(
    model: Model,
    images,
    features: Features,
    scores: list[Scores],
    amounts: list[dict[str, Any]],
    manifests: list[list[dict[str, Any]]],
    means: Mapping[str, np.ndarray] | None,
    with_scores: bool,
    progress: Callable[[float], object],
) -> Iterator[Circuit]:
    """The circuits of one chunk's features, of which there are as many as manifests; the rest only fills it up."""
    features = features[: len(manifests)]
    found = judged(model, images, features, scores, amounts, means, progress)
    for f, feature in enumerate(features):
        for k in range(len(amounts)):
            manifest = manifests[f][k] | {
                "sparse": scores[k].record.sparse,
                "relevant": int(found.relevant[f]),
                "kept": int(found.kept[f, k]),
                "effective": int(found.effective[f, k]),
                "correlation": finite(found.correlation[f, k]),
            }
            yield Circuit(
                _row(found.masks[k], scores[k].layers, f),
                manifest,
                scores=kernel_scores(scores[k], f) if with_scores else None,
                offsets=None if found.offsets is None else _row(found.offsets[k], scores[k].layers, f),
                direction=None if feature.directions is None else feature.directions[0],
            )


def _row(arrays: Masks | Mapping[str, Any], layers: tuple[str, ...], f: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(arrays[name][f]) for name in layers}


def kernel_scores(scores: Scores, f: int) -> dict[str, np.ndarray]:
    """{layer: (I, O)} of one feature; of filters, each relevant kernel has its filter's."""
    found, possible = (_row(arrays, scores.layers, f) for arrays in (scores.values, scores.relevant))
    return {name: np.where(possible[name], found[name], np.float32(0)) for name in scores.layers}
