"""From scores to masks: how many kernels are kept, which, and how two masks compare."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxcircuits.errors import InputError
from jaxcircuits.features import find_layer
from jaxcircuits.granularity import AXES, count_relevant, relevant_at, shape_at
from jaxcircuits.layers import Arrays, Layer, Masks
from jaxcircuits.scores import Scores


def keep_counts(relevant: np.ndarray, keep: float | None, kernels: int | None) -> np.ndarray:
    """How many of each feature's relevant kernels are kept: keep * relevant, rounded half up, at least 1; or `kernels`.

    Raises:
        InputError: both or neither given, keep not in (0, 1], kernels not in 1 ... relevant.
    """
    relevant = np.asarray(relevant)
    if (keep is None) == (kernels is None):
        raise InputError("give either keep, a fraction of the relevant kernels, or kernels, their number")
    if kernels is not None:
        if isinstance(kernels, bool) or not isinstance(kernels, (int, np.integer)) or kernels < 1:
            raise InputError(f"kernels is {kernels!r}; expected a whole number of at least 1")
        if kernels > relevant.min():
            raise InputError(f"kernels is {kernels}, but a feature has only {relevant.min()} relevant ones")
        return np.full_like(relevant, kernels)
    if isinstance(keep, bool) or not isinstance(keep, (int, float, np.floating)) or not 0 < keep <= 1:
        raise InputError(f"keep is {keep!r}; expected a fraction over 0 and at most 1")
    exact = Decimal(str(float(keep)))  # .29 of 50 is 14.5 and makes 15; in binary it is less
    halves_up = [int((exact * int(n)).to_integral_value(ROUND_HALF_UP)) for n in relevant.flat]
    return np.maximum(np.array(halves_up, relevant.dtype).reshape(relevant.shape), 1)


def top_kernels(scores: Scores, *, keep: float | None = None, kernels: int | None = None) -> Masks:
    """Keep the kernels of highest score: exactly k of each feature's relevant ones, and no others.

    Scores of weights or filters give masks of weights or filters, k of them. Ties go to what comes first by (layer in
    call order, output channel o, input channel i, weight). Signed scores are ranked as they are, the most negative
    last. Masks of the same scores are nested over keep.

    Args:
        scores: as `score` returns them.
        keep: fraction of the relevant kernels, 0 < keep <= 1; k is rounded half up and at least 1.
        kernels: k itself. By default what the scores were made for, where they depend on that ("force", "learned").

    Returns:
        {layer: (F, I, O) bool}, of weights (F, K, I, O), of filters (F, O).

    Raises:
        InputError: as `keep_counts`; scores that are not numbers; a feature without any relevant kernel.
    """
    if keep is None and kernels is None:
        keep, kernels = scores.record.keep, scores.record.kernels
    return tops([scores], [{"keep": keep, "kernels": kernels}])[0]


def tops(
    scores: Sequence[Scores], amounts: Sequence[Mapping[str, Any]], labels: Sequence[str] | None = None
) -> list[Masks]:
    """`top_kernels` of each of K scores at its amount, `keep` or `kernels`; the same scores are ranked once. Errors
    name a feature by its label, if there are any."""
    masks: list[Masks] = [{}] * len(scores)
    for one in {id(found): found for found in scores}.values():
        numbers = [k for k, found in enumerate(scores) if found is one]
        relevant = count_relevant(one.relevant, {name: one.values[name].shape[1:] for name in one.layers})
        if (relevant == 0).any():
            f = int(relevant.argmin())
            raise without_kernels(labels[f] if labels else f"feature number {f}")
        counts = [keep_counts(relevant, amounts[k].get("keep"), amounts[k].get("kernels")) for k in numbers]
        if not all(bool(jnp.isfinite(one.values[name]).all()) for name in one.layers):
            raise InputError("the scores hold values that are not finite; the images or weights do, too")
        codes = _codes(one.layers, dict(one.values), dict(one.relevant))
        of_all = _sorted_thresholds if jax.default_backend() == "cpu" else _thresholds
        thresholds = map(np.asarray, of_all(codes, np.stack(counts, -1)))
        for k, *of_one in zip(numbers, *(a.T for a in thresholds), strict=True):
            found = _over(one.layers, dict(one.values), codes, *of_one)
            masks[k] = {name: found[name] for name in one.layers}  # `jit` sorts dictionaries
    return masks


def without_kernels(feature: str) -> InputError:
    """What is wrong with a feature that none of the scored layers leads to."""
    return InputError(f"{feature} has no relevant kernel in the scored layers")


@functools.partial(jax.jit, static_argnames="layers")
def top(layers: tuple[str, ...], values: Masks, relevant: Masks, counts: Array) -> Masks:
    """`top_kernels` for counts (F,), of values at any granularity and relevant kernels (F, I, O)."""
    codes = _codes(layers, values, relevant)
    return _over(layers, values, codes, *(a[:, 0] for a in _thresholds(codes, counts[:, None])))


@functools.partial(jax.jit, static_argnames="layers")
def _codes(layers: tuple[str, ...], values: Masks, relevant: Masks) -> Array:
    """Unsigned numbers in the scores' order, 0 where not relevant: (F, all that have a score), which stand in PyTorch's
    order (layer, O, I, K), by which ties are broken, as far as there are these axes."""
    codes = (jnp.where(relevant_at(relevant[name], values[name].ndim), _ordered(values[name]), 0) for name in layers)
    return jnp.concatenate([_by_output(code).reshape(len(code), -1) for code in codes], 1)


@jax.jit
def _thresholds(codes: Array, counts: Array) -> tuple[Array, Array]:
    """The k-th largest code for counts k (F, K), and the place of the last of its ties that is among the first k:
    (F, K) both.

    The 32 bits of each are found by bisection.
    """

    def at_least(threshold: Array) -> Array:
        return (codes[:, None] >= threshold[..., None]).sum(-1, dtype=jnp.int32)

    def bisect(step: Array, threshold: Array) -> Array:
        higher = threshold | (jnp.uint32(1) << (jnp.uint32(31) - step.astype(jnp.uint32)))
        return jnp.where(at_least(higher) >= counts, higher, threshold)

    threshold = lax.fori_loop(0, 32, bisect, jnp.zeros(counts.shape, jnp.uint32))
    left, surplus = counts - at_least(threshold + 1), at_least(threshold) > counts

    def of_level(given: tuple[Array, Array]) -> Array:  # one after another, for memory
        threshold, left = given
        tied = codes == threshold[:, None]
        return (jnp.cumsum(tied, axis=1, dtype=jnp.int32) < left[:, None]).sum(1, dtype=jnp.int32)

    def places() -> Array:
        return lax.map(of_level, (threshold.T, left.T)).T

    return threshold, lax.cond(surplus.any(), places, lambda: jnp.full(counts.shape, codes.shape[1], jnp.int32))


def _sorted_thresholds(codes: Array, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_thresholds` by sorting, with NumPy: 20 to 50 times as fast on a CPU for the levels of a curve."""
    thresholds, places = np.empty(counts.shape, np.uint32), np.empty(counts.shape, np.int32)
    for f, row in enumerate(np.asarray(codes)):
        ordered = np.sort(row)
        thresholds[f] = ordered[len(row) - counts[f]]
        left = counts[f] - (len(row) - np.searchsorted(ordered, thresholds[f], "right"))
        places[f] = [np.flatnonzero(row == t)[n - 1] for t, n in zip(thresholds[f], left, strict=True)]
    return thresholds, places


