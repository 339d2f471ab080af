"""The numbers of the paper's own program on the pretrained AlexNet; data/README.md tells what they are."""

from pathlib import Path

import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits import plans
from jaxcircuits.faithfulness import KEEPS
from jaxcircuits.gradients import activations

DATA = Path(__file__).parent / "data"
FEATURES = {"features.6": 56, "features.10": 9}
CONVOLUTIONS = ("features.0", "features.3", "features.6", "features.8", "features.10")


@pytest.fixture(scope="module")
def images(alexnet):
    return jc.read_images(DATA / "images.npz", alexnet)


def golden(layer):
    with np.load(DATA / f"alexnet_{layer}_{FEATURES[layer]}.npz") as arrays:
        return dict(arrays)


def check(scores, arrays, key, total):
    """Scores, times `total`, are the golden ones up to 5e-6 of each layer's largest."""
    layers = [name for name in CONVOLUTIONS if f"{key}/{name}" in arrays]
    assert layers == list(scores.layers)
    for name in layers:
        expected = arrays[f"{key}/{name}"].T
        error = np.abs(np.asarray(scores.values[name][0]) * total - expected).max() / np.abs(expected).max()
        assert error <= 5e-6, (key, name, error)


@pytest.mark.parametrize("layer", FEATURES)
def test_activations(alexnet, images, layer):
    network = alexnet.network()
    x = network.run(alexnet.variables, np.concatenate(list(images)))[layer]
    direction = np.eye(network.layers[layer].outputs, dtype=np.float32)[[FEATURES[layer]]]
    found = activations(network.layers[layer], alexnet.variables, x, direction)[0]
    expected = golden(layer)["activations"]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_scores_on_the_support(alexnet, images, monkeypatch):
    """Eight features together, the golden one among them, are computed where gradients are not zero."""
    monkeypatch.setattr(plans, "FEW", 7)
    scores = jc.score(alexnet, images, jc.Features("features.6", [56, *range(20, 27)]))
    assert scores.record.sparse
    check(scores, golden("features.6"), "snip_image", 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer, criterion, key, number",
    [
        ("features.6", "snip", "snip_image", 10),
        ("features.6", "actgrad", "actgrad", 4),
        ("features.6", "magnitude", "magnitude", 1),
        ("features.10", "snip", "snip_image", 10),
        pytest.param("features.10", "magnitude", "magnitude", 1, marks=pytest.mark.full),
    ],
)
def test_scores_and_curves(alexnet, images, layer, criterion, key, number):
    arrays = golden(layer)
    features = jc.Features(layer, [FEATURES[layer]])
    some = jc.read_images(DATA / "images.npz", alexnet, limit=number)
    scores = jc.score(alexnet, some, features, criterion=criterion)
    assert sum(int(mask.sum()) for mask in scores.relevant.values()) == arrays["relevant"]
    if criterion != "magnitude":
        check(scores, arrays, key, number)
    keeps = [keep for keep in KEEPS if keep >= 0.01]
    curve = jc.curve(alexnet, images, features, scores, keeps)
    np.testing.assert_allclose(curve[0], arrays[f"{key}_curve"][: len(keeps)], atol=0.003)


@pytest.mark.slow
@pytest.mark.parametrize(
    "key, absolute, total, options",
    [
        ("snip_batch", "whole_set", 100, {}),
        ("snip_signed_sum", "none", 10, {"objective": "sum"}),
        ("snip_image_middle", "per_image", 10, {"position": "middle"}),
    ],
)
def test_variants_of_snip(alexnet, images, key, absolute, total, options):
    features = jc.Features("features.6", [56], **options)
    check(jc.score(alexnet, images, features, absolute=absolute), golden("features.6"), key, total)
