"""Pieces of a convolution against JAX's own, and max pooling against PyTorch's."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax

from jaxcircuits import ops
from jaxcircuits.ops import feature_input_gradients, feature_maps, kernel_gradients, max_pool, patches, seen_by

rng = np.random.default_rng(0)

RANDOM = rng.standard_normal((2, 9, 7, 3)).astype(np.float32)
IMAGES = {
    "random": RANDOM,
    "negative": -np.abs(RANDOM),  # padding must not win
    "ties": RANDOM.round(),
    "flat": np.ones_like(RANDOM),
    "flat regions": np.maximum(RANDOM.repeat(3, 1)[:, :9], 0),
}


def torch_pool(x, cotangent, *options):
    """PyTorch's pooling and its gradient, in Flax's order of axes."""
    x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    y = torch.nn.functional.max_pool2d(x, *options[:3], ceil_mode=options[3])
    cotangent = cotangent(y.permute(0, 2, 3, 1).shape)
    (gradient,) = torch.autograd.grad(y, x, torch.tensor(cotangent.transpose(0, 3, 1, 2)))
    return *(a.detach().permute(0, 2, 3, 1).numpy() for a in (y, gradient)), cotangent


@pytest.mark.parametrize(
    "options", [(2, 2, 0, False), (3, 2, 1, False), (3, 2, 0, True), (2, 3, 1, True), (3, 1, 1, False), (5, 3, 2, True)]
)
def test_max_pool_and_its_gradient_are_pytorchs(options):
    for x in IMAGES.values():
        expected, gradient, cotangent = torch_pool(x, lambda s: rng.standard_normal(s, np.float32), *options)
        y, pullback = jax.vjp(lambda x: max_pool(x, *options), x)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(max_pool(x, *options), expected)  # without a gradient it runs other code
        np.testing.assert_allclose(pullback(jnp.asarray(cotangent))[0], gradient, atol=1e-6)


def test_max_pool_of_many_cotangents():
    y, pullback = jax.vjp(lambda x: max_pool(x, 3, 2, 1, True), IMAGES["ties"])
    cotangents = rng.standard_normal((4, *y.shape)).astype(np.float32)
    together = jax.vmap(pullback)(cotangents)[0]
    for one, cotangent in zip(together, cotangents, strict=True):
        _, gradient, _ = torch_pool(IMAGES["ties"], lambda s, c=cotangent: c, 3, 2, 1, True)
        np.testing.assert_allclose(one, gradient, atol=1e-6)


def geometry(window, strides, padding, dilation, size):
    """What the pieces read of a layer, for maps of this size."""
    reach = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
    positions = tuple((n + sum(p) - r) // s + 1 for n, p, r, s in zip(size[:2], padding, reach, strides, strict=True))
    return SimpleNamespace(
        window=window,
        strides=strides,
        padding=padding,
        dilation=dilation,
        positions=positions,
        input_maps=size,
        groups=1,
        inputs=size[2],
        outputs=4,
    )


@pytest.mark.parametrize(
    "window, strides, padding, dilation",
    [
        ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
        ((1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1)),
        ((5, 2), (2, 3), ((2, 1), (0, 1)), (1, 1)),  # padded differently at each side, rows left over
        ((3, 2), (2, 1), ((2, 2), (3, 0)), (2, 3)),
        ((2, 3), (1, 2), ((4, 3), (0, 5)), (1, 1)),  # windows that see nothing but padding
        ((3, 1), (4, 1), ((0, 0), (0, 0)), (1, 1)),  # steps larger than the window
    ],
)
def test_convolution_in_pieces(window, strides, padding, dilation, monkeypatch):
    x = RANDOM
    layer = geometry(window, strides, padding, dilation, x.shape[1:])
    kernels = rng.standard_normal((4, window[0] * window[1], 3)).astype(np.float32)  # F = 4 features

    def convolve(x):
        kernel = kernels.reshape(4, *window, 3).transpose(1, 2, 3, 0)
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=numbers, precision="highest"
        )

    maps, pullback = jax.vjp(convolve, x)
    seen = patches(layer, x)
    assert seen.shape == (2, np.prod(layer.positions), window[0] * window[1], 3)
    by_product = np.einsum("npkc,fkc->npf", seen, kernels)
    np.testing.assert_allclose(by_product.reshape(maps.shape), maps, atol=1e-5)

    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(feature_maps(layer, x, kernels), maps.transpose(3, 0, 1, 2), atol=1e-5)

    cotangents = rng.standard_normal((4, *maps.shape[:3])).astype(np.float32)
    found = feature_input_gradients(layer, jnp.asarray(cotangents), kernels)
    for f in range(4):
        alone = np.zeros(maps.shape, np.float32)
        alone[..., f] = cotangents[f]
        np.testing.assert_allclose(found[f], pullback(alone)[0], atol=1e-5)

    g = rng.standard_normal((2, np.prod(layer.positions), 4)).astype(np.float32)
    expected = np.einsum("npo,npkc->kco", g, seen)
    with jax.default_matmul_precision("highest"):
        # by a convolution on a CPU, by a product of patches, by strips of one row, of some, and of all
        for ungrouped, thin, strip in (
            (True, 16, 1024),
            (False, 16, 1024),
            (True, 1, 1),
            (True, 1, 16),
            (True, 1, 1024),
        ):
            layer.ungrouped = ungrouped
            monkeypatch.setattr(ops, "THIN", thin)
            monkeypatch.setattr(ops, "STRIP", strip)
            gradients = kernel_gradients(layer, seen_by(layer, x), jnp.asarray(g))
            np.testing.assert_allclose(gradients, expected, atol=1e-4)
