"""Mean ablation against PyTorch: each removed kernel's mean, one by one, added to the masked network's outputs."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits import masked
from jaxcircuits.ablation import mean_contributions
from jaxcircuits.faithfulness import correlations
from tests import twins
from tests.test_faithfulness import Wide, plainly

FEATURES = jc.Features("features.3", [4, 0])


@pytest.fixture(scope="module")
def scores(small):
    return jc.score(small.model, small.images, FEATURES, criterion="random")


def by_output(masks, f):
    return {name: np.asarray(mask[f]).T for name, mask in masks.items()}


def test_offsets_and_measures(small):
    """Strides, groups, dilation, no bias, dense layers, five images in blocks of two."""
    layer, channels = "fc2", [1, 2]
    features = jc.Features(layer, channels)
    scores = jc.score(small.model, small.images, features, criterion="random")
    masks = jc.top_kernels(scores, keep=0.6)
    offsets = jc.mean_offsets(small.model, small.images, masks, batch=2)
    found = jc.evaluate(small.model, small.images, features, masks, ablation="mean", batch=2)
    full = twins.with_kernels(small.torch, {})(small.images)[layer]
    for f, channel in enumerate(channels):
        expected = twins.mean_offsets(small.torch, small.images, by_output(masks, f))
        for name in masks:
            np.testing.assert_allclose(offsets[name][f], expected[name], atol=1e-5)
        circuit = twins.with_kernels(small.torch, by_output(masks, f), expected)(small.images)[layer]
        x, y = (a[:, channel].numpy().ravel() for a in (circuit, full))
        error = np.mean((x - y) ** 2) / np.var(y)
        np.testing.assert_allclose(found.correlation()[f, 0], np.corrcoef(x, y)[0, 1], atol=1e-4)
        np.testing.assert_allclose(found.relative_squared_error()[f, 0], error, rtol=1e-3)
    # with everything ablated the feature is its mean, so that f is R^2
    np.testing.assert_allclose(found.faithfulness(), 1 - found.relative_squared_error(), rtol=1e-4)
    zero = jc.correlation(small.model, small.images, features, masks)
    given = jc.correlation(small.model, small.images, features, masks, ablation="mean", offsets=offsets)
    np.testing.assert_allclose(given, found.correlation()[:, 0], atol=1e-5)
    assert (np.abs(given - zero) > 0.001).all()


def test_nothing_removed_nothing_added(small, scores):
    masks = {name: np.ones(mask.shape, bool) for name, mask in scores.relevant.items()}
    assert not any(a.any() for a in jc.mean_offsets(small.model, small.images, masks).values())
    r = jc.correlation(small.model, small.images, FEATURES, masks, ablation="mean")
    np.testing.assert_allclose(r, 1, atol=1e-6)


def test_means_are_the_full_networks(small):
    """All contributions and the bias make the layer's mean output."""
    found = mean_contributions(
        small.model, [small.images[:3], small.images[3:]], ["features.0", "layer1.conv1"], batch=4
    )
    outputs = twins.with_kernels(small.torch, {})(small.images)
    for name, means in found.items():
        bias = np.asarray(small.model.layers[name].bias(small.model.variables))
        np.testing.assert_allclose(means.sum(0) + bias, outputs[name].mean((0, 2, 3)), atol=1e-5)


def test_a_curve_of_means(small, scores):
    keeps = (0.9, 0.5)
    curve = jc.curve(small.model, small.images, FEATURES, scores, keeps, ablation="mean")
    for k, keep in enumerate(keeps):
        masks = jc.top_kernels(scores, keep=keep)
        r = jc.correlation(small.model, small.images, FEATURES, masks, ablation="mean")
        np.testing.assert_allclose(curve[:, k], r, atol=1e-6)


