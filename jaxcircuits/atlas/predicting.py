"""How long an atlas will take, and how large it will be, before it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from jaxcircuits.atlas.checking import SCORES
from jaxcircuits.atlas.store import ChunkId, Group, Plan
from jaxcircuits.atlas.work import Work
from jaxcircuits.costs import Cost, measured
from jaxcircuits.criteria import STEPS
from jaxcircuits.data import batches, count, image_shape
from jaxcircuits.jobs import judged
from jaxcircuits.scores import Scores

# Images and circuits' features that are tried.
IMAGES, JUDGED = 16, 8

T = TypeVar("T")


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
    """Try one chunk of each group on a few images and on twice as many, on one device, and reckon the rest."""
    number = count(work.images)
    sample, real = next(batches(work.images, min(2 * IMAGES, number)))
    samples = [sample[: min(IMAGES, real)], sample[:real]]
    found = []
    for g, group in enumerate(work.plan.groups):
        left = [which for which in todo if which.group == g]
        if left:
            found.append(_of_group(work, left, samples, number))
        else:
            found.append(Prediction(group.folder, 0, 0, 0.0, 0.0, 0.0, 0))
    return found


def _of_group(work: Work, left: Sequence[ChunkId], samples: Sequence[np.ndarray], number: int) -> Prediction:
    """What is left of one group."""
    group = work.plan.groups[left[0].group]
    every = work.plan.features(left[0])
    chosen = np.unique(np.linspace(0, len(every) - 1, JUDGED).astype(int))

    def score(images: np.ndarray) -> list[Scores]:
        scores = Work(work.model, images, work.plan).scores(left[0])
        for each in scores:
            np.asarray(each.values[group.layers[-1]])
        return scores

    scores, scoring = _reckoned(score, samples, number)
    some = [_rows(each, chosen) for each in scores]

    def judge(images: np.ndarray) -> None:
        few = Work(work.model, images, work.plan)
        judged(work.model, images, every[chosen], some, work.plan.amounts, few.means(left[0].group))

    _, judging = _reckoned(judge, samples, number)
    features = sum(len(work.plan.features(which)) for which in left)
    return Prediction(
        group.folder,
        features,
        len(left),
        scoring.seconds * len(left),
        judging.seconds * features / len(chosen),
        scoring.compiling + judging.compiling,
        bytes_of(work.plan, group, features),
    )


def _reckoned(task: Callable[[np.ndarray], T], samples: Sequence[np.ndarray], number: int) -> tuple[T, Cost]:
    """What a task makes of the first sample, and its cost on so many images: what it costs once, whatever their
    number, and for each of them."""
    with measured() as first:  # compiles, and warms up
        result = task(samples[0])
    costs = []
    for images in samples:
        with measured() as cost:
            task(images)
        costs.append(cost)
    few, more = costs
    further = len(samples[1]) - len(samples[0])
    each = max(0.0, more.seconds - few.seconds) / further if further else 0.0
    return result, Cost(few.seconds + each * (number - len(samples[0])), first.compiling)


def _rows(scores: Scores, chosen: np.ndarray) -> Scores:
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


def effort(work: Work) -> list[float]:
    """How much work a feature of each group is for one image, scored and judged: multiplications, roughly."""
    network, found = work.model.network(image_shape(work.images)), []
    for group in work.plan.groups:
        layers = [network.layers[name] for name in group.layers]
        once = sum(la.kernels * np.prod(la.window) * np.prod(la.positions) for la in layers)
        found.append(float(once * (1 + len(work.plan.amounts))))
    return found
