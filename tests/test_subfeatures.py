"""Scores image by image against a loop over single images; groups, their circuits and their overlap against plain
twins and planted structure."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits.subfeatures import (
    by_folder,
    circuits,
    clusters,
    image_scores,
    judge,
    profiles,
    responses,
    separate,
    silhouette,
    trajectories,
)
from jaxcircuits.subfeatures.parts import overlaps
from jaxcircuits.subfeatures.scoring import Stream
from tests import twins

LAYER = "features.3"


@pytest.fixture(scope="module")
def scored(small):
    return image_scores(small.model, small.images, jc.Features(LAYER, channels=[2]))


def test_each_image_by_itself(small, scored):
    """As a loop of `score` over single images; where the feature is largest in the full network."""
    assert scored.features.position == "argmax" and len(scored) == 5
    features = jc.Features(LAYER, channels=[2], position="argmax")
    for n in range(5):
        alone = jc.score(small.model, small.images[n : n + 1], features)
        assert scored.layers == alone.layers
        for name in alone.layers:
            np.testing.assert_allclose(scored.values[name][n], alone.values[name][0], rtol=1e-5, atol=1e-8)
            np.testing.assert_array_equal(scored.relevant[name], alone.relevant[name][0])
        _, maps = twins.one_image(small.torch, small.images[n], LAYER, np.eye(6, dtype=np.float32)[2])
        maps = maps.detach().numpy()
        assert tuple(scored.positions[n]) == np.unravel_index(maps.argmax(), maps.shape)
        np.testing.assert_allclose(scored.activations[n], maps.max(), rtol=1e-4)


@pytest.mark.parametrize(
    "criterion, granularity, absolute", [("actgrad", "filter", "none"), ("snip", "filter", "none")]
)
def test_groups_score_as_their_images_do(small, criterion, granularity, absolute):
    """The mean over a group's images is `score` of the group; of all images, of all."""
    options = {"criterion": "actgrad", "granularity": "filter", "absolute": "none"}
    features = jc.Features(LAYER, channels=[0], position=(1, 2))
    found = image_scores(small.model, small.images, features, **options)
    groups = [np.array([0, 3]), np.arange(5)]
    means = found.mean_over(groups)
    for g, rows in enumerate(groups):
        expected = jc.score(small.model, small.images[rows], features, batch=1, **options)
        for name in expected.layers:
            np.testing.assert_allclose(means.values[name][g], expected.values[name][0], rtol=1e-4, atol=1e-7)
            np.testing.assert_array_equal(means.relevant[name][g], expected.relevant[name][0])


def test_many_features_in_a_stream(small, scored):
    """One image at a time, for all features; what is asked for one of them is the same."""
    features = jc.Features(LAYER, channels=[4, 2], position="argmax")
    stream = list(Stream(small.model, small.images[:2], features))
    assert len(stream) == 2
    for n, (scores, (values, rows, columns)) in enumerate(stream):
        for name in scored.layers:
            assert scores[name].shape[0] == 2
            np.testing.assert_allclose(scores[name][1], scored.values[name][n], rtol=1e-4, atol=1e-7)
        assert (rows[1, 0], columns[1, 0]) == tuple(scored.positions[n])
        np.testing.assert_allclose(values[1, 0], scored.activations[n], rtol=1e-5)


def test_what_memory_cannot_hold_lies_on_the_disk(small, scored, monkeypatch):
    monkeypatch.setattr("jaxcircuits.subfeatures.scoring.device_memory", lambda: 1000)
    found = image_scores(small.model, small.images, jc.Features(LAYER, channels=[2]))
    assert all(isinstance(values, np.memmap) for values in found.values.values())
    for name in scored.layers:
        np.testing.assert_array_equal(found.values[name], scored.values[name])


def test_a_feature_of_the_first_layer_has_a_map(small):
    """On which all images lie in one place: there is nothing before it that they could differ in."""
    scored = image_scores(small.model, small.images, jc.Features("features.0", channels=[2]))
    assert np.isfinite(trajectories(scored).points).all()


def test_means_of_many_images(scored):
    many = replace(scored, values={name: np.tile(a, (30, *(1,) * (a.ndim - 1))) for name, a in scored.values.items()})
    rows = np.arange(0, 150, 2)
    for name, mean in many.mean_over([rows]).values.items():
        np.testing.assert_allclose(mean[0], many.values[name][rows].mean(0, dtype=np.float64), rtol=1e-6, atol=1e-9)


