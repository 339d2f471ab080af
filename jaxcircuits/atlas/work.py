"""One chunk of an atlas: scored, judged and packed. The same, whoever does it and whatever was done before."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxcircuits.ablation import mean_contributions
from jaxcircuits.atlas.checking import SCORES
from jaxcircuits.atlas.store import Chunk, ChunkId, Plan, packed
from jaxcircuits.chunks import LARGEST, chunk_at
from jaxcircuits.criteria import STEPS
from jaxcircuits.features import Features
from jaxcircuits.jobs import Judged, judged, kernel_scores
from jaxcircuits.manifest import versions
from jaxcircuits.model import Model
from jaxcircuits.options import Options
from jaxcircuits.scores import Scores
from jaxcircuits.scoring import Level, score_levels

Progress = Callable[[float], object]


class Work:
    """What all chunks of one plan share: the model, its images, and what follows from the two.

    Args:
        model, images: those of the plan, which is not checked here.
        plan: of the atlas.
    """

    def __init__(self, model: Model, images, plan: Plan) -> None:
        self.model, self.images, self.plan = model, images, plan
        asked = plan.manifest
        self.levels = Level.each(asked["criterion"], plan.amounts, asked["steps"])
        self.means = functools.lru_cache(maxsize=1)(self._means)  # groups follow one another

    def _means(self, group: int) -> dict[str, np.ndarray] | None:
        if self.plan.manifest["ablation"] != "mean":
            return None
        return mean_contributions(self.model, self.images, self.plan.groups[group].layers)

    def filled(self, which: ChunkId) -> Features:
        """The chunk's features, filled up with the last one: all chunks of a group run one program."""
        group = self.plan.groups[which.group]
        return chunk_at(group.features, which.number * group.chunk, group.chunk)

    def scores(self, which: ChunkId, progress: Progress = lambda done: None) -> list[Scores]:
        """The scores of a chunk that is filled up, for each amount."""
        asked, group, features = self.plan.manifest, self.plan.groups[which.group], self.filled(which)
        share = len(self.plan.features(which)) / len(features)
        # unless it was asked to be larger than any chooses itself, scored in as many parts as is fastest
        chunk = group.chunk if group.chunk > LARGEST else None
        options = Options(
            asked["criterion"], asked["absolute"] or "per_image", group.layers, asked["granularity"], asked["steps"],
            asked["seed"] or 0, asked["precision"], chunk, group.batch,
        )  # fmt: skip
        return score_levels(
            self.model, self.images, features, self.levels, options, lambda done: progress(done * share)
        )

    def chunk(self, which: ChunkId, scores: list[Scores], progress: Progress = lambda done: None) -> Chunk:
        """The chunk of these scores."""
        features = self.plan.features(which)
        means = self.means(which.group)
        found = judged(self.model, self.images, features, scores, self.plan.amounts, means, progress)
        masks = {n: packed(np.stack([m[n] for m in found.masks], 1)) for n in self.plan.groups[which.group].layers}
        more = self._scores(scores, len(features)) | _offsets(found)
        about: dict[str, Any] = {"sparse": scores[0].record.sparse, "versions": versions()}
        return Chunk(masks, found.relevant, found.kept, found.effective, found.correlation, more, about)

    def _scores(self, scores: list[Scores], features: int) -> dict[str, np.ndarray]:
        """Scores (F, O, I), or (F, K, O, I) of a criterion that depends on the amount, as parts of the largest (F,)."""
        kind = self.plan.manifest["scores"]
        if kind is None:
            return {}
        each = [[kernel_scores(found, f) for f in range(features)] for found in _different(self.plan, scores)]
        names = scores[0].layers
        arrays = {name: np.stack([np.stack([row[name].T for row in rows]) for rows in each], 1) for name in names}
        if kind == "float32":
            scale = np.ones(features, np.float32)
        else:  # float16 holds nothing below 6e-8, and scores may be smaller
            largest = np.max([np.abs(a).reshape(features, -1).max(1) for a in arrays.values()], 0)
            scale = np.where(largest > 0, largest, 1).astype(np.float32)
        arrays = {n: (a / scale.reshape(-1, 1, 1, 1)).astype(SCORES[kind]) for n, a in arrays.items()}
        if self.plan.manifest["criterion"] not in STEPS:
            arrays = {n: a[:, 0] for n, a in arrays.items()}
        return {f"score/{n}": a for n, a in arrays.items()} | {"scale": scale}


def _different(plan: Plan, scores: Sequence[Scores]) -> Sequence[Scores]:
    """Those of one amount where all are the same."""
    return scores if plan.manifest["criterion"] in STEPS else scores[:1]


def _offsets(found: Judged) -> dict[str, np.ndarray]:
    """{"offset/<layer>": (F, K, O)} of mean ablation."""
    if found.offsets is None:
        return {}
    return {f"offset/{n}": np.stack([np.asarray(a[n]) for a in found.offsets], 1) for n in found.offsets[0]}
