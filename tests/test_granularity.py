"""Weights, kernels, filters: scores against their twins, masks, and the rules that make one of another."""

import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

import jaxcircuits as jc
from jaxcircuits import plans, sparse
from jaxcircuits.cli import main
from jaxcircuits.scores import Record, Scores
from tests import twins

TARGET, CHANNELS = "features.3", [4, 0]
LAYERS = ("layer1.conv1", TARGET)  # one grouped, one dilated
OPTIONS = {"layers": LAYERS, "batch": 2}


def close(found, expected, tolerance=1e-5):
    assert np.abs(expected).max() > 0 and np.shape(found) == expected.shape
    assert np.abs(np.asarray(found) - expected).max() <= tolerance * np.abs(expected).max()


def scored(small, granularity, **options):
    return jc.score(
        small.model, small.images, jc.Features(TARGET, CHANNELS), granularity=granularity, **OPTIONS, **options
    )


def expected(small, twin, **options):
    """For each feature, the twin's scores."""
    return [
        twin(small.torch, small.images, TARGET, np.eye(6, dtype=np.float32)[c], LAYERS, **options) for c in CHANNELS
    ]


@pytest.mark.parametrize("absolute", ["per_image", "whole_set", "none"])
def test_snip_of_weights_and_its_means(small, absolute):
    weights = scored(small, "weight", absolute=absolute)
    assert weights.record.granularity == "weight"
    kernels, filters = (jc.scores_at(weights, name) for name in ("kernel", "filter"))
    assert (kernels.record.granularity, filters.record.granularity) == ("kernel", "filter")
    for f, twin in enumerate(expected(small, twins.snip, absolute=absolute, weights_too=True)):
        for name in LAYERS:
            close(weights.values[name][f], twin[name].transpose(2, 1, 0))  # (O, I, K) -> (K, I, O)
            close(kernels.values[name][f], twin[name].mean(2).T)
            close(filters.values[name][f], twin[name].mean((1, 2)))


def test_snip_and_magnitude_of_filters_are_means_of_kernels(small):
    for criterion in ("snip", "magnitude"):
        filters = scored(small, "filter", criterion=criterion)
        means = jc.scores_at(scored(small, "kernel", criterion=criterion), "filter")
        assert filters.record == means.record
        for name in LAYERS:
            close(filters.values[name], np.asarray(means.values[name]), 1e-6)
    weights = scored(small, "weight", criterion="magnitude").values["layer1.conv1"]
    w = small.torch.get_submodule("layer1.conv1").weight.detach().abs().flatten(2).numpy().transpose(2, 1, 0)
    np.testing.assert_array_equal(weights, np.broadcast_to(w, weights.shape))


@pytest.mark.parametrize("absolute", ["per_image", "none"])
def test_actgrad_of_filters_sees_the_whole_output(small, absolute):
    found = scored(small, "filter", criterion="actgrad", absolute=absolute)
    for f, twin in enumerate(expected(small, twins.actgrad_of_filters, absolute=absolute)):
        for name in LAYERS:
            close(found.values[name][f], twin[name])


@pytest.mark.parametrize("absolute, granularity", [("per_image", "weight"), ("whole_set", "weight")])
def test_on_the_support(small, monkeypatch, absolute, granularity):
    monkeypatch.setattr(sparse, "RATIO", 8.0)
    monkeypatch.setattr(plans, "FEW", 8)
    features = jc.Features("layer1.conv1", directions=np.random.default_rng(3).standard_normal((9, 8)))
    options = {"absolute": absolute, "granularity": granularity, "layers": ["features.0"], "batch": 2}
    found = []
    for share in (2, 0):
        monkeypatch.setattr(plans, "SPARSE", share)
        found.append(jc.score(small.model, small.images, features, **options))
    assert [scores.record.sparse for scores in found] == [True, False]
    close(found[0].values["features.0"], np.asarray(found[1].values["features.0"]))


def test_random_is_drawn_for_each_filter_and_weight(small):
    filters, weights = (scored(small, name, criterion="random") for name in ("filter", "weight"))
    drawn = np.asarray(filters.values["layer1.conv1"])
    assert drawn.shape == (2, 8) and len(np.unique(drawn)) == 16
    drawn = np.asarray(weights.values["layer1.conv1"])
    assert drawn.shape == (2, 9, 4, 8) and len(np.unique(drawn)) > 570
    own = np.asarray(filters.values[TARGET])
    assert own[0, 4] > 0 and own[1, 0] > 0 and (own > 0).sum() == 2  # only the features' own filters


