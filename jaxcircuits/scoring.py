"""Score every relevant kernel of many features over a set of images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcircuits.chunks import Collected, chunk_at
from jaxcircuits.criteria import BASELINES, IN_ROUNDS, SEEDED, STEPS, TRAINED, force
from jaxcircuits.criteria import criterion as find_criterion
from jaxcircuits.data import count, image_shape
from jaxcircuits.errors import InputError
from jaxcircuits.features import Features
from jaxcircuits.granularity import count_relevant, fitted, shape_at
from jaxcircuits.layers import before
from jaxcircuits.masks import keep_counts, without_kernels
from jaxcircuits.model import Model
from jaxcircuits.options import PRECISIONS, Options, check_steps
from jaxcircuits.passes import fitting, scores_of_chunk
from jaxcircuits.paths import relevant
from jaxcircuits.plans import Plan, arranged, sparse_layers
from jaxcircuits.rounds import SHORT, looked_at, rounds
from jaxcircuits.scores import Record, Scores
from jaxcircuits.training import learn


def score(
    model: Model,
    images,
    features: Features,
    *,
    criterion: str = "snip",
    absolute: str = "per_image",
    layers: Sequence[str] | None = None,
    granularity: str = "kernel",
    keep: float | None = None,
    kernels: int | None = None,
    steps: int | None = None,
    schedule: Sequence[int] | None = None,
    seed: int = 0,
    precision: str = "float32",
    chunk: int | None = None,
    batch: int | None = None,
    progress: Callable[[float], object] = lambda done: None,
) -> Scores:
    """Score the kernels of every layer before the features, and of their own.

    Args:
        model: the network and its weights.
        images: what `read_images` returns, or a normalised float array (N, H, W, C).
        features: F of them, of one layer.
        criterion: "snip", "actgrad", "force", "magnitude", "random" or "learned"; the equations stand in
            `jaxcircuits.criteria`.
        absolute: where absolute values are taken: "per_image" (the default), "whole_set" (not ActGrad) or "none". The
            three are different quantities; none depends on how images are batched.
        layers: those to score; by default all convolutions before the features and, for a feature of a dense layer, the
            dense layers too.
        granularity: what has a score: "kernel", "filter" (an output channel) or "weight" (not ActGrad). How one is made
            of another stands at `scores_at`; ActGrad's filters are a quantity of their own. Scores of weights take as
            many times the memory of kernels' as a kernel has weights: AlexNet's features.10, 10 MB a feature.
        keep, kernels: how much the circuit will keep, one of them, for "force" and "learned", which depend on it.
        steps: rounds of "force", 10 by default; of "learned", steps once the circuit has its size, 400 by default,
            after half as many for each shrink to 1/e of it; 200 take half the time, for circuits a little worse.
        schedule: how many kernels each round of "force" keeps, instead of `steps`, and of `keep` and `kernels`.
        seed: of criteria "random" and "learned".
        precision: of matrix products: "float32", or on hardware that has them "tf32" and "bfloat16".
        chunk: features scored together; by default as many as fit in memory, up to 64.
        batch: images in one device call, by default a few.
        progress: called with the number of features times images done since the last call.

    Returns:
        Scores for all F features, in their order.

    Raises:
        InputError: an unknown name, an option that the criterion does not have, a channel, direction or position that
            the layer does not have, no images, images of another shape than the model takes, or weights that are
            missing.
    """
    options = Options(criterion, absolute, layers, granularity, steps, seed, precision, chunk, batch)
    check_steps(steps, [criterion])
    level = Level.of(criterion, keep, kernels, steps, schedule)
    return score_levels(model, images, features, [level], options, progress)[0]


class Level(NamedTuple):
    """How much is kept, and on the way there; all None where scores do not depend on it."""

    keep: float | None = None
    kernels: int | None = None
    steps: int | None = None
    schedule: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        criterion: str,
        keep: float | None = None,
        kernels: int | None = None,
        steps: int | None = None,
        schedule: Sequence[int] | None = None,
    ) -> Level:
        """The level of a criterion's options, or an InputError if they are not its own."""
        if criterion not in STEPS:
            if (keep, kernels, schedule) != (None, None, None):
                raise InputError(f"{criterion}'s scores do not depend on how much is kept; give that to top_kernels")
            return cls()
        if schedule is None:
            if (keep is None) == (kernels is None):
                raise InputError(f"{criterion} depends on how much is kept: give either keep or kernels")
            return cls(keep, kernels, steps or STEPS[criterion])
        if criterion not in IN_ROUNDS:
            raise InputError(f"{criterion} has no schedule; expected keep or kernels")
        rounds = tuple(schedule) if isinstance(schedule, Iterable) else ()
        if (keep, kernels, steps) != (None, None, None) or not rounds:
            raise InputError("a schedule says how many kernels each round keeps, the last one those of the circuit")
        return cls(kernels=rounds[-1], steps=len(rounds), schedule=rounds)

    @classmethod
    def each(cls, criterion: str, amounts: Sequence[Mapping[str, Any]], steps: int | None) -> list[Level]:
        """The level of each amount, `keep` or `kernels`; the empty one where scores do not depend on it."""
        return [cls.of(criterion, **amount, steps=steps) if criterion in STEPS else cls() for amount in amounts]

    def kept(self, relevant: np.ndarray) -> np.ndarray:
        """How many kernels are kept of each feature's relevant ones (F,)."""
        return keep_counts(relevant, self.keep, self.kernels)

    def counts(self, relevant: np.ndarray) -> np.ndarray:
        """How many kernels each round keeps of each feature's relevant ones (F,): (T, F)."""
        if self.schedule is None:
            return force.counts(relevant, self.kept(relevant), self.steps or force.STEPS)
        return np.stack([keep_counts(relevant, None, kept) for kept in self.schedule])


