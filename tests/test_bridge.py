"""An nnx model next to nnx itself and to the same network in linen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxcircuits as jc

images = np.random.default_rng(0).standard_normal((3, 12, 12, 3)).astype(np.float32)


class Block(nnx.Module):
    def __init__(self, channels, rngs):
        self.conv = nnx.Conv(channels, channels, (3, 3), feature_group_count=2, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(channels, rngs=rngs, epsilon=1e-3)
        self.gain = nnx.Param(jnp.full((channels,), -0.5))

    def __call__(self, x):
        return nnx.relu(x + self.gain[...] * self.norm(self.conv(x)))


class Network(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 6, (3, 5), strides=2, padding=((1, 0), (2, 2)), rngs=rngs)
        self.blocks = nnx.List([Block(6, rngs), Block(6, rngs)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Sequential(nnx.LayerNorm(6, rngs=rngs), nnx.Linear(6, 4, rngs=rngs))

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.drop(x.mean((1, 2))))


class Twin(nn.Module):
    """`Network` in linen."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 5), strides=2, padding=((1, 0), (2, 2)), name="stem")(x))
        for k in range(2):
            conv = nn.Conv(6, (3, 3), feature_group_count=2, use_bias=False, name=f"blocks.{k}.conv")
            y = nn.BatchNorm(True, epsilon=1e-3, name=f"blocks.{k}.norm")(conv(x))
            x = nn.relu(x + self.param(f"gain{k}", nn.initializers.ones, (6,)) * y)
        return nn.Dense(4, name="head.layers.1")(nn.LayerNorm(name="head.layers.0")(x.mean((1, 2))))


@pytest.fixture(scope="module")
def network():
    model = Network(nnx.Rngs(0))
    model(images)  # moves the running statistics
    model.eval()
    return model


@pytest.fixture(scope="module")
def model(network):
    return jc.from_nnx(network, input_size=12)


def test_it_computes_what_nnx_computes(network, model):
    np.testing.assert_allclose(model(images), network(images), atol=1e-6)
    assert list(model.layers) == ["stem", "blocks.0.conv", "blocks.1.conv", "head.layers.1"]
    assert (model.name, model.input_size) == ("network", 12)
    assert type(network.stem) is nnx.Conv


def test_scores_and_circuits_are_those_of_the_linen_twin(network, model):
    variables = jax.tree.map(np.asarray, dict(model.variables))
    gains = {f"gain{k}": variables["params"]["others"][f"blocks.{k}.gain"] for k in range(2)}
    params = {name: leaves for name, leaves in variables["params"].items() if name != "others"} | gains
    twin = jc.Model(Twin(), {"params": params, "batch_stats": variables["batch_stats"]}, input_size=12)
    np.testing.assert_allclose(model(images), twin(images), atol=1e-6)
    features = jc.Features("blocks.1.conv", [0, 5])
    found, expected = (jc.score(m, images, features) for m in (model, twin))
    for name, values in expected.values.items():
        np.testing.assert_allclose(found.values[name], values, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(found.relevant[name], expected.relevant[name])
    masks = jc.top_kernels(expected, keep=0.3)
    np.testing.assert_allclose(*(jc.correlation(m, images, features, masks) for m in (model, twin)), atol=1e-6)


class Norms(nnx.Module):
    """Every kind of normalisation, one told at its call how to work, and an array that is no variable."""

    def __init__(self, rngs):
        self.mean = np.array([0.1, 0.2, 0.3], np.float32)
        self.stem = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norms = nnx.List([
            nnx.GroupNorm(6, num_groups=3, rngs=rngs), nnx.InstanceNorm(6, rngs=rngs), nnx.LayerNorm(6, rngs=rngs),
            nnx.RMSNorm(6, rngs=rngs),
        ])  # fmt: skip
        self.told = nnx.BatchNorm(6, rngs=rngs)
        self.last = nnx.Conv(6, 2, (1, 1), rngs=rngs)

    def __call__(self, x):
        x = self.stem(x - self.mean)
        for norm in self.norms:
            x = nnx.relu(norm(x) + 0.1)
        return self.last(self.told(x, use_running_average=True))


def test_all_normalisations():
    module = Norms(nnx.Rngs(0))
    model = jc.from_nnx(module, input_size=12)
    np.testing.assert_allclose(model(images), module(images), atol=1e-5)
    assert list(model.layers) == ["stem", "last"]
    assert jc.score(model, images, jc.Features("last", [0])).values["stem"].any()


def test_compact_of_several_variables_of_no_layer(network, model):
    (circuit,) = jc.extract(model, images, jc.Features("head.layers.1", [1]), keep=0.8)
    small = jc.compact(model, circuit)
    masks = {name: mask[None] for name, mask in circuit.masks.items()}
    found = jc.evaluate(small, images, jc.Features("head.layers.1", [0]), [{}]).moments
    expected = jc.evaluate(model, images, circuit.features, masks).moments
    np.testing.assert_allclose(found.mean_y[0], expected.mean_x[0, 0], atol=1e-5)


@pytest.mark.parametrize("layer", [nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))])
def test_training_mode_is_named(layer):
    model = jc.from_nnx(nnx.Sequential(layer, nnx.Conv(3, 2, (3, 3), rngs=nnx.Rngs(0))), input_size=12)
    with pytest.raises(jc.InputError, match=r"may be in training mode: .* for nnx call eval\(\) first"):
        jc.score(model, images, jc.Features("layers.1", [0]))


def test_only_nnx_modules():
    with pytest.raises(jc.InputError, match="takes an nnx module, not a Twin; linen modules go to Model"):
        jc.from_nnx(Twin())


def test_a_function_built_from_a_module(model):
    """Linen's own way: `method` takes a function of the module."""
    options = {"method": lambda module, x: module(2 * x[:, ::-1])}
    flipped = jc.Model(model.module, model.variables, apply_options=options, input_size=12)
    np.testing.assert_allclose(flipped(images), model(2 * images[:, ::-1]), atol=1e-6)
    features = jc.Features("stem", [1])
    found, expected = jc.score(flipped, images, features), jc.score(model, 2 * images[:, ::-1], features)
    np.testing.assert_allclose(found.values["stem"], expected.values["stem"], rtol=1e-5)
