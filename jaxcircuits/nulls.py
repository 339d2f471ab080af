"""Is a circuit better than chance? Random circuits of equal size, and how many of them do as well."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcircuits.data import image_shape
from jaxcircuits.errors import InputError, check_count, check_seed
from jaxcircuits.evaluation import Evaluation
from jaxcircuits.faithfulness import evaluate
from jaxcircuits.features import Features
from jaxcircuits.granularity import granularity_of, relevant_at
from jaxcircuits.layers import Arrays, Masks
from jaxcircuits.masks import check_alike, top
from jaxcircuits.masks import count as count_kernels
from jaxcircuits.model import Model

# Null circuits that are judged together: they share the full network's maps, and their masks are held at once.
TOGETHER = 8


@dataclass(frozen=True, eq=False)
class Nulls:
    """Circuits beside random ones; K of each of F features, B random circuits of each.

    Attributes:
        values: the circuits' measure (F, K).
        nulls: that of the random circuits (F, K, B); nan where one is constant.
        p: how likely a random circuit does as well (F, K), see `p_values`.
    """

    values: np.ndarray
    nulls: np.ndarray
    p: np.ndarray


def random_masks(
    features: Features, masks: Arrays, relevant: Arrays, *, by_layer: bool = False, draw: int = 0, seed: int = 0
) -> Masks:
    """A random circuit of each feature, of as many kernels as a given one: {layer: (F, I, O) bool}.

    The k relevant kernels of the largest u, u uniform and independent: every set of k kernels is equally likely, in all
    layers together or in each by itself. The control of the lottery-ticket literature (arXiv 1803.03635, 2009.11094).

    Args:
        features: F of them; a feature's circuit depends on its identity, `seed` and `draw`, not on the others.
        masks: {layer: (F, I, O) bool}, whose sizes are taken; or of filters (F, O), and filters are drawn.
        relevant: {layer: (F, I, O) bool}, the kernels that are drawn from, all equally likely.
        by_layer: draw as many kernels in each layer as the circuit has there; by default only as many in all.
        draw, seed: which of the random circuits.

    Raises:
        InputError: masks of other layers or shapes than the relevant kernels, or of another number of features; more
            kernels than are relevant; a seed that is no unsigned 32-bit number.
    """
    possible = {name: jnp.asarray(array, bool) for name, array in relevant.items()}
    there = {name: relevant_at(array, np.ndim(masks.get(name, array))) for name, array in possible.items()}
    check_alike(masks, there)
    if any(len(mask) != len(features) for mask in masks.values()):
        raise InputError(f"there are {len(features)} features; the masks are of {len(next(iter(masks.values())))}")
    check_seed(seed)
    layers = tuple(masks)
    groups = tuple((name,) for name in layers) if by_layer else (layers,)
    counts = tuple(_sizes(masks, group) for group in groups)
    for group, kept in zip(groups, counts, strict=True):
        most = _sizes(there, group)
        if (kept > most).any():
            f, where = int(np.argmax(kept > most)), f" in {group[0]!r}" if by_layer else ""
            unit = granularity_of(there[group[0]], group[0])
            raise InputError(f"feature number {f} keeps {kept[f]} {unit}s{where}, of which only {most[f]} are relevant")
    words, shapes = _words(features, layers), tuple(there[name].shape[1:] for name in layers)
    found = _draw(layers, shapes, groups, words, jnp.int32(draw), jnp.uint32(seed), possible, counts)
    return {name: found[name] for name in layers}  # `jit` sorts dictionaries


def _sizes(masks: Arrays, group: Sequence[str]) -> np.ndarray:
    """What each feature keeps in these layers, of kernels or filters: (F,)."""
    return count_kernels({name: jnp.reshape(masks[name], (len(masks[name]), 1, -1)) for name in group})


def _words(features: Features, layers: Sequence[str]) -> np.ndarray:
    """A number for each feature and layer: (F, L) uint32."""

    def word(identity: str, name: str) -> int:
        return int.from_bytes(hashlib.sha256(f"null {identity} {name}".encode()).digest()[:4])

    return np.array([[word(one, name) for name in layers] for one in features.identities], np.uint32)


@functools.partial(jax.jit, static_argnames=("layers", "shapes", "groups"))
def _draw(
    layers: tuple[str, ...], shapes: tuple[tuple[int, ...], ...], groups: tuple[tuple[str, ...], ...], words: Array,
    draw: Array, seed: Array, relevant: Masks, counts: tuple[Array, ...],
) -> Masks:  # fmt: skip
    """The kernels (or filters) of the largest uniform numbers, all features at once."""
    key = jax.random.fold_in(jax.random.key(seed), draw)

    def uniform(word: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, word), shape)

    values = {
        name: jax.vmap(functools.partial(uniform, shape=shape))(words[:, place])
        for place, (name, shape) in enumerate(zip(layers, shapes, strict=True))
    }
    found: Masks = {}
    for group, kept in zip(groups, counts, strict=True):
        some = ({name: arrays[name] for name in group} for arrays in (values, relevant))
        found |= top(group, *some, kept)
    return found


def p_values(values: np.ndarray, nulls: np.ndarray) -> np.ndarray:
    """How likely a random circuit does as well as this one.

    p = (1 + number of nulls >= the circuit) / (1 + B),  the Monte Carlo p-value of Phipson and Smyth 2010 (arXiv
    1603.05766), which is never 0 and keeps its level at any B. A constant null, whose r is nan, counts as 0: it
    computes nothing of the feature.

    Args:
        values: (F, K), larger is better, 0 for what computes nothing.
        nulls: (F, K, B), the same measure of random circuits.

    Returns:
        (F, K), 1 / (1 + B) to 1; nan where the circuit's own value is.

    Raises:
        InputError: other shapes, or no nulls.
    """
    values, nulls = np.asarray(values, float), np.asarray(nulls, float)
    if nulls.shape[:-1] != values.shape or not nulls.shape[-1]:
        raise InputError(f"the nulls have shape {nulls.shape}; expected {(*values.shape, 'B')}, B at least 1")
    as_good = (np.nan_to_num(nulls) >= values[..., None]).sum(-1)
    return np.where(np.isnan(values), np.nan, (1 + as_good) / (1 + nulls.shape[-1]))


def against_nulls(
    model: Model,
    images,
    features: Features,
    masks: Arrays | Sequence[Arrays],
    relevant: Arrays,
    *,
    measure: Callable[[Evaluation], np.ndarray] = Evaluation.correlation,
    number: int = 19,
    by_layer: bool = False,
    seed: int = 0,
    ablation: str = "zero",
    batch: int | None = None,
) -> Nulls:
    """Judge circuits beside random ones of equal size, on the same images and by the same ablation.

    p = (1 + number of nulls >= the circuit) / (1 + B), as `p_values` has it (arXiv 1603.05766).

    Args:
        model, images, features, ablation, batch: as for `evaluate`.
        masks: {layer: (F, I, O) bool}, of filters (F, O), or K of them.
        relevant: {layer: (F, I, O) bool}, as `relevant_kernels` finds them or `Scores` has them.
        measure: from an evaluation to (F, K), larger is better and 0 for what computes nothing, such as
            `Evaluation.correlation` or `Evaluation.faithfulness`.
        number: B random circuits of each circuit; 19 let p be .05 at the least, 99 let it be .01.
        by_layer: as many kernels in each layer as the circuit has, a harder test: layers are chosen well.
        seed: of the random circuits.

    Raises:
        InputError: as `evaluate` and `random_masks`; number is not at least 1.
    """
    check_count("the number of random circuits", number)
    every: list[Arrays] = [masks] if isinstance(masks, Mapping) else list(masks)
    features = features.resolve(model.network(image_shape(images)).layers)

    def judged(masks: Sequence[Arrays]) -> np.ndarray:
        return measure(evaluate(model, images, features, masks, ablation=ablation, batch=batch))

    values = judged(every)
    nulls = np.empty((*values.shape, number))
    for k, mask in enumerate(every):
        for start in range(0, number, TOGETHER):
            draws = range(start, min(start + TOGETHER, number))
            drawn = [random_masks(features, mask, relevant, by_layer=by_layer, draw=d, seed=seed) for d in draws]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*so that r is not defined")  # most small ones are constant
                nulls[:, k, draws.start : draws.stop] = judged(drawn)
    return Nulls(values, nulls, p_values(values, nulls))
