"""Convolutions by tiles against convolutions as they stand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxcircuits as jc
from jaxcircuits import masked, winograd
from jaxcircuits.layers import Layer


def layer_of(height, width, padding, inputs=3, outputs=5):
    size = height + sum(padding[0]) - 2, width + sum(padding[1]) - 2
    return Layer(
        name="a",
        path=("a",),
        kind="conv",
        window=(3, 3),
        strides=(1, 1),
        padding=padding,
        dilation=(1, 1),
        groups=1,
        inputs=inputs,
        outputs=outputs,
        input_shape=(height, width, inputs),
        output_shape=(*size, outputs),
    )


def drawn(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def close(layer, x, kernel):
    with jax.default_matmul_precision("highest"):
        found = winograd.convolve(layer, x, kernel)
        options = {"padding": layer.padding, "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        expected = lax.conv_general_dilated(x, kernel, (1, 1), **options)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


sides = st.tuples(st.integers(0, 3), st.integers(0, 3))


@given(
    st.integers(3, 15), st.integers(3, 15), st.tuples(sides, sides), st.integers(1, 4), st.sampled_from([1, 8, 30, 256])
)
@settings(max_examples=25, deadline=None)
def test_any_size_padding_and_strip(height, width, padding, images, strip):
    layer, rng = layer_of(height, width, padding), np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "STRIP", strip)
        close(layer, drawn(rng, images, *layer.input_shape), drawn(rng, 3, 3, 3, 5))


def test_strips_of_rows_and_of_images():
    assert winograd._strip_size(16, (7, 7)) == (4, 7)
    assert winograd._strip_size(15, (7, 7)) == (5, 7)
    assert winograd._strip_size(2, (28, 28)) == (1, 7)
    assert winograd._strip_size(1, (31, 31)) == (1, 31), "rows of one would be too few"


def test_what_is_dead_stays_exactly_zero():
    layer, rng = layer_of(8, 8, ((1, 1), (1, 1))), np.random.default_rng(0)
    y = winograd.convolve(layer, drawn(rng, 2, 8, 8, 3), drawn(rng, 3, 3, 3, 5).at[..., 4].set(0))
    assert not y[..., 4].any() and y[..., :4].all()


def test_only_where_it_pays():
    layer = layer_of(14, 14, ((1, 1), (1, 1)), 128, 256)
    assert winograd.suited(layer) == (jax.default_backend() == "cpu")
    others = (
        {"window": (5, 5)},
        {"strides": (2, 2)},
        {"dilation": (2, 2)},
        {"groups": 2},
        {"inputs": 32},
        {"inputs": 63},
    )
    for other in others:
        assert not winograd.suited(dataclasses.replace(layer, outputs=1024 if "inputs" in other else 256, **other))


def test_circuits_of_alexnet_by_tiles(monkeypatch, alexnet):
    rng, layers = np.random.default_rng(0), alexnet.layers
    images, features = rng.standard_normal((3, 224, 224, 3), np.float32), jc.Features("features.10", [0])
    names = [name for name in layers if name.startswith("features")][:5]
    masks = {name: rng.random((1, layers[name].inputs, layers[name].outputs)) < 0.8 for name in names}
    used, original = [], winograd.convolve

    def spied(layer, x, kernel):
        used.append(layer.name)
        return original(layer, x, kernel)

    monkeypatch.setattr(winograd, "convolve", spied)
    by_tiles = jc.evaluate(alexnet, images, features, masks)
    assert set(used) == ({"features.6", "features.8"} if jax.default_backend() == "cpu" else set())
    monkeypatch.setattr(masked, "suited", lambda *_: ())
    plain = jc.evaluate(alexnet, images, features, masks)
    for name in ("mean_x", "xx", "xy", "error"):
        found, expected = (getattr(evaluation.moments, name) for evaluation in (by_tiles, plain))
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6 * np.abs(expected).max())
