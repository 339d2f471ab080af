"""Products that leave out zero channels against those that do not."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits import live, ops
from jaxcircuits.criteria.snip import CRITERIA
from jaxcircuits.layers import Layer
from jaxcircuits.ops import convolve, convolve_back

GEOMETRIES = {
    "plain": ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "strided": ((5, 3), (3, 2), ((2, 1), (0, 1)), (1, 1)),
    "dilated": ((2, 3), (1, 1), ((0, 2), (2, 2)), (2, 2)),
    "skipping": ((1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1)),
    "padded": ((1, 1), (1, 1), ((2, 1), (1, 2)), (1, 1)),
}
INPUTS, OUTPUTS, SIZE = 48, 64, (9, 8)


def layer_of(name):
    window, strides, padding, dilation = GEOMETRIES[name]
    axes = zip(SIZE, window, strides, padding, dilation, strict=True)
    positions = [(n + sum(p) - (w - 1) * d - 1) // s + 1 for n, w, s, p, d in axes]
    maps = (*SIZE, INPUTS), (*positions, OUTPUTS)
    return Layer("conv", ("conv",), "conv", window, strides, padding, dilation, 1, INPUTS, OUTPUTS, *maps)


@pytest.fixture
def made():
    """Images, a kernel of which few outputs read few inputs, and a gradient at few outputs, by a layer's name."""

    def make(name, inputs, outputs, gradients):
        rng, layer = np.random.default_rng(0), layer_of(name)
        x = rng.standard_normal((2, *SIZE, INPUTS)).astype(np.float32)
        kernel = rng.standard_normal((*layer.window, INPUTS, OUTPUTS)).astype(np.float32)
        g = rng.standard_normal((2, *layer.output_shape)).astype(np.float32)
        kernel[:, :, rng.permutation(INPUTS)[inputs:]] = 0
        kernel[..., rng.permutation(OUTPUTS)[outputs:]] = 0
        g[..., rng.permutation(OUTPUTS)[gradients:]] = 0
        return SimpleNamespace(layer=layer, x=x, kernel=kernel, g=g)

    return make


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("counts", [(0, 0, 0), (3, 16, 2), (17, 10, 33), (48, 64, 64)])
def test_a_convolution_and_its_gradient(made, name, counts):
    case = made(name, *counts)
    expected, pullback = jax.vjp(lambda x: convolve(case.layer, x, case.kernel), case.x)
    found, live_pullback = jax.vjp(
        lambda x: live.convolution(case.layer, x, jnp.asarray(case.kernel)), jnp.asarray(case.x)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))
    (gradient,) = pullback(jnp.asarray(case.g))
    tolerance = 1e-5 * max(1, np.abs(gradient).max())
    np.testing.assert_allclose(jax.jit(live_pullback)(jnp.asarray(case.g))[0], gradient, atol=tolerance)
    np.testing.assert_allclose(
        convolve_back(case.layer, jnp.asarray(case.g), jnp.asarray(case.kernel)), gradient, atol=tolerance
    )


def test_what_is_zero_is_left_out(made):
    """Not a number times zero is not a number, but not where it is not multiplied."""
    case = made("plain", 12, 12, 64)
    dead = ~(case.kernel != 0).any((0, 1, 3))
    assert dead.sum() == 36
    case.x[..., np.flatnonzero(dead)[-20:]] = np.nan
    assert np.isfinite(live.convolution(case.layer, jnp.asarray(case.x), jnp.asarray(case.kernel))).all()
    assert np.isnan(convolve(case.layer, case.x, case.kernel)).all()


@pytest.mark.parametrize("granularity", ["kernel", "weight"])
@pytest.mark.parametrize("absolute", ["per_image", "whole_set", "none"])
@pytest.mark.parametrize("gradients", [0, 5, 30, 64])
def test_sums(made, granularity, absolute, gradients):
    case, statistic = made("strided", 48, 64, gradients), CRITERIA[granularity][absolute].dense
    assert case.layer.inputs >= ops.THIN
    total = jnp.asarray(np.random.default_rng(1).random(statistic.shape(case.layer, 1), np.float32))
    w = jnp.asarray(case.kernel.reshape(-1, INPUTS, OUTPUTS))
    arguments = total, case.layer, jnp.asarray(case.x), jnp.asarray(case.g.reshape(1, 2, -1, OUTPUTS)), w
    expected = statistic.added(*arguments)
    np.testing.assert_allclose(live.add(statistic.added, *arguments), expected, rtol=1e-5, atol=1e-4)