def test_folders():
    names = ["cats/a.png", "cats/deep/b.png", "c.png", "astronaut#2", "astronaut#3", "odd/x#1.png"]
    assert by_folder(names) == ["cats", "cats/deep", ".", "astronaut", "astronaut", "odd"]


def test_profiles_are_roots_of_shares(scored):
    """Filter by filter; one image's strength does not matter, its own layer is left out."""
    found, at = profiles(scored), 0
    for name in scored.layers[:-1]:
        values, relevant = np.asarray(scored.values[name], float), scored.relevant[name]
        filters = np.array(
            [[v[r].mean() if r.any() else 0 for v, r in zip(x.T, relevant.T, strict=True)] for x in values]
        )
        shares = np.sqrt(filters / filters.sum(1, keepdims=True))
        np.testing.assert_allclose(found[:, at : at + shares.shape[1]], shares, atol=1e-5)
        np.testing.assert_allclose(profiles(scored, [name]), shares, atol=1e-5)
        at += shares.shape[1]
    assert at == found.shape[1]
    stronger = {
        name: values * np.arange(1, 6).reshape(-1, *[1] * (values.ndim - 1)) for name, values in scored.values.items()
    }
    other = type(scored)(**{**scored.__dict__, "values": stronger})
    np.testing.assert_allclose(profiles(other), found, atol=1e-5)


def test_clusters_find_what_was_planted():
    rng = np.random.default_rng(0)
    truth = np.array([1, 0, 2, 0, 0, 1, 0, 1, 1, 0, 2, 0])  # by size: 0, 1, 2
    points = (5 * np.eye(3)[truth] + 0.1 * rng.standard_normal((12, 3))).astype(np.float32)
    found = clusters(points, 3)
    np.testing.assert_array_equal(found, truth)
    np.testing.assert_array_equal(clusters(points, 3), found)
    assert (clusters(points, 1) == 0).all()


def test_silhouette_against_scikit_learn():
    from sklearn.metrics import silhouette_score

    rng = np.random.default_rng(0)
    points, groups = rng.random((20, 4)), np.array([0, 1, 2, 0] * 4 + [3, 1, 1, 2])
    np.testing.assert_allclose(silhouette(points, groups), silhouette_score(points, groups), rtol=1e-6)
    assert np.isnan(silhouette(points, np.zeros(20)))


def planted(scored, groups, seed=0):
    """Scores in which each group uses kernels of its own, with noise."""
    rng = np.random.default_rng(seed)
    kinds = np.unique(groups)
    values = {}
    for name in scored.layers:
        shape = scored.relevant[name].shape
        mine = {kind: rng.random(shape) for kind in kinds}
        each = [mine[kind] + 0.3 * rng.random(shape) for kind in groups]
        values[name] = np.where(scored.relevant[name], each, 0).astype(np.float32)
    rest = {"activations": np.ones(len(groups)), "positions": np.zeros((len(groups), 2), int)}
    return type(scored)(**{**scored.__dict__, **rest, "values": values, "names": tuple(map(str, groups))})


def test_parts_overlap_less_than_random_groups(scored):
    """Overlaps by sets; p by counting; no p where there is no difference, and none for one group."""
    groups = ["b", "a", "a", "b", "a", "b", "b", "a", "a", "b", "a"]
    found = separate(planted(scored, groups), groups, keep=0.2, nulls=39, seed=3)
    assert found.names == ("b", "a") and found.sizes.tolist() == [5, 6]
    np.testing.assert_array_equal(found.groups, [0 if g == "b" else 1 for g in groups])
    sets = [{(n, *place) for n, m in found.masks.items() for place in np.argwhere(np.asarray(m[g]))} for g in (0, 1)]
    np.testing.assert_allclose(found.mean_overlap, len(sets[0] & sets[1]) / len(sets[0] | sets[1]), rtol=1e-6)
    assert found.mean_overlap < found.nulls.min() and found.p == 1 / 40
    again = separate(planted(scored, groups), groups, keep=0.2, nulls=39, seed=3)
    np.testing.assert_array_equal(again.nulls, found.nulls)
    same = separate(planted(scored, ["c"] * 11), groups, keep=0.2, nulls=39)
    assert same.p > 0.05
    np.testing.assert_allclose(same.p, (1 + (same.nulls <= same.mean_overlap + 1e-9).sum()) / 40)
    assert np.isnan(separate(planted(scored, groups), [0] * 11, kernels=3).p)