def scores_of(values, relevant):
    record = Record("snip", "none", "abs", 1, None, "float32", granularity="")
    arrays = ({name: jnp.asarray(a) for name, a in arrays.items()} for arrays in (values, relevant))
    return Scores(*arrays, tuple(values), record)


@pytest.mark.parametrize("axes", [2, 4])
def test_top_filters_and_weights_are_those_of_a_stable_sort(axes):
    """Many ties; a weight is relevant if its kernel is, a filter if one of its kernels is."""
    rng = np.random.default_rng(axes)
    sizes = {"b": (4, 2, 3), "a": (1, 4, 5)}  # (K, I, O)
    relevant = {name: rng.random((3, *size[1:])) < 0.4 for name, size in sizes.items()}
    relevant["a"][:, 0, 0] = True
    values = {name: rng.integers(0, 3, (3, *size[-(axes - 1) :])).astype(np.float32) for name, size in sizes.items()}
    scores = scores_of(values, relevant)
    for keep in (0.1, 0.5, 1):
        masks = jc.top_kernels(scores, keep=keep)
        for f in range(3):
            flat, there = {}, {}
            for name, (k, i, o) in sizes.items():  # as kernels of a layer (weights and inputs, outputs), o first
                if axes == 2:
                    flat[name], there[name] = values[name][f][None], relevant[name][f].any(0)[None]
                else:
                    flat[name] = values[name][f].transpose(1, 0, 2).reshape(k * i, o)
                    there[name] = np.repeat(relevant[name][f], k, axis=0)
            count = max(1, int(keep * sum(int(t.sum()) for t in there.values()) + 0.5))
            expected = twins.top_kernels(flat, there, sizes, count)
            for name, (k, i, o) in sizes.items():
                mask = np.asarray(masks[name][f])
                mask = mask[None] if axes == 2 else mask.transpose(1, 0, 2).reshape(k * i, o)
                np.testing.assert_array_equal(mask, expected[name])


def test_masks_from_one_granularity_to_another():
    relevant = {"a": np.array([[[1, 1, 0], [1, 0, 0]]], bool)}
    weights = np.zeros((1, 2, 2, 3), bool)
    weights[0, 1, 1, 0] = weights[0, 0, 0, 1] = True
    kernels = jc.masks_at({"a": weights}, "kernel")["a"]
    assert kernels.tolist() == [[[False, True, False], [True, False, False]]]
    for finer in (weights, kernels):
        filters = jc.masks_at({"a": finer}, "filter")["a"]
        assert filters.tolist() == [[True, True, False]]
    assert jc.masks_at({"a": np.array([[True, False, True]])}, "kernel", relevant=relevant)["a"].tolist() == [
        [[True, False, False], [True, False, False]]
    ]
    np.testing.assert_array_equal(jc.masks_at({"a": weights}, "weight")["a"], weights)
    for masks, granularity, why in [
        ({"a": filters}, "kernel", "give those of 'a'"),
        ({"a": kernels}, "weight", "masks of kernels need not become"),
        ({"a": kernels}, "unit", "unknown granularity 'unit'; expected one of weight, kernel, filter"),
        ({"a": np.ones(3, bool)}, "kernel", r"'a' has shape \(3,\); expected"),
    ]:
        with pytest.raises(jc.InputError, match=why):
            jc.masks_at(masks, granularity)