@functools.partial(jax.jit, static_argnames="layers")
def _over(layers: tuple[str, ...], like: Masks, codes: Array, threshold: Array, place: Array) -> Masks:
    """The masks, of the values' shapes, of what is over a threshold (F,) or equal to it up to a place (F,)."""
    tied = (codes == threshold[:, None]) & (jnp.arange(codes.shape[1]) <= place[:, None])
    chosen, masks, start = (codes > threshold[:, None]) | tied, {}, 0
    for name in layers:
        shape = (len(codes), *reversed(like[name].shape[1:]))
        end = start + math.prod(shape[1:])
        masks[name], start = _by_output(chosen[:, start:end].reshape(shape)), end
    return masks


def _by_output(array: Array) -> Array:
    """(F, K, I, O), (F, I, O) or (F, O) with all axes but the first in reverse; and back."""
    return array.transpose(0, *reversed(range(1, array.ndim)))


def _ordered(values: Array) -> Array:
    """Floats as unsigned numbers in the same order, all of them over 0, which stands for "not relevant"."""
    sign = jnp.uint32(1 << 31)
    bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    bits = jnp.where(bits == sign, 0, bits)  # -0 is 0; XLA takes `values + 0.0` for `values`
    return jnp.where(bits >= sign, ~bits, bits | sign)


