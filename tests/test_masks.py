"""Top kernels against a stable sort, and the overlap of masks."""

import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxcircuits as jc
from jaxcircuits.masks import keep_counts, top
from jaxcircuits.scores import Record, Scores
from tests import twins

SHAPES = {"b": (2, 3), "a": (4, 1), "c": (1, 5)}  # (I, O) in call order, which is not the alphabet's
FEATURES = 3
TINY = np.float32(1e-45)  # not normal: XLA takes it for zero in arithmetic
AWKWARD = [0.0, -0.0, 1.0, -1.0, 0.5, 3.4e38, -3.4e38, 1e-38, -1e-38, TINY, -TINY]

values = st.fixed_dictionaries(
    {
        name: hnp.arrays(np.float32, (FEATURES, *shape), elements=st.sampled_from(AWKWARD) | st.floats(-2, 2, width=16))
        for name, shape in SHAPES.items()
    }
)
relevance = st.fixed_dictionaries({name: hnp.arrays(bool, (FEATURES, *shape)) for name, shape in SHAPES.items()})


def scores_of(values, relevant=None):
    relevant = relevant or {name: np.ones(v.shape, bool) for name, v in values.items()}
    record = Record("snip", "none", "abs", 1, None, "float32")
    arrays = ({name: jnp.asarray(a) for name, a in arrays.items()} for arrays in (values, relevant))
    return Scores(*arrays, tuple(SHAPES), record)


def row(arrays, f):
    return {name: np.asarray(a[f]) for name, a in arrays.items()}


@given(values, relevance, st.floats(0.001, 1))
def test_top_kernels_are_those_of_a_stable_sort(values, relevant, keep):
    for mask in relevant.values():
        mask[:, 0, 0] = True
    masks = jc.top_kernels(scores_of(values, relevant), keep=keep)
    for f in range(FEATURES):
        number = sum(int(mask[f].sum()) for mask in relevant.values())
        count = max(1, math.floor(Fraction(keep * number) + Fraction(1, 2)))
        expected = twins.top_kernels(row(values, f), row(relevant, f), SHAPES, count)
        for name in SHAPES:
            np.testing.assert_array_equal(masks[name][f], expected[name])


@given(values, st.integers(1, 15))
def test_kernels_are_kept_exactly_and_nested(values, count):
    scores = scores_of(values)
    fewer, masks = (jc.top_kernels(scores, kernels=k) for k in (max(count - 1, 1), count))
    for f in range(FEATURES):
        assert sum(int(mask[f].sum()) for mask in masks.values()) == count
    assert all((masks[name] >= fewer[name]).all() for name in SHAPES)


@given(values, relevance, st.integers(1, 3))
def test_what_is_compiled_keeps_the_same(values, relevant, count):
    for mask in relevant.values():
        mask[:, 0, 0] = True
    scores = scores_of(values, relevant)
    masks = jc.top_kernels(scores, kernels=count)
    compiled = top(tuple(SHAPES), scores.values, scores.relevant, jnp.full(FEATURES, count))
    for name in SHAPES:
        np.testing.assert_array_equal(compiled[name], masks[name])


def test_numbers_below_the_normal_ones_keep_their_order():
    flat = {name: np.zeros((1, *shape), np.float32) for name, shape in SHAPES.items()}
    flat["c"][0, 0, :3] = [TINY, 0, -TINY]
    assert np.asarray(jc.top_kernels(scores_of(flat), kernels=1)["c"])[0, 0].tolist() == [True, *[False] * 4]
    masks = jc.top_kernels(scores_of(flat), kernels=14)
    assert np.asarray(masks["c"])[0, 0].tolist() == [True, True, False, True, True]


def test_ties_go_to_the_first_by_layer_output_and_input():
    masks = jc.top_kernels(scores_of({name: np.zeros((1, *shape)) for name, shape in SHAPES.items()}), kernels=8)
    np.testing.assert_array_equal(masks["b"][0], np.ones((2, 3)))  # first in call order, though not in the alphabet
    np.testing.assert_array_equal(masks["a"][0, :, 0], [1, 1, 0, 0])
    assert not masks["c"].any()
    assert list(masks) == list(SHAPES)
    five = jc.top_kernels(scores_of({name: np.zeros((1, *shape)) for name, shape in SHAPES.items()}), kernels=5)
    np.testing.assert_array_equal(five["b"][0], [[1, 1, 1], [1, 1, 0]])  # o before i


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_numbers(bad):
    broken = {name: np.zeros((1, *shape), np.float32) for name, shape in SHAPES.items()}
    broken["c"][0, 0, 4] = bad
    with pytest.raises(jc.InputError, match="scores hold values that are not finite"):
        jc.top_kernels(scores_of(broken), keep=0.5)


def test_a_feature_without_relevant_kernels():
    relevant = {name: np.ones((2, *shape), bool) for name, shape in SHAPES.items()}
    for mask in relevant.values():
        mask[1] = False
    with pytest.raises(jc.InputError, match="feature number 1 has no relevant kernel"):
        jc.top_kernels(scores_of({name: np.ones(m.shape) for name, m in relevant.items()}, relevant), keep=0.5)