def score_levels(
    model: Model,
    images,
    features: Features,
    levels: Sequence[Level],
    options: Options,
    progress: Callable[[float], object] = lambda done: None,
) -> list[Scores]:
    """`score` for each level: what does not depend on the level is computed once."""
    criterion, absolute, granularity, seed = options.criterion, options.absolute, options.granularity, options.seed
    network = model.network(image_shape(images))
    features = features.resolve(network.layers)
    _, once, back = np.unique(features.identities, return_index=True, return_inverse=True)
    if criterion in STEPS and len(once) < len(features):  # what fills up a chunk is not scored again and again
        each = len(features) / len(once)
        found = score_levels(
            model, images, features[np.sort(once)], levels, options, lambda done: progress(done * each)
        )
        return [jax.tree.map(lambda a: a[np.argsort(np.argsort(once))[back]], scores) for scores in found]
    chosen = options.scored(network, features.layer)
    model.check_weights((*chosen, features.layer))
    number = count(images)
    record = Record(criterion, absolute, features.objective, number, None, options.precision, granularity=granularity)
    if criterion in BASELINES:
        possible = relevant(network, model.variables, features, chosen)
        weights = {name: network.layers[name].weight(model.variables) for name in chosen}
        values = BASELINES[criterion](weights, features.identities, granularity=granularity, seed=seed)
        values = {name: fitted(values[name], possible[name], granularity) for name in chosen}
        record = record._replace(absolute=None, seed=seed if criterion in SEEDED else None)
        progress(len(features) * number)
        return [Scores(values, possible, chosen, record)] * len(levels)
    rule = find_criterion(criterion, absolute, granularity)
    looked = features.objective, features.place
    plan = Plan(network, features.layer, chosen, rule, *looked, PRECISIONS[options.precision], granularity)
    size = options.sizes(network, chosen, images, len(features))
    plan = plan._replace(sparse=sparse_layers(plan, model.variables, size.together, images))
    if options.chunk is None:
        size = fitting(plan, model.variables, size)
    weights = arranged(plan, model.variables, size)
    first = Collected(len(features))
    while first.done < len(features):
        part = chunk_at(features, first.done, size.features)
        share = min(1, (len(features) - first.done) / size.features)  # the last chunk is filled up
        asked = plan, model.variables, weights, images, number, part, size
        try:
            first.add(scores_of_chunk(*asked, lambda done, share=share: progress(done * share)))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or size.features == 1:
                raise
            size = size.halved()
            weights = arranged(plan, model.variables, size)
            warnings.warn(f"out of memory: going on with {size.features} features at a time", stacklevel=3)
    values, possible = first.whole
    record = record._replace(sparse=bool(plan.sparse))
    if criterion not in STEPS:
        return [Scores(values, possible, chosen, record)] * len(levels)
    directions = jnp.asarray(features.matrix(network.layers[features.layer].outputs))
    shapes = {name: shape_at(network.layers[name], granularity) for name in chosen}
    if not (reached := count_relevant(possible, shapes)).all():
        raise without_kernels(features.labels[int(reached.argmin())])
    records = [record._replace(**level._asdict()) for level in levels]
    if criterion in TRAINED:
        kept = np.stack([level.kept(reached) for level in levels])
        learned = learn(
            plan, model.network, model.variables, images, directions, dict(values), dict(possible), kept,
            steps=levels[0].steps or STEPS[criterion], seed=seed, progress=progress,
        )  # fmt: skip
        return [Scores(v, possible, chosen, r._replace(seed=seed)) for v, r in zip(learned, records, strict=True)]
    plan = plan._replace(sparse=(), circuit=True, live=len(before(network.layers, features.layer)) <= SHORT)
    plan, places = looked_at(plan, model.variables, images, number, features, size.images)
    weights = arranged(plan, model.variables, size)
    found = []
    for level, record in zip(levels, records, strict=True):
        counts, last = level.counts(reached), Collected(len(features))
        for some in (slice(start, start + size.features) for start in range(0, len(features), size.features)):
            scores, there = ({name: a[some] for name, a in arrays.items()} for arrays in (values, possible))
            asked = plan, model.variables, weights, images, number, directions[some], places[some]
            last.add(rounds(*asked, scores, there, counts[:, some], size.images, progress))
        found.append(Scores(last.whole, possible, chosen, record))
    return found
