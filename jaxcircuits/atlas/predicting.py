"""How long an atlas will take, and how large it will be, before it is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxcircuits.atlas.store import SCORES, ChunkId, Group, Plan
from jaxcircuits.atlas.work import Work
from jaxcircuits.costs import measured
from jaxcircuits.criteria import STEPS
from jaxcircuits.data import batches, count, image_shape
from jaxcircuits.jobs import judged
from jaxcircuits.taps import Network

# Images and circuits' features that are tried; from one to many, scoring and judging take as many times as long.
IMAGES, JUDGED = 16, 4


class Prediction(NamedTuple):
    """Of one group.

    Attributes:
        folder, features, chunks: which, and how much of it is left.
        scoring, judging, compiling: seconds.
        bytes: of its chunks.
    """

    folder: str
    features: int
    chunks: int
    scoring: float
    judging: float
    compiling: float
    bytes: int

    @property
    def seconds(self) -> float:
        return self.scoring + self.judging + self.compiling


def predict(work: Work, todo: Sequence[ChunkId]) -> list[Prediction]:
    """Try one chunk of each group on a few images, on one device, and reckon the rest."""
    number = count(work.images)
    sample, real = next(batches(work.images, min(IMAGES, number)))
    few = Work(work.model, sample[:real], work.plan)
    found = []
    for g, group in enumerate(work.plan.groups):
        left = [which for which in todo if which.group == g]
        features = sum(len(work.plan.features(which)) for which in left)
        size = bytes_of(work.plan, group, features)
        if not left:
            found.append(Prediction(group.folder, 0, 0, 0.0, 0.0, 0.0, 0))
            continue
        with measured() as scoring:
            scores = few.scores(left[0])
            for each in scores:
                np.asarray(each.values[group.layers[-1]])
        every = work.plan.features(left[0])
        chosen = np.unique(np.linspace(0, len(every) - 1, JUDGED).astype(int))
        some = [_rows(each, chosen) for each in scores]
        with measured() as judging:
            judged(few.model, few.images, every[chosen], some, work.plan.amounts, few.means(g))
        times = number / real
        found.append(
            Prediction(
                group.folder,
                features,
                len(left),
                scoring.seconds * times * len(left),
                judging.seconds * times * features / len(chosen),
                scoring.compiling + judging.compiling,
                size,
            )
        )
    return found


def _rows(scores, chosen: np.ndarray):
    import jax

    return jax.tree.map(lambda a: a[chosen], scores)


def bytes_of(plan: Plan, group: Group, features: int) -> int:
    """Bytes of so many features' masks and, where they are stored, scores and offsets."""
    levels, kind = len(plan.amounts), plan.manifest["scores"]
    each = sum(levels * -(-o * i // 8) for o, i in group.shapes.values())
    if kind is not None:
        times = levels if plan.manifest["criterion"] in STEPS else 1
        each += times * np.dtype(SCORES[kind]).itemsize * sum(o * i for o, i in group.shapes.values())
    if plan.manifest["ablation"] == "mean":
        each += 4 * levels * sum(o for o, _ in group.shapes.values())
    return features * each


def effort(plan: Plan, network: Network) -> list[float]:
    """How much work a feature of each group is for one image, scored and judged: multiplications, roughly."""
    found = []
    for group in plan.groups:
        layers = [network.layers[name] for name in group.layers]
        once = sum(la.kernels * np.prod(la.window) * np.prod(la.positions) for la in layers)
        found.append(float(once * (1 + len(plan.amounts))))
    return found


def effort_shape(work: Work) -> list[float]:
    """`effort` of a work's groups."""
    return effort(work.plan, work.model.network(image_shape(work.images)))
