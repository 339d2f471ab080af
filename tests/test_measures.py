"""Every measure against its definition on the values themselves, which the measures never see."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcircuits as jc
from jaxcircuits import measures
from jaxcircuits.evaluation import Evaluation
from jaxcircuits.measures import Moments


def moments_of(x, y):
    """Moments of values x (F, K, N, P) and y (F, N, P)."""

    def of_images(a):
        mean = a.mean(-1)
        return mean, ((a - mean[..., None]) ** 2).sum(-1), a.min(-1), a.max(-1)

    covariance = ((x - x.mean(-1, keepdims=True)) * (y - y.mean(-1, keepdims=True))[:, None]).sum(-1)
    count = np.full(y.shape[:2], y.shape[2])
    arrays = (count, *of_images(y), *of_images(x), covariance, ((x - y[:, None]) ** 2).sum(-1))
    return Moments(*(a.astype(np.float32) for a in arrays))


def values(seed=0, features=2, circuits=3, images=6, positions=5):
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((features, images, positions)).astype(np.float32) + 3
    noise = rng.standard_normal((features, circuits, images, positions)).astype(np.float32)
    return 0.5 * y[:, None] + noise, y


def plainly(measure, x, y, weights):
    """A measure (x, y) -> number on the repeated images of each sample: (F, K, B)."""
    found = np.empty((*x.shape[:2], len(weights)))
    for f, k, b in np.ndindex(found.shape):
        rows = np.repeat(np.arange(len(y[f])), weights[b])
        found[f, k, b] = measure(x[f, k, rows].ravel().astype(float), y[f, rows].ravel().astype(float))
    return found


PLAIN = {
    measures.pearson: lambda x, y: np.corrcoef(x, y)[0, 1],
    measures.mean_squared_error: lambda x, y: np.mean((x - y) ** 2),
    measures.relative_squared_error: lambda x, y: np.mean((x - y) ** 2) / np.var(y),
}


@pytest.mark.parametrize("measure", PLAIN, ids=lambda m: m.__name__)
@given(seed=st.integers(0, 99), images=st.integers(2, 7), positions=st.integers(1, 5), data=st.data())
@settings(max_examples=15)
def test_measures_of_weighted_images(measure, seed, images, positions, data):
    x, y = values(seed, images=images, positions=positions)
    found = moments_of(x, y)
    if images * positions > 3:
        ones = np.ones((1, images), int)
        expected = plainly(PLAIN[measure], x, y, ones)
        np.testing.assert_allclose(measure(found), expected[..., 0], atol=1e-5, rtol=1e-5)
    rows = st.lists(st.integers(0, 3), min_size=images, max_size=images)
    weights = np.array(data.draw(st.lists(rows.filter(lambda w: sum(map(bool, w)) > 1), min_size=1, max_size=3)))
    if positions > 1:
        expected = plainly(PLAIN[measure], x, y, weights)
        np.testing.assert_allclose(measure(found, weights), expected, atol=1e-5, rtol=1e-5)


def test_faithfulness_and_its_ends():
    x, y = values()
    nothing = np.full_like(y, 0.5)[:, None]
    circuits = np.concatenate([x, y[:, None], nothing], 1)
    found = measures.normalised_faithfulness(moments_of(circuits, y), moments_of(nothing, y))
    error = ((x - y[:, None]) ** 2).mean((2, 3))
    np.testing.assert_allclose(found[:, :3], 1 - error / ((0.5 - y) ** 2).mean((1, 2))[:, None], rtol=1e-5)
    np.testing.assert_array_equal(found[:, 3:], [[1, 0]] * 2)
    full = moments_of(y[:, None], y)
    assert np.isnan(measures.normalised_faithfulness(full, full)).all(), "the empty circuit is the network"


def test_areas():
    """By hand: f through (0, 0), (.2, .5), (.6, .9), (1, 1)."""
    f = np.array([[0.9, 0.5], [np.nan, 0.5]])
    area = 0.2 * 0.25 + 0.4 * 0.7 + 0.4 * 0.95
    np.testing.assert_allclose(measures.cpr(f, [0.6, 0.2]), [area, np.nan])
    np.testing.assert_allclose(measures.cmd(f, [0.6, 0.2]), [1 - area, np.nan])
    np.testing.assert_allclose(measures.cmd([[1.5, 1.0]], [0.5, 1]), [0.5 * (1 + 0.5) / 2 + 0.5 * 0.5 / 2])
    np.testing.assert_allclose(measures.cpr([[0.0, -1.0]], [1, 0.5]), [-0.5])
    for wrong in ([0.6], [0.6, 0.6], [0, 0.5], [0.5, 1.5], [np.nan, 0.5]):
        with pytest.raises(jc.InputError, match=r"keep"):
            measures.cpr(f, wrong)


def test_top_images():
    high = np.array([5, 1, 4, 4, 2], np.float32)  # the three largest: 0, 2, 3
    y = np.stack([high, high - 1], 1)[None]
    x = np.stack([np.stack([a, a - 1], 1) for a in np.array([[5, 4, 3, 2, 1], [1, 5, 2, 3, 4], [2, 2, 2, 2, 2]], "f")])
    found = moments_of(np.concatenate([x, np.full((1, 5, 2), 2, np.float32)])[None], y)
    np.testing.assert_allclose(measures.top_image_overlap(found, 3), [[2 / 3, 1 / 3, 2 / 3, np.nan]])
    np.testing.assert_allclose(measures.top_image_overlap(found, 5), [[1, 1, 1, np.nan]])
    for top in (0, 6, 1.5, True):
        with pytest.raises(jc.InputError, match="top is"):
            measures.top_image_overlap(found, top)


def test_constants_are_nan_and_the_rest_is_not():
    x, y = values()
    x[0, 1], y[1] = 7, 3
    found = moments_of(x, y)
    defined = np.array([[True, False, True], [False] * 3])
    np.testing.assert_array_equal(~np.isnan(measures.pearson(found)), defined)
    np.testing.assert_array_equal(~np.isnan(measures.relative_squared_error(found)), [[True] * 3, [False] * 3])
    assert np.isfinite(measures.mean_squared_error(found)).all()
    one_place = moments_of(x[..., :1], y[..., :1])
    weights = np.array([[0, 3, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]])  # one image, one place: constant
    r = measures.pearson(one_place, weights)
    np.testing.assert_array_equal(np.isnan(r), np.stack([np.full((2, 3), True), ~defined], 2))


def test_samples_of_images():
    weights = measures.resamples(7, 50, seed=3)
    assert weights.shape == (50, 7) and (weights.sum(1) == 7).all() and weights.std() > 0.5
    np.testing.assert_array_equal(weights, measures.resamples(7, 50, seed=3))
    parts = measures.subsets(7, 3, seed=1)
    np.testing.assert_array_equal(parts.sum(0), 1)
    assert sorted(parts.sum(1)) == [2, 2, 3] and (parts != measures.subsets(7, 3, seed=2)).any()
    for call in (lambda: measures.subsets(3, 4), lambda: measures.subsets(3, 0), lambda: measures.resamples(3, 0)):
        with pytest.raises(jc.InputError, match="expected"):
            call()
    x, y = values()
    for wrong in (np.ones((2, 5)), np.ones(6), np.zeros((1, 6)), -np.ones((1, 6)), np.full((1, 6), np.nan)):
        with pytest.raises(jc.InputError, match=r"weights have shape .*; expected \(B, 6\)"):
            measures.pearson(moments_of(x, y), wrong)


def test_intervals():
    """Of images whose values are independent, the mean's interval is about 1.96 standard errors each way."""
    rng = np.random.default_rng(0)
    y = rng.standard_normal((1, 400, 1)).astype(np.float32)
    x = y[:, None] + rng.standard_normal((1, 2, 400, 1)).astype(np.float32)
    e = Evaluation(("a",), moments_of(x, y), moments_of(x[:, :1] * 0, y))
    ends = e.interval(e.mean_squared_error, number=2000)
    error = ((x - y[:, None]) ** 2)[..., 0]
    reach = 1.96 * error.std(2) / 20
    np.testing.assert_allclose(ends, np.stack([error.mean(2) - reach, error.mean(2) + reach], 2), atol=0.03)
    r, narrow = e.correlation(), e.interval(level=0.5)
    wide = e.interval()
    assert (wide[..., 0] < narrow[..., 0]).all() and (narrow[..., 0] < r).all() and (r < wide[..., 1]).all()
    halves = e.in_subsets(parts=2)
    assert halves.shape == (1, 2, 2) and np.abs(halves - r[..., None]).max() < 0.1
    assert np.isnan(measures.interval(np.full((1, 1, 3), np.nan))).all()
    for level in (0, 1, 95, np.nan):
        with pytest.raises(jc.InputError, match="level is"):
            e.interval(level=level)
