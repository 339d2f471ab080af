"""A feature's parts: the circuits of groups of images, and whether they differ more than those of random groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxcircuits.circuit import Circuit, finite
from jaxcircuits.data import image_shape
from jaxcircuits.errors import InputError, check_count, check_seed
from jaxcircuits.evaluation import Evaluation
from jaxcircuits.faithfulness import evaluate
from jaxcircuits.granularity import count_relevant, masks_at
from jaxcircuits.layers import Masks
from jaxcircuits.manifest import identity, image_source, model_source, versions
from jaxcircuits.masks import count as count_kernels
from jaxcircuits.masks import top_kernels
from jaxcircuits.model import Model
from jaxcircuits.paths import effective_kernels
from jaxcircuits.scores import Scores
from jaxcircuits.subfeatures.scoring import ImageScores

KEEP, NULLS = 0.05, 99


@dataclass(frozen=True, eq=False)
class Parts:
    """The circuits of G groups of a feature's images.

    Attributes:
        of: the scores image by image.
        names: the groups', G of them.
        groups: which one each image belongs to (N,).
        scores, masks: with the groups in the place of features, {layer: (G, I, O)}, at the scores' granularity.
        keep, kernels: how much was kept, one of them.
        overlap: intersection over union of each two groups' masks (G, G).
        nulls: the mean overlap of two different groups' masks where the same images are dealt out to groups of the same
            sizes at random (B,).
        p: how likely random groups overlap as little as these, (1 + number of nulls <= the mean overlap) / (1 + B);
            nan for one group. Groups that were made from the same scores, such as clusters, differ more than random
            ones whatever the images: for them it is no test.
    """

    of: ImageScores
    names: tuple[str, ...]
    groups: np.ndarray
    scores: Scores
    masks: Masks
    keep: float | None
    kernels: int | None
    overlap: np.ndarray
    nulls: np.ndarray
    p: float

    @property
    def sizes(self) -> np.ndarray:
        """Images in each group (G,)."""
        return np.bincount(self.groups, minlength=len(self.names))

    @property
    def mean_overlap(self) -> float:
        """Of two different groups; nan for one group."""
        return _mean_of_pairs(self.overlap)


def separate(
    scores: ImageScores,
    groups: Sequence[Any] | np.ndarray,
    *,
    keep: float | None = None,
    kernels: int | None = None,
    nulls: int = NULLS,
    seed: int = 0,
) -> Parts:
    """The circuits of groups of images, and how much they overlap beside random groups of the same sizes.

    Args:
        scores: of one feature, image by image.
        groups: which group each image belongs to: numbers or names (N,), as from `by_folder` or `clusters`.
        keep, kernels: how much each circuit keeps, as for `top_kernels`; keep=.05 if neither is given.
        nulls: B random groupings; with 99 the smallest p is .01.
        seed: of the random groupings.

    Raises:
        InputError: another number of groups than images, or as `top_kernels`.
    """
    kinds = list(dict.fromkeys(groups)) if not isinstance(groups, np.ndarray) else np.unique(groups).tolist()
    if len(groups) != len(scores):
        raise InputError(f"there are groups of {len(groups)} images; the scores are of {len(scores)}")
    names = tuple(str(kind) for kind in kinds)
    if len(set(names)) < len(names):
        raise InputError(f"the groups are {', '.join(map(repr, kinds))}; expected different names")
    check_count("nulls", nulls, 0)
    check_seed(seed)
    if keep is None and kernels is None:
        keep = KEEP
    number = {kind: g for g, kind in enumerate(kinds)}
    place = np.array([number[kind] for kind in (groups.tolist() if isinstance(groups, np.ndarray) else groups)])

    def circuits(place: np.ndarray) -> tuple[Scores, Masks, np.ndarray]:
        found = scores.mean_over([np.flatnonzero(place == g) for g in range(len(kinds))])
        masks = top_kernels(found, keep=keep, kernels=kernels)
        return found, masks, overlaps(masks)

    found, masks, overlap = circuits(place)
    rng = np.random.default_rng(seed)
    drawn = range(nulls if len(kinds) > 1 else 0)
    random = np.array([_mean_of_pairs(circuits(rng.permutation(place))[2]) for _ in drawn])
    as_far = (random <= _mean_of_pairs(overlap) + 1e-9).sum()  # the same pairs in another order are as far
    p = (1 + as_far) / (1 + len(random)) if len(kinds) > 1 else float("nan")
    return Parts(scores, names, place, found, masks, keep, kernels, overlap, random, float(p))


def overlaps(masks: Masks) -> np.ndarray:
    """Intersection over union of each two of G masks {layer: (G, I, O)} or (G, O): (G, G)."""
    flat = np.concatenate([np.asarray(mask).reshape(len(mask), -1) for mask in masks.values()], 1).astype(np.float32)
    both = flat @ flat.T
    sizes = np.diag(both)
    return both / (sizes[:, None] + sizes - both)


def _mean_of_pairs(overlap: np.ndarray) -> float:
    pairs = overlap[np.triu_indices(len(overlap), 1)].astype(float)
    return float(pairs.mean()) if pairs.size else float("nan")


def judge(model: Model, images, parts: Parts) -> Evaluation:
    """Run all G circuits on all images: F = 1 feature, K = G circuits."""
    masks = _kernel_masks(parts)
    each = [{name: mask[g : g + 1] for name, mask in masks.items()} for g in range(len(parts.names))]
    return evaluate(model, images, parts.of.features, each)


def responses(parts: Parts, judged: Evaluation) -> np.ndarray:
    """How well each circuit keeps the feature's response to each group: (G circuits, G groups).

    1 - sum (x - y)^2 / sum y^2, with x the feature in the circuit and y in the full network, over a group's images at
    the positions at which they were scored: 1 is all of it, 0 no better than nothing at all, and less is worse. The
    circuit of a part keeps its own images' responses better than others'.
    """
    member, m = (np.arange(len(parts.names))[:, None] == parts.groups).astype(float), judged.moments
    y = np.asarray(m.yy[0] + m.count[0] * np.square(m.mean_y[0], dtype=float), float)
    return 1 - np.asarray(m.error[0], float) @ member.T / (member @ y)


def _kernel_masks(parts: Parts) -> Masks:
    return masks_at(parts.masks, "kernel", relevant=parts.scores.relevant)


def circuits(model: Model, images, parts: Parts, judged: Evaluation) -> list[Circuit]:
    """A circuit for each group, as `extract` makes them; judged on all images, and on the group's own.

    The manifest has two more entries: `group`, its label and the numbers of its images, and `group_correlation`, r over
    them alone.
    """
    record, features, masks = parts.of.record, parts.of.features, _kernel_masks(parts)
    member = (np.arange(len(parts.names))[:, None] == parts.groups).astype(float)
    r, within = judged.correlation()[0], judged.correlation(member)[0]
    repeated = features[np.zeros(len(parts.names), int)]
    effective = count_kernels(effective_kernels(model, repeated, masks, image_shape=image_shape(images)))
    shapes = {name: np.shape(mask)[1:] for name, mask in masks.items()}
    relevant, kept = count_relevant(parts.scores.relevant, shapes), count_kernels(masks)
    shared = {
        **model_source(model),
        "images": image_source(images),
        "feature": identity(features),
        "criterion": record.criterion,
        "absolute": record.absolute,
        "ablation": "zero",
        "granularity": record.granularity,
        "objective": features.objective,
        "seed": None,
        "precision": record.precision,
        "sparse": False,
        "keep": parts.keep,
        "kernels": parts.kernels,
        "layers": list(parts.of.layers),
        "dtype": "float32",
        "versions": versions(),
    }
    made = []
    for g, name in enumerate(parts.names):
        counts = {"relevant": int(relevant[g]), "kept": int(kept[g]), "effective": int(effective[g])}
        results = {"correlation": finite(r[g]), "group_correlation": finite(within[g, g])}
        group = {"label": name, "images": np.flatnonzero(parts.groups == g).tolist()}
        manifest = shared | counts | results | {"group": group}
        direction = None if features.directions is None else features.directions[0]
        made.append(Circuit({n: np.asarray(m[g]) for n, m in masks.items()}, manifest, direction=direction))
    return made
