"""FORCE against a plain loop in PyTorch, and against the original's own masks."""

import jax
import numpy as np
import pytest
import torch

import jaxcircuits as jc
from jaxcircuits import scoring
from jaxcircuits.criteria import force
from jaxcircuits.gradients import tiles_of
from jaxcircuits.masks import count
from tests import twins
from tests.test_golden import DATA, FEATURES, golden
from tests.torchvision_oracle import torchvision
from weights_conversion import to_torch


def force_twin(network, images, target, direction, layers, relevant, counts):
    """{layer: (O, I)} scores after the last round: SNIP with respect to each weight's own mask entry."""
    weights = {name: network.get_submodule(name).weight for name in layers}
    originals = {name: w.detach().clone() for name, w in weights.items()}

    def score():
        scores = dict.fromkeys(layers, 0)
        for image in images:
            _, maps = twins.one_image(network, image, target, direction)
            gradients = torch.autograd.grad(twins.objective_of(maps, "abs", None), list(weights.values()))
            for name, g in zip(layers, gradients, strict=True):
                saliency = (originals[name] * g).abs().flatten(2).mean(-1).numpy() / len(images)
                scores[name] = scores[name] + np.where(relevant[name].T, saliency, 0)
        return scores

    def mask(masks):
        with torch.no_grad():
            for name, w in weights.items():
                w.copy_(originals[name] * torch.from_numpy(masks[name].T.copy())[..., None, None])

    scores = score()
    for kept in counts:
        mask(twins.top_kernels({name: s.T for name, s in scores.items()}, relevant, layers, kept))
        scores = score()
    mask({name: np.ones_like(relevant[name]) for name in layers})
    return scores


@pytest.mark.parametrize("short", [16, 0])
def test_a_plain_loop_computes_the_same(small, monkeypatch, short):
    """With and without dead channels left out."""
    monkeypatch.setattr(scoring, "SHORT", short)
    features, schedule = jc.Features("features.3", [1, 4]), (100, 60, 41)
    images = small.images[:3]
    found = jc.score(small.model, images, features, criterion="force", schedule=schedule)
    assert (found.record.schedule, found.record.kernels, found.record.steps) == (schedule, 41, 3)
    for f, channel in enumerate((1, 4)):
        relevant = {name: np.asarray(found.relevant[name][f]) for name in found.layers}
        direction = np.eye(6, dtype=np.float32)[channel]
        expected = force_twin(small.torch, images, "features.3", direction, found.layers, relevant, schedule)
        for name, wanted in expected.items():
            error = np.abs(found.values[name][f] - wanted.T).max()
            assert error <= 1e-5 * wanted.max(), name
    masks = jc.top_kernels(found)  # as many as the scores were made for
    assert count(masks).tolist() == [41, 41]
    snip = jc.top_kernels(jc.score(small.model, images, features), kernels=41)
    assert float(jc.iou(snip, masks)[0].min()) < 1


@pytest.mark.slow
def test_gradients_by_tiles_are_of_the_circuit(monkeypatch):
    """In a network too long to leave out dead channels, with kernels of which gradients are made by tiles."""
    monkeypatch.setattr(scoring, "SHORT", 0)
    model = jc.load("resnet18", weights="random")
    twin = torchvision().models.resnet18().eval()
    twin.load_state_dict({name: torch.tensor(value) for name, value in to_torch(model.variables).items()})
    images = np.random.default_rng(0).standard_normal((4, 64, 64, 3), np.float32)
    target, schedule = "layer1.1.conv2", (6000, 3000, 1500)
    assert tiles_of(model.network((64, 64, 3)), model.variables, target, len(images), ready=False)
    found = jc.score(model, images, jc.Features(target, [3]), criterion="force", schedule=schedule, batch=4)
    relevant = {name: np.asarray(mask[0]) for name, mask in found.relevant.items()}
    expected = force_twin(twin, images, target, np.eye(64, dtype=np.float32)[3], found.layers, relevant, schedule)
    for name, wanted in expected.items():
        assert np.abs(found.values[name][0] - wanted.T).max() <= 1e-4 * wanted.max(), name


def test_counts():
    """The formula, number by number; the last count is exact."""
    found = force.counts(np.array([1000, 50]), np.array([7, 50]), steps=4)
    np.testing.assert_array_equal(found[:, 0], [290, 84, 25, 7])
    assert found[-1, 1] == 50 and set(found[:, 1]) <= {50, 51}  # exp(ln 50) may be 50 and a little more
    np.testing.assert_array_equal(force.counts(np.array([1000]), np.array([10]), steps=1), [[10]])