def test_circuits_of_weights_and_filters(small):
    """r, with masked weights, is the twin's; that of filters is that of their kernels, and so is what is effective."""
    features = jc.Features(TARGET, CHANNELS)
    for granularity in ("weight", "filter"):
        scores = scored(small, granularity)
        masks = jc.top_kernels(scores, keep=0.6)
        r = jc.correlation(small.model, small.images, features, masks)
        full = twins.with_kernels(small.torch, {})(small.images)[TARGET]
        for f, channel in enumerate(CHANNELS):
            given = {}
            for name in LAYERS:
                shape = small.torch.get_submodule(name).weight.shape  # (O, I, h, w)
                mask = np.asarray(masks[name][f]).T
                whole = mask.swapaxes(0, 1)[..., None] if mask.ndim == 3 else mask
                if granularity == "weight":
                    given[name] = np.asarray(masks[name][f]).transpose(2, 1, 0).reshape(shape)
                else:
                    given[name] = np.broadcast_to(whole[:, None, None, None], shape)
            seen = twins.with_kernels(small.torch, given)(small.images)[TARGET][:, channel]
            assert r[f] == pytest.approx(np.corrcoef(seen.ravel(), full[:, channel].ravel())[0, 1], abs=1e-5)
        kernels = jc.masks_at(masks, "kernel", relevant=scores.relevant)
        effective, same = (
            jc.effective_kernels(small.model, features, m, image_shape=(13, 11, 3)) for m in (masks, kernels)
        )
        for name in LAYERS:
            np.testing.assert_array_equal(effective[name], same[name])
            assert not (np.asarray(effective[name]) & ~np.asarray(kernels[name])).any()
        if granularity == "filter":
            np.testing.assert_allclose(jc.correlation(small.model, small.images, features, kernels), r, atol=1e-6)


def test_force_of_filters_keeps_so_many_filters(small):
    found = scored(small, "filter", criterion="force", kernels=3, steps=2)
    masks = jc.top_kernels(found)
    assert sum(int(m.sum()) for m in masks.values()) == 6  # three of each feature
    assert found.record.granularity == "filter" and found.values["layer1.conv1"].shape == (2, 8)


def test_numbers_of_kernels_are_none_of_filters(small):
    scores = jc.score(small.model, small.images, jc.Features(TARGET, [1]), criterion="force", kernels=20)
    assert int(sum(np.asarray(mask).sum() for mask in jc.top_kernels(jc.scores_at(scores, "kernel")).values())) == 20
    with pytest.raises(jc.InputError):
        jc.top_kernels(jc.scores_at(scores, "filter"))


def test_extracted_circuits_of_filters_are_files_of_kernels(small, tmp_path):
    features = jc.Features(TARGET, [4])
    (circuit,) = jc.extract(
        small.model, small.images, features, keep=0.5, granularity="filter", with_scores=True, **OPTIONS
    )
    scores = jc.score(small.model, small.images, features, granularity="filter", **OPTIONS)
    masks = jc.masks_at(jc.top_kernels(scores, keep=0.5), "kernel", relevant=scores.relevant)
    for name in LAYERS:
        np.testing.assert_array_equal(circuit.masks[name], masks[name][0])
        own = np.asarray(scores.relevant[name][0]) * np.asarray(scores.values[name][0])
        np.testing.assert_allclose(circuit.scores[name], own, rtol=1e-5)
    assert circuit.manifest["granularity"] == "filter" and circuit.stem.endswith("_4.snip.filters.keep0.5")
    assert circuit.manifest["kept"] == sum(int(m.sum()) for m in masks.values())
    circuit.save(tmp_path / "a")
    np.testing.assert_array_equal(jc.Circuit.load(tmp_path / "a").masks[TARGET], circuit.masks[TARGET])


def test_what_there_is_not(small):
    features = jc.Features(TARGET, [4])
    for options, why in [
        (
            {"criterion": "actgrad", "granularity": "weight"},
            "actgrad has no granularity='weight'; expected one of kernel",
        ),
        ({"granularity": "unit"}, "unknown granularity 'unit'"),
        ({"criterion": "random", "granularity": "unit"}, "unknown granularity 'unit'"),
    ]:
        with pytest.raises(jc.InputError, match=why):
            jc.score(small.model, small.images, features, **options)
    with pytest.raises(jc.InputError, match="scores of filters cannot be told apart by kernel"):
        jc.scores_at(scored(small, "filter", criterion="magnitude"), "kernel")
    with pytest.raises(jc.InputError, match="circuits consist of whole kernels"):
        jc.extract(small.model, small.images, features, granularity="weight")
    with pytest.raises(jc.InputError, match="a feature has only 9 relevant ones"):
        jc.extract(small.model, small.images, features, granularity="filter", layers=LAYERS, kernels=10)


def test_the_command_passes_it_on(monkeypatch):
    def plan(model, images, features, options, **amounts):
        raise jc.InputError(f"planned by {options.granularity}")

    monkeypatch.setattr("jaxcircuits.cli.circuits.plan", plan)
    result = CliRunner().invoke(main, ["extract", "alexnet", "features.3:1", "--granularity", "filter"])
    assert result.stderr.endswith("Error: planned by filter\n")
