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
def test_a_convolution_and_its_gradient(made, name):
    """Of any counts by one program, which chooses among its branches when it runs."""
    layer = layer_of(name)

    @jax.jit
    def alive(x, kernel, g):
        found, pullback = jax.vjp(lambda x: live.convolution(layer, x, kernel), x)
        return found, *pullback(g), convolve_back(layer, g, kernel)

    for counts in [(0, 0, 0), (3, 16, 2), (17, 10, 33), (48, 64, 64)]:
        case = made(name, *counts)
        expected, pullback = jax.vjp(lambda x, kernel=case.kernel: convolve(layer, x, kernel), case.x)
        (gradient,) = pullback(jnp.asarray(case.g))
        of_both = (expected, gradient, gradient)
        for found, one in zip(alive(case.x, case.kernel, case.g), of_both, strict=True):
            np.testing.assert_allclose(found, one, atol=1e-5 * max(1, np.abs(one).max()), err_msg=str(counts))


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
def test_sums(made, granularity, absolute):
    layer, statistic = layer_of("strided"), CRITERIA[granularity][absolute].dense
    assert layer.inputs >= ops.THIN
    total = np.random.default_rng(1).random(statistic.shape(layer, 1), np.float32)
    alive = jax.jit(lambda total, *arrays: live.add(statistic.added, total, layer, *arrays))
    for gradients in (0, 5, 30, 64):
        case = made("strided", 48, 64, gradients)
        arrays = case.x, case.g.reshape(1, 2, -1, OUTPUTS), case.kernel.reshape(-1, INPUTS, OUTPUTS)
        expected = statistic.added(jnp.asarray(total), layer, *map(jnp.asarray, arrays))
        np.testing.assert_allclose(alive(total, *arrays), expected, rtol=1e-5, atol=1e-4, err_msg=str(gradients))
