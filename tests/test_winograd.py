"""Convolutions by tiles against convolutions as they stand."""

import dataclasses
import functools
import itertools

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

TOLERANCE = {(2, 3): 3e-6, (2, 5): 1e-5, (4, 3): 3e-5, (4, 5): 3e-5}  # {(m, r): of the largest value}


def layer_of(height, width, padding, inputs=3, outputs=5, window=3):
    size = height + sum(padding[0]) - window + 1, width + sum(padding[1]) - window + 1
    return Layer(
        name="a",
        path=("a",),
        kind="conv",
        window=(window, window),
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


def compiled(function):
    """Anew for each example, for it depends on STRIP; compiling operation by operation takes several times as long."""
    return jax.jit(lambda *arrays: function(*arrays))


sides = st.tuples(st.integers(0, 3), st.integers(0, 3))


@given(
    st.integers(5, 15),
    st.integers(5, 15),
    st.tuples(sides, sides),
    st.integers(1, 4),
    st.sampled_from([1, 8, 30, 256]),
    st.sampled_from(list(TOLERANCE)),
)
@settings(max_examples=25, deadline=None)
def test_any_size_padding_strip_side_and_window(height, width, padding, images, strip, side_and_window):
    side, window = side_and_window
    layer, rng = layer_of(height, width, padding, window=window), np.random.default_rng(0)
    x, kernel = drawn(rng, images, *layer.input_shape), drawn(rng, window, window, 3, 5)
    with pytest.MonkeyPatch.context() as patch, jax.default_matmul_precision("highest"):
        patch.setattr(winograd, "STRIP", strip)
        found = compiled(lambda x, k: winograd.convolve(layer, x, winograd.transformed(k, side)))(x, kernel)
        options = {"padding": layer.padding, "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        expected = lax.conv_general_dilated(x, kernel, (1, 1), **options)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[side, window] * np.abs(expected).max())


@given(
    st.integers(5, 15),
    st.integers(5, 15),
    st.tuples(sides, sides),
    st.integers(1, 3),
    st.sampled_from([1, 8, 256]),
    st.sampled_from(list(TOLERANCE)),
)
@settings(max_examples=12, deadline=None)
def test_gradients_of_any_size_padding_strip_side_and_window(height, width, padding, images, strip, side_and_window):
    """Of inputs and of kernels. (JAX's own of inputs is not to be relied on where a layer is padded by more than its
    window reaches.)"""
    m, window = side_and_window
    layer, rng = layer_of(height, width, padding, window=window), np.random.default_rng(0)
    x, kernel = drawn(rng, images, *layer.input_shape), drawn(rng, window, window, 3, 5)
    g = drawn(rng, images, *layer.output_shape)
    with pytest.MonkeyPatch.context() as patch, jax.default_matmul_precision("highest"):
        patch.setattr(winograd, "STRIP", strip)
        weights = compiled(functools.partial(winograd.transformed, m=m))(kernel[::-1, ::-1].swapaxes(2, 3))
        of_inputs = compiled(functools.partial(winograd.convolve, winograd.backwards(layer)))(g, weights)
        flat = jnp.concatenate([drawn(rng, 2, *layer.output_shape), g]).reshape(images + 2, -1, layer.outputs)
        seen = compiled(functools.partial(winograd.seen_by, layer, m=m))(x)
        of_kernels = compiled(functools.partial(winograd.kernel_gradients, layer, start=2, m=m))(seen, flat)
    places = (slice(padding[0][0], padding[0][0] + height), slice(padding[1][0], padding[1][0] + width))
    seen, back = (np.pad(a, ((0, 0), *padding, (0, 0))) for a in (x, np.zeros_like(x)))
    expected = np.zeros(kernel.shape)
    for a, b in itertools.product(range(window), repeat=2):
        view = (slice(None), slice(a, a + layer.positions[0]), slice(b, b + layer.positions[1]))
        expected[a, b] = np.einsum("nhwi,nhwo->io", seen[view], g)
        back[view] += g @ np.asarray(kernel[a, b]).T
    for found, one in ((of_inputs, back[:, *places]), (of_kernels.reshape(kernel.shape), expected)):
        np.testing.assert_allclose(found, one, rtol=0, atol=TOLERANCE[side_and_window] * np.abs(one).max())


@pytest.mark.parametrize(("m", "r"), TOLERANCE)
def test_matrices_are_exact(m, r):
    """In whole numbers and halves there is no rounding but that of G."""
    a, g, b = (matrix.astype(float) for matrix in winograd._matrices(m, r))
    rng = np.random.default_rng(0)
    d, k = rng.integers(-9, 10, m + r - 1), rng.integers(-9, 10, r)
    np.testing.assert_allclose(a @ ((g @ k) * (b @ d)), np.correlate(d, k, "valid"), atol=1e-4)


def test_every_side_and_window_is_tested():
    assert set(TOLERANCE) == set(itertools.product(winograd.SIDES, winograd.WINDOWS))


def test_strips_of_rows_and_of_images():
    assert winograd._strip_size(16, (7, 7)) == (4, 7)
    assert winograd._strip_size(15, (7, 7)) == (5, 7)
    assert winograd._strip_size(2, (28, 28)) == (1, 7)
    assert winograd._strip_size(1, (31, 31)) == (1, 31), "rows of one would be too few"


def test_what_is_dead_stays_exactly_zero():
    layer, rng = layer_of(8, 8, ((1, 1), (1, 1))), np.random.default_rng(0)
    for m in winograd.SIDES:
        kernel = winograd.transformed(drawn(rng, 3, 3, 3, 5).at[..., 4].set(0), m)
        y = winograd.convolve(layer, drawn(rng, 2, 8, 8, 3), kernel)
        assert not y[..., 4].any() and y[..., :4].all()


def test_only_where_it_pays():
    on_cpu = jax.default_backend() == "cpu"
    around = (1, 1), (1, 1)
    large, small = layer_of(56, 56, around, 256, 256), layer_of(14, 14, around, 512, 512)
    assert winograd.side(large, 1) == (4 if on_cpu else None)
    assert winograd.side(small, 1) == (2 if on_cpu else None), "a transform of 36 numbers a kernel would be too large"
    assert winograd.side(small, 16, ready=True) == (4 if on_cpu else None), "but not if it is made once"
    assert winograd.side(layer_of(8, 8, around, 512, 512), 1) is None, "kernels would be most of the work"
    assert winograd.share(large, 4) <= winograd.share(large, 1) <= (0.5 if on_cpu else 1)
    others = (
        {"window": (3, 5)},
        {"window": (1, 1)},
        {"strides": (2, 2)},
        {"dilation": (2, 2)},
        {"groups": 2},
        {"inputs": 63},
    )
    for other in others:
        layer = dataclasses.replace(large, **other)
        assert winograd.side(layer, 1) is None and winograd.share(layer, 1) == 1


def test_kernel_gradients_by_tiles_only_where_they_pay():
    on_cpu, around = jax.default_backend() == "cpu", ((1, 1), (1, 1))
    large = layer_of(56, 56, around, 256, 256)
    assert winograd.side_of_kernels(large) == (4 if on_cpu else None)
    assert winograd.side_of_kernels(layer_of(3, 3, around, 512, 512)) is None, "the transform would be most of the work"
    assert winograd.side_of_kernels(dataclasses.replace(large, strides=(2, 2))) is None


@pytest.mark.parametrize(("features", "absolute"), [(4, "per_image"), (1, "whole_set")])
def test_scores_of_alexnet_by_tiles(monkeypatch, alexnet, features, absolute):
    """Features whose support is not looked for, for there are few."""
    images = np.random.default_rng(0).standard_normal((2, 224, 224, 3), np.float32)
    asked, used = jc.Features("features.8", range(features)), {"convolve": set(), "kernel_gradients": set()}
    for name, names in used.items():
        original = getattr(winograd, name)
        spied = lambda layer, *rest, own=original, names=names: names.add(layer.name) or own(layer, *rest)  # noqa: E731
        monkeypatch.setattr(winograd, name, spied)
    by_tiles = jc.score(alexnet, images, asked, absolute=absolute)
    on_cpu = jax.default_backend() == "cpu"
    assert used["kernel_gradients"] == ({"features.3", "features.6"} if on_cpu else set())
    assert used["convolve"] == used["kernel_gradients"]
    monkeypatch.setattr(winograd, "_best", lambda *_: (1, None))
    plain = jc.score(dataclasses.replace(alexnet), images, asked, absolute=absolute)  # of which nothing is compiled
    for name in plain.layers:
        found, expected = by_tiles.values[name], np.asarray(plain.values[name])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    differs = [name for name in plain.layers if (by_tiles.values[name] != plain.values[name]).any()]
    assert differs == (["features.0", "features.3", "features.6"] if on_cpu else []), "the other way was not compiled"


def test_circuits_of_alexnet_by_tiles(monkeypatch, alexnet):
    rng, layers = np.random.default_rng(0), alexnet.layers
    images, features = rng.standard_normal((3, 224, 224, 3), np.float32), jc.Features("features.10", [0])
    names = [name for name in layers if name.startswith("features")][:5]
    masks = {name: rng.random((1, layers[name].inputs, layers[name].outputs)) < 0.8 for name in names}
    used, original = [], winograd.convolve

    def spied(layer, *rest):
        used.append(layer.name)
        return original(layer, *rest)

    monkeypatch.setattr(winograd, "convolve", spied)
    by_tiles = jc.evaluate(alexnet, images, features, masks)
    assert set(used) == ({"features.3", "features.6", "features.8"} if jax.default_backend() == "cpu" else set())
    monkeypatch.setattr(masked, "suited", lambda *_: ())
    monkeypatch.setattr(winograd, "side", lambda *_: None)  # the full network, too
    plain = jc.evaluate(alexnet, images, features, masks)
    for name in ("mean_x", "mean_y", "xx", "yy", "xy", "error"):
        found, expected = (getattr(evaluation.moments, name) for evaluation in (by_tiles, plain))
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6 * np.abs(expected).max())