def test_many_levels_and_positions_together_are_each_alone(small):
    """What features share, a chunk or the first round, changes nothing; a position is the full network's."""
    features = jc.Features("layer1.conv2", [0, 3], position="argmax")
    circuits = list(jc.extract(small.model, small.images, features, criterion="force", keep=[0.4, 0.1], steps=2))
    assert [(c.manifest["feature"]["channel"], c.manifest["keep"]) for c in circuits] == [
        (0, 0.4), (0, 0.1), (3, 0.4), (3, 0.1)
    ]  # fmt: skip
    assert all(c.manifest["steps"] == 2 for c in circuits)
    maps = small.model.network(small.images.shape[1:]).run(small.model.variables, small.images)["layer1.conv2"]
    kernel = small.model.variables["params"]["layer1"]["conv2"]
    y = jax.lax.conv_general_dilated(
        maps, kernel["kernel"], (1, 1), ((1, 1), (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    for circuit, channel, keep in zip(circuits, (0, 0, 3, 3), (0.4, 0.1) * 2, strict=True):
        best = np.asarray(y[..., channel] + kernel["bias"][channel]).reshape(len(y), -1).argmax(1)
        places = np.stack(np.divmod(best, y.shape[2]), -1)
        alone = jc.Features("layer1.conv2", [channel], position=places)
        scores = jc.score(small.model, small.images, alone, criterion="force", keep=keep, steps=2, batch=2)
        for name, mask in jc.top_kernels(scores).items():
            np.testing.assert_array_equal(circuit.masks[name], mask[0])
    curve = jc.curve(small.model, small.images, alone, scores, keeps=(0.4, 0.1))
    np.testing.assert_allclose(curve[0], [c.manifest["correlation"] for c in circuits[2:]], atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"criterion": "force"}, "force depends on how much is kept: give either keep or kernels"),
        ({"criterion": "force", "keep": 0.1, "kernels": 5}, "give either keep or kernels"),
        ({"criterion": "force", "keep": 0.1, "schedule": (5, 4)}, "a schedule says how many kernels each round keeps"),
        ({"criterion": "force", "schedule": ()}, "a schedule says how many kernels each round keeps"),
        ({"criterion": "force", "schedule": 5}, "a schedule says how many kernels each round keeps"),
        ({"criterion": "force", "schedule": (5, 4), "steps": 2}, "a schedule says how many kernels each round keeps"),
        ({"criterion": "force", "schedule": (5, 0)}, "kernels is 0; expected a whole number of at least 1"),
        ({"criterion": "force", "keep": 0.1, "steps": 0}, "steps is 0; expected a whole number of at least 1"),
        ({"criterion": "snip", "keep": 0.1}, "snip's scores do not depend on how much is kept"),
        ({"criterion": "random", "schedule": (5,)}, "random's scores do not depend on how much is kept"),
    ],
)
def test_bad_options(small, options, message):
    with pytest.raises(jc.InputError, match=message):
        jc.score(small.model, small.images, jc.Features("features.3", [1]), **options)


@pytest.mark.parametrize(
    ("layer", "keep"),
    [
        pytest.param("features.6", 0.01, marks=pytest.mark.slow),
        *(pytest.param(*cell, marks=pytest.mark.full) for cell in (("features.6", 0.1), ("features.10", 0.1))),
        pytest.param("features.10", 0.01, marks=pytest.mark.full),
    ],
)
def test_the_originals_masks(alexnet, layer, keep):
    """With its own counts, one fewer in each round, the original's last scores and its mask."""
    arrays = golden(layer)
    relevant, kept = int(arrays["relevant"]), int(np.ceil(keep * arrays["relevant"]))
    t = np.arange(1, 11) / 10
    schedule = np.ceil(np.exp(t * np.log(kept) + (1 - t) * np.log(relevant))).astype(int) - 1
    images = jc.read_images(DATA / "images.npz", alexnet)
    features = jc.Features(layer, [FEATURES[layer]])
    options = {"criterion": "force", "absolute": "whole_set"}
    scores = jc.score(alexnet, images, features, **options, schedule=schedule.tolist())
    expected = {name: arrays[f"force_mask_{keep}/{name}"].T[None] for name in scores.layers}
    assert float(jc.iou(jc.top_kernels(scores), expected)[0][0]) >= 0.97
    for name in scores.layers:
        found, wanted = scores.values[name][0], arrays[f"force_{keep}/{name}"].T
        np.testing.assert_allclose(found * 100, wanted, atol=1e-4 * wanted.max(), err_msg=name)


# Pearson r of the original's four circuits on the ten images, in data/README.md
ORIGINAL = {
    ("features.6", 0.1): 0.883,
    ("features.6", 0.01): 0.804,
    ("features.10", 0.1): 0.249,
    ("features.10", 0.01): 0.244,
}


@pytest.mark.full
def test_exact_counts_lose_nothing(alexnet):
    """Other circuits than the original but as good ones, in the mean: of four it is .51 with ten rounds and .59 with
    eleven, by chance."""
    images, found = np.concatenate(list(jc.read_images(DATA / "images.npz", alexnet))), []
    for layer, channel in FEATURES.items():
        features = jc.Features(layer, [channel])
        options = {
            "criterion": "force",
            "absolute": "whole_set",
            "keep": [keep for at, keep in ORIGINAL if at == layer],
        }
        for steps in (9, 10, 11):
            found += [c.manifest["correlation"] for c in jc.extract(alexnet, images, features, **options, steps=steps)]
    assert len(found) == 3 * len(ORIGINAL)
    assert np.mean(found) >= np.mean(list(ORIGINAL.values())) - 0.02