def test_the_same_groups_dealt_otherwise_are_no_evidence(scored):
    """Of images that are a group each every deal is the same, its pairs in another order."""
    found = separate(scored, range(5), keep=0.3, nulls=30)
    assert found.p == 1


def test_overlaps_are_those_of_masks():
    rng = np.random.default_rng(0)
    masks = {"a": rng.random((3, 4, 5)) < 0.5, "b": rng.random((3, 2, 2)) < 0.5}
    for g, h in itertools.product(range(3), repeat=2):
        one, other = ({name: mask[k] for name, mask in masks.items()} for k in (g, h))
        np.testing.assert_allclose(overlaps(masks)[g, h], jc.iou(one, other)[0], rtol=1e-6)


def test_circuits_of_groups(small, scored, tmp_path):
    """Masks, r over all images and over the group's, and what is kept of each response, by running the circuits."""
    groups = np.array([1, 0, 1, 0, 1])
    parts = separate(scored, groups, keep=0.4, nulls=0)
    judged = judge(small.model, small.images, parts)
    kept, made = responses(parts, judged), circuits(small.model, small.images, parts, judged)
    assert parts.p == 1  # no null: nothing is known
    full = twins.with_kernels(small.torch, {})(small.images)[LAYER][:, 2].numpy().reshape(5, -1)
    best = full.argmax(1)
    y = full[np.arange(5), best]
    for g, circuit in enumerate(made):
        masks = {name: mask.T for name, mask in circuit.masks.items()}
        x = twins.with_kernels(small.torch, masks)(small.images)[LAYER][:, 2].numpy().reshape(5, -1)[np.arange(5), best]
        for h in (0, 1):
            error, whole = (np.square(a[groups == h]).sum() for a in (x - y, y))
            np.testing.assert_allclose(kept[g, h], 1 - error / whole, atol=1e-3)
        np.testing.assert_allclose(circuit.manifest["correlation"], np.corrcoef(x, y)[0, 1], atol=1e-3)
        inside = np.corrcoef(x[groups == g], y[groups == g])[0, 1]
        np.testing.assert_allclose(circuit.manifest["group_correlation"], inside, atol=1e-3)
        assert circuit.manifest["group"] == {"label": str(g), "images": np.flatnonzero(groups == g).tolist()}
        assert circuit.stem == f"features.3_2@argmax.{g}.snip.keep0.4"
        assert sum(mask.sum() for mask in circuit.masks.values()) == circuit.manifest["kept"]
        circuit.save(tmp_path / "one.safetensors", force=True)
        again = jc.Circuit.load(tmp_path / "one.safetensors")
        assert again.manifest["group"] == circuit.manifest["group"]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m, x, s: image_scores(m, x, jc.Features(LAYER, channels=[0, 1])), "are of one feature; got 2"),
        (lambda m, x, s: image_scores(m, x, jc.Features(LAYER)), "are of one feature"),
        (lambda m, x, s: image_scores(m, x, s.features, criterion="force"), "force is not made image by image"),
        (lambda m, x, s: image_scores(m, x, s.features, absolute="whole_set"), "whole_set"),
        (lambda m, x, s: image_scores(m, x, s.features, granularity="weight"), "not of weights"),
        (lambda m, x, s: separate(s, [0, 1]), "groups of 2 images; the scores are of 5"),
        (lambda m, x, s: separate(s, [0] * 5, nulls=-1), "nulls is -1"),
        (lambda m, x, s: clusters(profiles(s), 9), "9 clusters of 5 different images"),
        (lambda m, x, s: profiles(s, ["fc1"]), "was not scored"),
        (lambda m, x, s: separate(s, [1, "1", 1, "1", 1]), "expected different names"),
        (lambda m, x, s: clusters(profiles(s), 2, seed=-1), "seed is -1"),
        (lambda m, x, s: clusters(profiles(s), 2.5), "number is 2.5; expected a whole number"),
        (lambda m, x, s: trajectories(s, seed=-1), "seed is -1"),
        (lambda m, x, s: trajectories(s, neighbours=2.5), "neighbours is 2.5"),
    ],
)
def test_bad_input(small, scored, call, words):
    with pytest.raises(jc.InputError, match=words):
        call(small.model, small.images, scored)
