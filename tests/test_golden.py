"""The numbers of the paper's own program on the pretrained AlexNet; data/README.md tells what they are."""

from pathlib import Path

import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits.faithfulness import KEEPS
from jaxcircuits.gradients import activations

DATA = Path(__file__).parent / "data"
FEATURES = {"features.6": 56, "features.10": 9}
CONVOLUTIONS = ("features.0", "features.3", "features.6", "features.8", "features.10")


@pytest.fixture(scope="module")
def images(alexnet):
    return jc.read_images(DATA / "images.npz", alexnet)


@pytest.fixture(scope="module", params=FEATURES)
def golden(request):
    with np.load(DATA / f"alexnet_{request.param}_{FEATURES[request.param]}.npz") as arrays:
        return request.param, dict(arrays)


def check(scores, golden, key, total):
    """Scores, times `total`, are the golden ones up to 1e-5 of each layer's largest."""
    layers = [name for name in CONVOLUTIONS if f"{key}/{name}" in golden]
    assert layers == list(scores.layers)
    for name in layers:
        expected = golden[f"{key}/{name}"].T
        error = np.abs(np.asarray(scores.values[name][0]) * total - expected).max() / np.abs(expected).max()
        assert error <= 1e-5, (key, name, error)


def test_activations(alexnet, images, golden):
    layer, arrays = golden
    network = alexnet.network()
    x = network.run(alexnet.variables, np.concatenate(list(images)))[layer]
    direction = np.eye(network.layers[layer].outputs, dtype=np.float32)[[FEATURES[layer]]]
    found = activations(network.layers[layer], alexnet.variables, x, direction)[0]
    expected = arrays["activations"]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("criterion, tolerance", [("snip", 0.01), ("actgrad", 0.01), ("magnitude", 0.01)])
def test_scores_and_correlations(alexnet, images, golden, criterion, tolerance):
    layer, arrays = golden
    features = jc.Features(layer, [FEATURES[layer]])
    some = jc.read_images(DATA / "images.npz", alexnet, limit=4) if criterion == "actgrad" else images
    scores = jc.score(alexnet, some, features, criterion=criterion)
    assert sum(int(mask.sum()) for mask in scores.relevant.values()) == arrays["relevant"]
    key = {"snip": "snip_image", "actgrad": "actgrad", "magnitude": "magnitude"}[criterion]
    if f"{key}/features.0" in arrays:
        check(scores, arrays, key, len(some))
    curve = jc.curve(alexnet, images, features, scores, KEEPS[:10])
    np.testing.assert_allclose(curve[0], arrays[f"{key}_curve"][:10], atol=tolerance)


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
    with np.load(DATA / "alexnet_features.6_56.npz") as golden:
        features = jc.Features("features.6", [56], **options)
        check(jc.score(alexnet, images, features, absolute=absolute), golden, key, total)
