"""Random circuits of equal size: exactly as large, drawn evenly, the same whoever is drawn beside them; and p."""

import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits.nulls import p_values

FEATURES = jc.Features("features.3", [4, 0, 2])


@pytest.fixture(scope="module")
def scores(small):
    return jc.score(small.model, small.images, FEATURES, criterion="random")


@pytest.fixture(scope="module")
def masks(scores):
    return jc.top_kernels(scores, keep=0.3)


def sizes(masks):
    return {name: np.asarray(mask).sum((1, 2)).tolist() for name, mask in masks.items()}


@pytest.mark.parametrize("by_layer", [False, True])
def test_sizes_and_seeds(scores, masks, by_layer):
    masks = {**masks, "layer1.conv1": masks["layer1.conv1"] & (np.arange(3) > 0)[:, None, None]}  # none in a layer
    drawn = [
        jc.random_masks(FEATURES, masks, scores.relevant, by_layer=by_layer, draw=draw, seed=seed)
        for draw, seed in ((0, 0), (1, 0), (0, 1))
    ]
    for found in drawn:
        assert not any((found[name] & ~scores.relevant[name]).any() for name in masks)
        if by_layer:
            assert sizes(found) == sizes(masks)
        np.testing.assert_array_equal(*(np.sum([*sizes(m).values()], 0) for m in (found, masks)))
    assert all((a["features.3"] != b["features.3"]).any() for a, b in zip(drawn, drawn[1:] + drawn[:1], strict=True))
    for f, one in enumerate(FEATURES):
        some = ({name: mask[f : f + 1] for name, mask in arrays.items()} for arrays in (masks, scores.relevant))
        alone = jc.random_masks(one, *some, by_layer=by_layer)
        for name, mask in alone.items():
            np.testing.assert_array_equal(mask[0], drawn[0][name][f])


def test_every_kernel_is_as_likely(scores, masks):
    found = [jc.random_masks(FEATURES, masks, scores.relevant, draw=draw) for draw in range(200)]
    share = np.concatenate([np.mean([m[name] for m in found], 0)[scores.relevant[name]] for name in masks])
    assert abs(share.mean() - 0.3) < 0.005, "of the relevant kernels, as many as are kept"
    assert np.abs(share - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 200), "binomial"


@pytest.mark.parametrize("by_layer", [False, True])
def test_random_filters(small, by_layer):
    scores = jc.score(small.model, small.images, FEATURES, granularity="filter")
    masks = jc.top_kernels(scores, keep=0.5)
    found = jc.random_masks(FEATURES, masks, scores.relevant, by_layer=by_layer)
    drawn, given = ({name: np.asarray(mask).sum(1) for name, mask in m.items()} for m in (found, masks))
    assert not any((found[name] & ~np.asarray(scores.relevant[name]).any(1)).any() for name in masks)
    np.testing.assert_array_equal(*(sum(m.values()) for m in (drawn, given)))
    assert by_layer == all((drawn[name] == given[name]).all() for name in masks)
    with pytest.raises(jc.InputError, match=r"keeps \d+ filters, of which only \d+ are relevant"):
        jc.random_masks(FEATURES, {n: np.ones(m.shape, bool) for n, m in masks.items()}, scores.relevant)


def test_p_values():
    values = np.array([[0.5, -0.5, np.nan]])
    nulls = np.array([[[0.5, 0.6, np.nan], [-0.6, -0.7, np.nan], [0, 0, 0]]])
    np.testing.assert_allclose(p_values(values, nulls), [[3 / 4, 2 / 4, np.nan]])
    np.testing.assert_allclose(p_values([[1.0]], np.zeros((1, 1, 99))), 0.01)
    for wrong in (np.zeros((1, 2, 5)), np.zeros((1, 3, 0))):
        with pytest.raises(jc.InputError, match=r"expected \(1, 3, 'B'\)|expected \(1, 3, B\)"):
            p_values(values, wrong)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_circuits_beside_random_ones(small, scores, ablation):
    """What keeps most of the best kernels of SNIP is better than chance; a null itself is not."""
    snip = jc.score(small.model, small.images, FEATURES)
    masks = jc.top_kernels(snip, keep=0.8)
    null = jc.random_masks(FEATURES, masks, scores.relevant, draw=3)
    options = {"number": 10, "ablation": ablation, "by_layer": ablation == "mean"}
    found = jc.against_nulls(small.model, small.images, FEATURES, [masks, null], scores.relevant, **options)
    assert found.values.shape == found.p.shape == (3, 2) and found.nulls.shape == (3, 2, 10)
    np.testing.assert_allclose(found.p[:, 0], 1 / 11)
    assert (found.p[:, 1] > 1 / 11).any()
    for draw in (0, 9):
        some = jc.random_masks(FEATURES, masks, scores.relevant, draw=draw, by_layer=options["by_layer"])
        r = jc.correlation(small.model, small.images, FEATURES, some, ablation=ablation)
        np.testing.assert_allclose(found.nulls[:, 0, draw], r, atol=1e-5)


def test_what_cannot_be_drawn(small, scores, masks):
    everything = {name: np.ones(mask.shape, bool) for name, mask in masks.items()}
    for features, given, options, message in [
        (FEATURES, everything, {}, r"feature number 0 keeps \d+ kernels, of which only \d+ are relevant"),
        (FEATURES, everything, {"by_layer": True}, "kernels in 'features.3', of which only 8 are relevant"),
        (FEATURES, {"features.3": masks["features.3"]}, {}, "cover different layers"),
        (jc.Features("features.3", [1]), masks, {}, "there are 1 features; the masks are of 3"),
        (FEATURES, masks, {"seed": -1}, "seed is -1"),
    ]:
        with pytest.raises(jc.InputError, match=message):
            jc.random_masks(features, given, scores.relevant, **options)
    for number in (0, 1.5, True):
        with pytest.raises(jc.InputError, match="number of random circuits is"):
            jc.against_nulls(small.model, small.images, FEATURES, masks, scores.relevant, number=number)