def iou(a: Arrays, b: Arrays) -> tuple[Array, dict[str, Array]]:
    """Intersection over union of two masks of kernels, in all and layer by layer; nan where both are empty.

    Args:
        a, b: {layer: (..., I, O) bool} with the same layers and shapes.

    Returns:
        The overlap (...) over all kernels, and {layer: overlap (...)}.

    Raises:
        InputError: the layers or their shapes differ.
    """
    check_alike(a, b)
    both, either = {}, {}
    for name in a:
        one, other = jnp.asarray(a[name], bool), jnp.asarray(b[name], bool)
        both[name] = (one & other).sum((-2, -1), dtype=jnp.int32)
        either[name] = (one | other).sum((-2, -1), dtype=jnp.int32)
    return sum(both.values()) / sum(either.values()), {name: both[name] / either[name] for name in a}  # pyright: ignore


def stability(masks: Sequence[Arrays], relevant: Arrays) -> np.ndarray:
    """How much the masks of M runs, such as scores of different image subsets, agree beyond chance: (F,).

    Phi = 1 - mean over kernels of s^2 / (q (1 - q)),  s^2 = M / (M - 1) p (1 - p),  p the share of masks that have a
    kernel and q the mean of p, all over the relevant kernels (Nogueira, Sechidis, Brown 2018, JMLR 18(174)).

    Args:
        masks: M of them, {layer: (F, I, O) bool}, all within `relevant`.
        relevant: {layer: (F, I, O) bool}.

    Returns:
        1 where all M masks are the same, 0 in the mean of random ones, at least -1 / (M - 1); nan where they have none
        or all of the kernels.

    Raises:
        InputError: fewer than two masks, masks of weights or filters, or layers or shapes that differ.
    """
    number = len(masks)
    if number < 2:
        raise InputError(f"stability is of two masks or more; got {number}")
    possible, chosen, mixed = count(relevant).astype(float), 0, 0
    for mask in masks:
        check_alike(mask, relevant)
    for name in relevant:
        if np.ndim(relevant[name]) != 3:
            shape = np.shape(relevant[name])
            raise InputError(f"stability is of masks of kernels, (F, I, O); that of {name!r} has shape {shape}")
        found = np.asarray(sum(jnp.asarray(mask[name], jnp.int32) for mask in masks), np.int64)
        chosen, mixed = chosen + found.sum((1, 2)), mixed + (found * (number - found)).sum((1, 2))
    q = chosen / number / possible
    variance = mixed / (number * (number - 1)) / possible
    expected = q * (1 - q)
    return 1 - np.divide(variance, expected, out=np.full(q.shape, np.nan), where=expected > 0)


def count(masks: Arrays) -> np.ndarray:
    """Kernels in each mask: {layer: (..., I, O) bool} -> (...)."""
    return np.asarray(sum(jnp.asarray(mask).sum((-2, -1), dtype=jnp.int32) for mask in masks.values()))


def complement(masks: Arrays, relevant: Arrays) -> Masks:
    """The relevant kernels that a circuit has not: {layer: (F, I, O) bool}.

    m'[i, o] = relevant[i, o] and not m[i, o].  How well they compute the feature says how complete the circuit is: what
    it left out should do badly (completeness, arXiv 2211.00593; as the faithfulness of what remains, arXiv 2403.19647).

    Args:
        masks, relevant: {layer: (F, I, O) bool}, as from `top_kernels` and `relevant_kernels` or `score`.

    Raises:
        InputError: the layers or their shapes differ.
    """
    check_alike(masks, relevant)
    return {name: jnp.asarray(relevant[name], bool) & ~jnp.asarray(mask, bool) for name, mask in masks.items()}


def check_alike(a: Arrays, b: Arrays) -> None:
    """Raise an InputError if two masks have other layers or shapes."""
    if set(a) != set(b):
        raise InputError(f"the masks cover different layers: {sorted(set(a) ^ set(b))} stand in one of them only")
    for name in a:
        if np.shape(a[name]) != np.shape(b[name]):
            raise InputError(f"the masks of {name!r} differ in shape: {np.shape(a[name])} and {np.shape(b[name])}")


def check_masks(
    layers: Mapping[str, Layer],
    masks: Arrays,
    features: int | None = None,
    *,
    among: Sequence[str] = ("kernel",),
) -> None:
    """Raise an InputError for masks of other layers, granularities or shapes than a network's, or of another number of
    features."""
    for name, mask in masks.items():
        layer, shape = find_layer(layers, name), np.shape(mask)
        if layer.trouble:
            raise InputError(layer.trouble)
        first = shape[0] if features is None and shape else features
        granularity = next((g for g in among if AXES[g] == len(shape)), "kernel")
        if shape != (first, *shape_at(layer, granularity)):
            expected = ("F" if features is None else features, *shape_at(layer, granularity))
            raise InputError(f"the mask of {name!r} has shape {shape}; expected ({', '.join(map(str, expected))})")