def test_counts_are_rounded_half_up_and_at_least_one():
    relevant = np.array([1, 2, 5, 10, 12672, 184768])
    assert keep_counts(relevant, 0.5, None).tolist() == [1, 1, 3, 5, 6336, 92384]
    assert keep_counts(relevant, 0.25, None).tolist() == [1, 1, 1, 3, 3168, 46192]
    assert keep_counts(relevant, 1e-9, None).tolist() == [1] * 6
    assert keep_counts(relevant, 1, None).tolist() == relevant.tolist()
    assert keep_counts(relevant, np.float32(0.5), None).tolist() == [1, 1, 3, 5, 6336, 92384]
    assert keep_counts(relevant, None, np.int64(1)).tolist() == [1] * 6


@pytest.mark.parametrize("keep", [0, -0.1, 1.0001, 2, float("nan"), float("inf"), True, False, "0.1", [0.1]])
def test_fractions_that_cannot_be_kept(keep):
    with pytest.raises(jc.InputError, match=r"keep is .*; expected a fraction over 0 and at most 1"):
        keep_counts(np.array([10]), keep, None)


@pytest.mark.parametrize("kernels", [0, -1, 1.0, True, "5"])
def test_numbers_that_cannot_be_kept(kernels):
    with pytest.raises(jc.InputError, match=r"kernels is .*; expected a whole number of at least 1"):
        keep_counts(np.array([10]), None, kernels)


def test_either_a_fraction_or_a_number():
    with pytest.raises(jc.InputError, match="kernels is 11, but a feature has only 10 relevant ones"):
        keep_counts(np.array([12, 10]), None, 11)
    for keep, kernels in [(None, None), (0.5, 5)]:
        with pytest.raises(jc.InputError, match="give either keep"):
            keep_counts(np.array([10]), keep, kernels)


@given(relevance, relevance)
def test_overlap_is_that_of_sets(a, b):
    everything, by_layer = jc.iou(a, b)

    def overlap(one, other):
        one, other = set(zip(*np.nonzero(one), strict=True)), set(zip(*np.nonzero(other), strict=True))
        return len(one & other) / len(one | other) if one | other else np.nan

    def joined(masks, f):
        return np.concatenate([masks[name][f].ravel() for name in SHAPES])

    for f in range(FEATURES):
        np.testing.assert_allclose(everything[f], overlap(joined(a, f), joined(b, f)), rtol=1e-6)
        for name in SHAPES:
            np.testing.assert_allclose(by_layer[name][f], overlap(a[name][f], b[name][f]), rtol=1e-6)


def test_overlap_of_masks_that_do_not_fit():
    a = {"x": np.ones((2, 3), bool)}
    with pytest.raises(jc.InputError, match=r"different layers: \['y'\] stand in one of them only"):
        jc.iou(a, a | {"y": np.ones((1, 1), bool)})
    with pytest.raises(jc.InputError, match=r"masks of 'x' differ in shape: \(2, 3\) and \(3, 2\)"):
        jc.iou(a, {"x": np.ones((3, 2), bool)})
    with pytest.raises(jc.InputError, match=r"masks of 'x' differ in shape: \(2, 2, 3\) and \(3, 2, 3\)"):
        jc.iou({"x": np.ones((2, 2, 3), bool)}, {"x": np.ones((3, 2, 3), bool)})


def test_halves_are_rounded_up_as_they_are_written():
    assert keep_counts(np.array([50, 100, 3]), 0.29, None).tolist() == [15, 29, 1]
    assert keep_counts(np.array([50]), 0.01, None).tolist() == [1]


def test_complement_is_what_else_is_relevant():
    relevant = {"a": np.array([[[1, 1, 0], [1, 0, 1]]], bool)}
    masks = {"a": np.array([[[1, 0, 0], [0, 0, 1]]], bool)}
    np.testing.assert_array_equal(jc.complement(masks, relevant)["a"], [[[0, 1, 0], [1, 0, 0]]])
    for other in ({"b": masks["a"]}, {"a": masks["a"][:, :1]}):
        with pytest.raises(jc.InputError, match="the masks"):
            jc.complement(other, relevant)


def test_stability():
    """Nogueira, Sechidis and Brown's Phi, by its definition over the relevant kernels; 1, 0 and nan where they must."""
    rng = np.random.default_rng(0)
    relevant = {"a": rng.random((3, 4, 50)) < 0.8, "b": np.ones((3, 5, 60), bool)}
    same = {name: (rng.random(r.shape) < 0.3) & r for name, r in relevant.items()}
    same = {name: mask & (np.arange(3) < 2)[:, None, None] for name, mask in same.items()}
    found = jc.stability([same, same, same], relevant)
    np.testing.assert_allclose(found, [1, 1, np.nan])
    drawn = [{name: (rng.random(r.shape) < 0.3) & r for name, r in relevant.items()} for _ in range(5)]
    phi = jc.stability(drawn, relevant)
    for f in range(3):
        kept = np.array([np.concatenate([m[n][f][relevant[n][f]] for n in relevant]) for m in drawn], float)
        q = kept.mean()
        np.testing.assert_allclose(phi[f], 1 - kept.var(0, ddof=1).mean() / (q * (1 - q)), rtol=1e-12)
    assert np.abs(phi).max() < 0.1
    with pytest.raises(jc.InputError, match="two masks or more; got 1"):
        jc.stability([same], relevant)
    filters = {name: mask.any(1) for name, mask in relevant.items()}
    with pytest.raises(jc.InputError, match="stability is of masks of kernels"):
        jc.stability([filters, filters], filters)