def test_by_terms_as_in_the_plain_network(monkeypatch):
    """Means added where a layer starts from the full output, from its bias, or is computed whole; intact layers too."""
    monkeypatch.setattr(masked, "GROUP", 4)
    monkeypatch.setattr(masked, "FEW", 2)
    rng, model = np.random.default_rng(0), jc.Model(Wide(), twins.random_variables(Wide(), (1, 12, 12, 3)))
    images, features = rng.standard_normal((3, 12, 14, 3), np.float32), jc.Features("d", [1, 3])
    layers = {name: model.layers[name] for name in "abced"}
    masks, offsets = [], []
    for intact in ("", "a", "ab"):
        for density in (0.9, 0.4):
            drawn = {n: rng.random((2, la.inputs, la.outputs)) < density for n, la in layers.items()}
            masks.append({n: mask | (n in intact) for n, mask in drawn.items()})
            # of any size, and in layers that have lost nothing, too
            offsets.append({n: rng.standard_normal((2, la.outputs)).astype(np.float32) for n, la in layers.items()})

    def both():
        means = correlations(model, images, features, masks, ablation="mean", batch=2)
        return np.stack(
            [means, correlations(model, images, features, masks, ablation="mean", offsets=offsets, batch=2)]
        )

    assert masked.suited(model.layers, "d", masks[0]) == tuple("abce")
    np.testing.assert_allclose(both(), plainly(monkeypatch, both), atol=1e-5)


def test_what_cannot_be_ablated(small, scores):
    masks = jc.top_kernels(scores, keep=0.5)
    some = {name: mask for name, mask in masks.items() if name != "features.0"}
    offsets = jc.mean_offsets(small.model, small.images, masks)
    wrong, mean = {"features.3": offsets["features.3"][:1]}, {"ablation": "mean"}
    nans = {"features.0": np.full_like(offsets["features.0"], np.nan)}
    for call, options, message in [
        (jc.correlation, {"ablation": "median"}, "unknown ablation 'median'; expected one of zero, mean"),
        (jc.evaluate, {"ablation": None}, "unknown ablation None"),
        (jc.correlation, {"offsets": offsets}, "offsets are for ablation='mean'"),
        (
            jc.correlation,
            {"offsets": wrong, **mean},
            r"'features.3' have shape \(1, 6\); expected \(2, 6\)",
        ),
        (jc.evaluate, {"offsets": [offsets] * 2, **mean}, "offsets of 2 circuits; the masks are 1"),
        (
            jc.evaluate,
            {"offsets": nans, **mean},
            "not all finite",
        ),
    ]:
        with pytest.raises(jc.InputError, match=message):
            call(small.model, small.images, FEATURES, masks, **options)
    with pytest.raises(jc.InputError, match=r"offsets for 'features\.0', which has no mask"):
        jc.correlation(small.model, small.images, FEATURES, some, ablation="mean", offsets=offsets)
    with pytest.raises(jc.InputError, match=r"has shape \(2, 8\); expected \(F, 8, 6\)"):
        jc.mean_offsets(small.model, small.images, {"features.3": jnp.ones((2, 8))})
    with pytest.raises(jc.InputError, match="no layer 'conv9'"):
        jc.mean_offsets(small.model, small.images, {"conv9": np.ones((1, 2, 2))})


@pytest.mark.filterwarnings("ignore:.*so that r is not defined")
def test_alexnet_on_photographs(alexnet):
    """Scored on some photographs, judged on others: better than its complement and than random circuits."""
    scored, judged = (jc.read_images(f"photos:{half}", alexnet, limit=8) for half in "ab")
    features = jc.Features("features.6", [56])
    scores = jc.score(alexnet, scored, features)
    masks = jc.top_kernels(scores, keep=0.2)
    null = jc.random_masks(features, masks, scores.relevant, by_layer=True)
    for ablation in ("zero", "mean"):
        others = [masks, jc.complement(masks, scores.relevant), null]
        found = jc.evaluate(alexnet, judged, features, others, ablation=ablation)
        ((r, *rest),) = np.nan_to_num(found.correlation())
        assert r > 0.5 and r > max(rest), (ablation, r, rest)
        low, high = found.interval()[0, 0]
        assert low <= r <= high and (found.faithfulness() <= 1).all()
