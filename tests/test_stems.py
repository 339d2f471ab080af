"""Circuits that share what enters their second layer, against the plain masked network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits import masked, stems
from jaxcircuits.pooling import max_pool
from jaxcircuits.variables import with_masks
from tests import twins


class Chain(nn.Module):
    """What stands between the first two layers, whether something leads around the second, the first one's groups."""

    between: str = "channels"
    around: bool = False
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), strides=2, feature_group_count=self.groups, name="a")(x)
        if self.between == "channels":
            x = max_pool(nn.relu(nn.BatchNorm(True)(x)), 3, 2)
        elif self.between == "softmax":
            x = max_pool(nn.softmax(x), 3, 2)
        elif self.between == "looped":
            x = max_pool(jax.lax.map(nn.softmax, x), 3, 2)
        elif self.between == "turned":
            x = max_pool(x[..., ::-1], 3, 2)
        elif self.between == "doubled":
            x = max_pool(jnp.concatenate([nn.relu(x), nn.relu(-x)], -1), 3, 2)
        y = nn.relu(nn.jit(nn.Conv)(6, (3, 3), name="b")(x))
        return nn.Conv(4, (3, 3), name="c")(x + y if self.around else y)


def chain(**options):
    module = Chain(**options)
    return jc.Model(module, twins.random_variables(module, (1, 32, 32, 3)))


def drawn(model, number, features, density=0.6):
    rng = np.random.default_rng(0)
    layers = model.layers.items()
    return [{n: rng.random((features, la.inputs, la.outputs)) < density for n, la in layers} for _ in range(number)]


def stems_of(model, target, masks):
    return stems.stems_of(model.network((32, 32, 3)), model.variables, target, masks)


@pytest.mark.parametrize("target", ["b", "c"])
def test_a_mosaic_is_what_enters_the_second_layer(target):
    model, images = chain(), np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
    masks, network = drawn(model, 1, 3, 0.9), model.network((32, 32, 3))
    masks[0]["a"][0] = True
    masks[0]["a"][:, :, 0] = True
    shared = stems_of(model, target, masks)
    assert (shared.first, shared.second) == ("a", "b") and len(shared.masks) in (1, 2, 4)
    grown = stems.grown(network, "a", "b", model.variables, shared.masks, images)
    for f, chosen in [(0, shared.full), *enumerate(shared.chosen[0])]:
        plain = network.run(with_masks(network, model.variables, {"a": masks[0]["a"][f]}), images)["b"]
        np.testing.assert_allclose(stems.mosaic(grown, chosen), plain, atol=1e-5)


@pytest.mark.parametrize("target", ["b", "c"])
def test_circuits_by_stems_are_the_same(monkeypatch, target):
    monkeypatch.setattr(masked, "GROUP", 2)
    monkeypatch.setattr(stems, "LARGE", 10)
    model, images = chain(), np.random.default_rng(1).standard_normal((5, 32, 32, 3), np.float32)
    features, masks = jc.Features(target, [1, 3]), drawn(model, 3, 2)
    if target == "b":
        masks = [{n: mask[n] for n in "ab"} for mask in masks]
    assert len(stems_of(model, target, masks).masks) == 8
    found = jc.evaluate(model, images, features, masks, batch=2)
    with monkeypatch.context() as patch:
        patch.setattr(stems, "stems_of", lambda *_: None)
        patch.setattr(masked, "suited", lambda *_: ())
        plain = jc.evaluate(model, images, features, masks, batch=2)
    for name, values in vars(plain.moments).items():
        np.testing.assert_allclose(getattr(found.moments, name), values, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "options",
    [{"between": name} for name in ("softmax", "looped", "turned", "doubled")] + [{"around": True}, {"groups": 3}],
)
def test_what_has_no_stems(options):
    """Channels that are mixed, in another order, twice or used elsewhere as well, or that see not all of the image."""
    model = chain(**options)
    assert stems_of(model, "c", drawn(model, 1, 1)) is None
    assert stems_of(chain(), "c", drawn(model, 1, 1)) is not None


def test_when_stems_do_not_pay(monkeypatch):
    model = chain()
    (masks,) = drawn(model, 1, 2)
    assert stems_of(model, "a", [masks]) is None  # the features' own layer
    assert stems_of(model, "c", [{n: masks[n] for n in "bc"}]) is None  # no masks of the first
    assert stems_of(model, "c", [{**masks, "a": masks["a"].astype(np.float32)}]) is None  # soft ones
    filters = {**masks, "a": masks["a"].any(1)}
    assert stems_of(model, "c", [filters]) is None and stems_of(model, "c", [masks, filters]) is None
    flat = chain(between="nothing")  # as large behind as before, times the number of stems
    assert stems_of(flat, "c", drawn(flat, 3, 3)) is None
    monkeypatch.setattr(stems, "LARGE", 100)
    assert stems_of(flat, "c", drawn(flat, 3, 3)) is not None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert stems_of(model, "c", [masks]) is None


def test_alexnet_has_stems(alexnet):
    network = alexnet.network()
    (masks,) = drawn(alexnet, 1, 1, 0.999)
    shared = stems.stems_of(network, alexnet.variables, "features.10", [masks])
    assert (shared.first, shared.second) == ("features.0", "features.3")
